"""A clip's text while it is decoded and once it has ended."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from models.language.text import TextProcessor


def hits_stop_string(tokens: Sequence[int], text: TextProcessor) -> bool:
    """Whether the last token completes a stop string. Only the end of the text is decoded, and only where it may."""
    if not text.stop_strings or not tokens or not text.may_end_stop(tokens[-1]):
        return False
    tail = text.decode_raw(tokens[-text.stop_span :])
    return any(stop in tail for stop in text.stop_strings)


@dataclass(frozen=True)
class Generation:
    """One clip's hypothesis."""

    text: str
    """Without special tokens, end symbol or stop string."""
    tokens: list[int]
    """Every generated id, the end's included."""
    logprobs: list[float]
    """The model's own log-probability of each token, before penalties and temperature."""
    stop_reason: str
    """`end` (an end-of-sequence id), `stop_string`, or `length`."""


@dataclass
class Hypothesis:
    """A row while it is being decoded."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def ends_row(tokens: Sequence[int], text: TextProcessor, halt_id: int | None = None) -> bool:
    """Whether the last token ends a row: an end-of-sequence id, `halt_id`, or the end of a stop string."""
    return tokens[-1] in text.eos_ids or tokens[-1] == halt_id or hits_stop_string(tokens, text)


def finished(tokens: list[int], logprobs: list[float], text: TextProcessor, halted: bool = False) -> Generation:
    """The result for a row that stopped, with the reason; `halted`: by another token than the text's own ends."""
    if halted or (tokens and tokens[-1] in text.eos_ids):
        reason = "end"
    else:
        reason = "stop_string" if hits_stop_string(tokens, text) else "length"
    return Generation(text.decode(tokens), tokens, logprobs, reason)

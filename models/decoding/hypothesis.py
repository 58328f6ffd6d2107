"""A clip's text while it is decoded and once it has ended."""

from collections.abc import Sequence
from dataclasses import dataclass

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

    tokens: list[int]
    logprobs: list[float]
    done: bool = False


def finished(tokens: list[int], logprobs: list[float], text: TextProcessor, halted: bool = False) -> Generation:
    """The result for a row that stopped, with why it did; `halted` where the first row ended it."""
    if halted or (tokens and tokens[-1] in text.eos_ids):
        reason = "end"
    else:
        reason = "stop_string" if hits_stop_string(tokens, text) else "length"
    return Generation(text.decode(tokens), tokens, logprobs, reason)


def append_token(row: Hypothesis, token: int, logprob: float, text: TextProcessor) -> None:
    """Note the token that was chosen for a row, unless the row is done."""
    if row.done:
        return
    row.tokens.append(token)
    row.logprobs.append(logprob)
    row.done = token in text.eos_ids or hits_stop_string(row.tokens, text)

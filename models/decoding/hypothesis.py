"""The text of a clip, while it is decoded and once it has ended."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.language.text import TextProcessor


def hits_stop_string(tokens: Sequence[int], text: TextProcessor) -> bool:
    """Whether the last token completes a stop string. Decodes only the end of the text, and only where one may end."""
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
    """`end` (an end-of-sequence id, or `GenerateOptions.stop_id`), `stop_string`, or `length`."""

    @classmethod
    def of(
        cls, tokens: list[int], logprobs: list[float], text: TextProcessor, *, stopped: bool = False
    ) -> "Generation":
        """The result for tokens that are complete; `stopped` where something else than they themselves ended them."""
        if stopped or (tokens and tokens[-1] in text.eos_ids):
            reason = "end"
        else:
            reason = "stop_string" if hits_stop_string(tokens, text) else "length"
        return cls(text.decode(tokens), tokens, logprobs, reason)

"""The part of a recording that an annotation means, in seconds, and where it lies in a file's samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from support.units import SAMPLE_RATE

END_TOLERANCE_S = 0.1
"""A part may end so much after its file, by rounding and by a codec's padding; then it ends with it."""
RESAMPLER_MARGIN_S = 0.1
"""Read before and after a part, or past a cap, so that the resampler's filter sees the sound there, not an end."""


class PartError(ValueError):
    """The file does not have the part."""


class Window(NamedTuple):
    """What to read of a file, and what to keep of it at 16 kHz."""

    first: int
    """The first sample to read, at the file's rate; resampling from there gives the whole file's samples."""
    frames: int
    skip: int
    """Samples at 16 kHz before the part."""
    keep: int | None
    """Samples at 16 kHz of the part; None: to the end."""


@dataclass(frozen=True)
class Part:
    """From `start_s` to `end_s` (None: the file's end) of a file, and of its channels one or the mean of all."""

    start_s: float = 0.0
    end_s: float | None = None
    channel: int | None = None
    """Counted from 0; None: all of them."""
    fields: str = field(default="", compare=False)
    """The annotation's fields that say so, for errors."""

    @property
    def is_whole(self) -> bool:
        """Whether it has all of the file's length."""
        return self.start_s == 0 and self.end_s is None

    def __str__(self) -> str:
        words = (
            [] if self.is_whole else [f"{self.start_s:.10g}-{'end' if self.end_s is None else f'{self.end_s:.10g}'} s"]
        )
        return ", ".join(words + ([] if self.channel is None else [f"channel {self.channel}"]))

    def length_s(self, file_s: float) -> float:
        """Its length in a file of `file_s` seconds; 0 where the file ends before it."""
        end_s = file_s if self.end_s is None else self.end_s
        return round(max(0.0, end_s - self.start_s), 9)  # 30.1 - 0.1 is not longer than 30

    def window(self, frames: int, rate_hz: int, most: int | None = None) -> Window:
        """Where it lies in a file of so many samples a channel; at most `most` samples of it at 16 kHz.

        Its samples are the whole file's at 16 kHz from `round(start_s * 16000)` on. Reading begins where a sample of
        the file and one at 16 kHz coincide, so that resampling gives the same ones.

        Raises:
            PartError: it begins or ends after the file does, or has no sample.
        """
        file_s = frames / rate_hz
        if self.start_s >= file_s or (self.end_s is not None and self.end_s > file_s + END_TOLERANCE_S):
            what = f"starts at {self.start_s:g}" if self.start_s >= file_s else f"ends at {self.end_s:g}"
            raise PartError(
                f"its part ({self.fields or self}) {what} s, but the file ends at {file_s:.6g} s; correct the "
                "annotation, or drop these fields if the file is the part already"
            )
        start = round(self.start_s * SAMPLE_RATE)
        to_end = self.end_s is None or self.end_s >= file_s
        end = math.ceil(file_s * SAMPLE_RATE) if to_end else round(self.end_s * SAMPLE_RATE)
        if most is not None and end - start > most:
            end, to_end = start + most, False
        if end <= start:
            raise PartError(f"its part ({self.fields or self}) has no sample at 16 kHz; correct or remove the entry")
        if rate_hz == SAMPLE_RATE:
            return Window(start, min(end, frames) - start, 0, None)
        common = math.gcd(rate_hz, SAMPLE_RATE)
        margin = math.ceil(RESAMPLER_MARGIN_S * rate_hz)
        blocks = max(0, start * rate_hz // SAMPLE_RATE - margin) // (rate_hz // common)
        first = blocks * (rate_hz // common)
        last = frames if to_end else min(frames, math.ceil(end * rate_hz / SAMPLE_RATE) + margin)
        return Window(first, last - first, start - blocks * (SAMPLE_RATE // common), None if to_end else end - start)

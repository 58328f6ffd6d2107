"""What a row of a table is: the system that a process loads, the clips that it is given, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.clip_sets import ClipSet
from data.annotations import Annotation


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a process measures."""

    name: str
    kind: str
    """A key of `SYSTEMS` in row_jobs.py."""
    sets: tuple[ClipSet, ...]
    timed: tuple[Annotation, ...] = ()
    """Clips for the times of tokens; none where a row's would be those of another row."""
    rounds: int = 3
    """Measurements of each of them."""
    decode_steps: int = 32
    """Tokens after the first that ours decodes for its times; others decode the text of the clip."""
    device: str = "cpu"
    batch: int | None = None
    """Clips at once; None: as the adapter's configuration says."""
    adapter: str | None = None
    """Folder of the adapter; for `untrained`, the one whose configuration is used."""
    options: tuple[str, ...] = ()
    """`section.key=value` over the adapter's configuration."""
    whisper: str | None = None
    """Folder or hub name; for `faster_whisper` and `ctranslate2`, the folder of the converted model."""
    features: str | None = None
    """For `ctranslate2`: the transformers folder with feature extractor and tokenizer of the same model."""
    num_beams: int = 1
    """Of the rows that are not ours, whose configuration says it."""
    compute_type: str = "float32"
    """Of CTranslate2."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """A system's texts for a set, by the `source` of their annotations; clips that cannot be read have empty ones."""

    texts: dict[str, str]
    problems: dict[str, str]
    audio_s: float


class Measured(Protocol):
    """A loaded system."""

    about: dict[str, Any]
    """What runs: kernels, types, settings."""

    def answer(self, clips: ClipSet) -> Answers: ...

    def token_times(self, clip: Annotation) -> tuple[float, float | None]:
        """Seconds from the waveform to the first token, and of each further token on average."""


class LeftOut(Exception):
    """A row that cannot be measured here; the message says why."""

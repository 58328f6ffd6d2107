"""What a row of a table measures, in a process of its own: a system's texts for sets of clips, times and memory.

    python -m benchmarks.rows RESULT.json < ROW

Every system is loaded and asked in the same way: all sets of clips, longest clips first, with the time that loading the
clips takes; then single clips for the time to the first token (from the waveform in memory) and the time of each
further token, after a warm-up; peak memory is that of the whole process, loading included.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.clip_sets import ClipSet
from benchmarks.suite import run_here
from data.annotations import Annotation

SYSTEMS = {
    "system": "benchmarks.own_rows:System",
    "swapped": "benchmarks.own_rows:Swapped",
    "untrained": "benchmarks.own_rows:System",
    "ctc": "benchmarks.own_rows:CtcPath",
    "whisper": "benchmarks.whisper_rows:WhisperAlone",
    "faster_whisper": "benchmarks.ctranslate2_rows:FasterWhisper",
    "ctranslate2": "benchmarks.ctranslate2_rows:PlainCTranslate2",
}
"""Kind -> where it is; imported by the process that measures it, whose memory holds nothing of the others."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a process measures."""

    name: str
    kind: str
    """A key of `SYSTEMS`."""
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


def run_row(row: Row) -> dict[str, Any]:
    """The figures of a row; `{"left_out": why}` where the system cannot be had."""
    import torch

    from efficiency.gauges import Memory, clock

    device = torch.device(row.device)
    torch.manual_seed(0)
    memory, now = Memory(device), clock(device)
    before = memory.now_gib()
    memory.reset()
    start = now()
    module, _, name = SYSTEMS[row.kind].partition(":")
    try:
        system: Measured = getattr(importlib.import_module(module), name)(row)
    except LeftOut as reason:
        return {"left_out": str(reason)}
    load_s = now() - start
    sets = {}
    for clips in row.sets:
        start, worked = now(), time.process_time()
        answers = system.answer(clips)
        sets[clips.name] = {
            "texts": answers.texts,
            "problems": answers.problems,
            "audio_s": answers.audio_s,
            "seconds": now() - start,
            "processor_s": time.process_time() - worked,  # of all threads; other programs hardly count
        }
    return {
        "sets": sets,
        "times": _times(system, row),
        "load_s": load_s,
        "before_load_gib": before,
        "peak_gib": memory.peak_gib(),
        "memory_kind": memory.kind,
        "threads": torch.get_num_threads(),
        "about": system.about,
    }


def _times(system: Measured, row: Row) -> dict[str, Any] | None:
    """Medians over the timed clips of each clip's median over the rounds."""
    clips = []
    for clip in row.timed:
        system.token_times(clip)  # a warm-up
        first, later = zip(*(system.token_times(clip) for _ in range(row.rounds)), strict=True)
        several = [each for each in later if each is not None]
        clips.append((statistics.median(first), statistics.median(several) if several else None))
    if not clips:
        return None
    tpot = [each for _, each in clips if each is not None]
    return {
        "ttft_s": statistics.median(first for first, _ in clips),
        "tpot_s": statistics.median(tpot) if tpot else None,
        "clips": len(clips),
        "rounds": row.rounds,
    }


def main(argv: Sequence[str]) -> int:
    return run_here(argv, run_row)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What a row of a table measures, in a process of its own: a system's texts for sets of clips, times and memory.

    python -m benchmarks.row_jobs RESULT.json < ROW

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
from typing import Any

from benchmarks.rows import LeftOut, Measured, Row
from benchmarks.suite import run_here
from support.command_line import UserError

SYSTEMS = {
    "system": "benchmarks.own_rows:System",
    "swapped": "benchmarks.own_rows:Swapped",
    "untrained": "benchmarks.own_rows:System",
    "ctc": "benchmarks.own_rows:CtcPath",
    "whisper": "benchmarks.whisper_rows:OwnDecoder",
    "faster_whisper": "benchmarks.ctranslate2_rows:FasterWhisper",
    "ctranslate2": "benchmarks.ctranslate2_rows:PlainCTranslate2",
}
"""Kind -> where it is; imported by the process that measures it, whose memory holds nothing of the others."""


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
    except (LeftOut, UserError) as reason:  # a package, a folder or a kernel that this machine does not have
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
        "timed_clips": len(clips),
        "rounds": row.rounds,
    }


def main(argv: Sequence[str]) -> int:
    return run_here(argv, run_row)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Trained systems with real weights, next to Whisper alone with its own decoder, on any annotation files.

    python -m tools.weights tiny
    python -m benchmarks.with_weights --adapter outputs/tiny/adapter --aac captions/annotation_test.json \\
        --asr speech/annotation_test.json:source=librispeech_test-clean other/annotation_test.json
    python -m benchmarks.with_weights … --limit 8           # a quick look
    python -m benchmarks.with_weights … --faster-whisper FOLDER

Rows for each adapter: the system as evaluate.py evaluates it, its CTC path without the language model, swapped audio,
an untrained connector (these two on --control-clips clips). For each Whisper that an adapter uses: its own decoder,
greedy and with 5 beams, through transformers; with --faster-whisper, a folder in CTranslate2's format with the same
weights, that decoder too. Every figure has its 95 % bootstrap interval; the ratio to Whisper greedy (captions: to
swapped audio) is paired on the same clips. Each row runs in a process of its own, whose peak memory it reports.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.suite import RESULTS
from support import command_line
from support.command_line import UserError, number
from support.tables import format_table

if TYPE_CHECKING:
    from benchmarks.clip_sets import ClipSet
    from benchmarks.row_run import RowRun, Runner
    from benchmarks.rows import Row

OWN = {
    "system": "",
    "ctc": ", CTC path without the language model",
    "swapped": ", swapped audio",
    "untrained": ", untrained connector",
}
"""Kinds of rows of an adapter -> how they are called, after its name."""
KINDS = (*OWN, "whisper", "faster_whisper")
BEAMS = 5
CONTROLS = ("swapped", "untrained")
COMPARED_WITH = {"asr": "Whisper greedy", "aac": "swapped audio"}
"""Family -> the row that figures are divided by."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from benchmarks.row_run import add_arguments

    result = argparse.ArgumentParser(
        prog="python -m benchmarks.with_weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "--adapter", nargs="+", action="extend", default=[], metavar="FOLDER", required=True, help="trained adapters"
    )
    add_arguments(result, RESULTS / "with_weights.json")
    result.add_argument("--faster-whisper", metavar="FOLDER", help="the same Whisper in CTranslate2's format")
    result.add_argument(
        "--control-clips",
        type=number(int, 0),
        default=60,
        metavar="N",
        help="of each file for swapped audio and untrained connectors (default: 60; 0: all)",
    )
    result.add_argument("--rows", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of rows (default: all)")
    return result


def main(argv: Sequence[str] | None = None, *, run_row: Runner | None = None) -> int:
    """Command line; the exit status. `run_row` measures a row (default: a process of its own)."""
    return command_line.run(partial(work, run_row=run_row), parser(), argv)


def work(arguments: argparse.Namespace, run_row: Runner | None = None) -> None:
    """Measure every row and write the tables."""
    from benchmarks.clip_sets import read_sets
    from benchmarks.row_run import RowRun, command, require_adapter

    for folder in arguments.adapter:
        require_adapter(folder)
    whole = read_sets(arguments.asr, arguments.aac)
    rows = planned(arguments, whole)
    about = {"benchmark": "with_weights", "command": command("benchmarks.with_weights")}
    sets = [clips.sample(arguments.limit) for clips in whole]
    run = RowRun(arguments.out, about, sets, base_of, device=arguments.device, keep=arguments.keep, run=run_row)
    run.measure(rows, tables)


def planned(arguments: argparse.Namespace, whole: Sequence[ClipSet]) -> list[Row]:
    """The rows: Whisper first, which the others are divided by."""
    whispers = {folder: whisper_of(folder, arguments.options) for folder in arguments.adapter}
    rows = []
    for whisper in dict.fromkeys(filter(None, whispers.values())):
        rows += _whisper_rows(arguments, whisper, whole)
    for folder, whisper in whispers.items():
        for kind in (kind for kind in OWN if kind in arguments.rows):
            rows += _own_row(arguments, kind, folder, whisper, whole)
    if not rows:
        raise UserError(f"--rows {' '.join(arguments.rows)}: none of them has a clip to be measured on")
    return rows


def whisper_of(folder: str, options: Sequence[str]) -> str | None:
    """The Whisper that an adapter uses; None without one."""
    from configs.recorded import CONFIG_FILE
    from configs.schema import load_config

    return load_config(Path(folder) / CONFIG_FILE, ["model.ckpt=", *options]).model.whisper_path or None


def _common(arguments: argparse.Namespace, kind: str, sets: Sequence[ClipSet]) -> dict[str, Any]:
    """Fields that rows share, with samples of the sets: smaller ones for controls, whose times are not taken."""
    most = [arguments.limit] + ([arguments.control_clips or None] if kind in CONTROLS else [])
    counts = [count for count in most if count is not None]
    timed = sets[0].sample(arguments.timed_clips).clips if sets and kind not in CONTROLS else ()
    return {
        "kind": kind,
        "sets": tuple(clips.sample(min(counts, default=None)) for clips in sets),
        "timed": timed[: arguments.timed_clips],
        "rounds": arguments.rounds,
        "device": arguments.device,
        "batch": arguments.batch,
    }


def _own_row(
    arguments: argparse.Namespace, kind: str, folder: str, whisper: str | None, whole: Sequence[ClipSet]
) -> list[Row]:
    from benchmarks.rows import Row

    sets = [clips for clips in whole if clips.family == "asr" or kind != "ctc"]
    if not sets:
        return []
    name = Path(folder).name + OWN[kind]
    options = tuple(arguments.options)
    adapter = str(Path(folder).resolve())
    return [Row(name=name, adapter=adapter, options=options, whisper=whisper, **_common(arguments, kind, sets))]


def _whisper_rows(arguments: argparse.Namespace, whisper: str, whole: Sequence[ClipSet]) -> list[Row]:
    """Whisper's own decoder through transformers and through CTranslate2, on speech."""
    from benchmarks.rows import Row

    sets = [clips for clips in whole if clips.family == "asr"]
    if not sets:
        return []
    rows = []
    if "whisper" in arguments.rows:
        common = _common(arguments, "whisper", sets)
        rows += [
            Row(name=greedy(whisper), whisper=whisper, **common),
            Row(name=f"{_label(whisper)} alone, {BEAMS} beams", whisper=whisper, num_beams=BEAMS, **common),
        ]
    if "faster_whisper" in arguments.rows and arguments.faster_whisper:
        installed = importlib.util.find_spec("faster_whisper") is not None
        kind, label = ("faster_whisper", "faster-whisper") if installed else ("ctranslate2", "CTranslate2 directly")
        folder = str(Path(arguments.faster_whisper).resolve())
        common = _common(arguments, kind, sets) | {"whisper": folder, "features": whisper}
        for compute_type, beams in (("float32", 1), ("float32", BEAMS), ("int8", BEAMS)):
            called = f"{label}, {'greedy' if beams == 1 else f'{beams} beams'}, {compute_type}"
            rows.append(Row(name=called, num_beams=beams, compute_type=compute_type, **common))
    return rows


def _label(whisper: str) -> str:
    return Path(whisper.partition("@")[0]).name


def greedy(whisper: str) -> str:
    return f"{_label(whisper)} alone, greedy"


def base_of(row: Row, family: str) -> str | None:
    """Speech is compared with Whisper greedy, captions with the same system's on swapped audio."""
    if family == "asr":
        return greedy(row.features or row.whisper) if row.whisper else None
    return Path(row.adapter).name + OWN["swapped"] if row.adapter else None


def tables(run: RowRun) -> str:
    """What is measured so far, as Markdown."""
    from benchmarks.row_run import as_markdown

    return as_markdown(run.report, _scores, "Time and memory", _costs)


def _scores(rows: Sequence[dict[str, Any]], name: str, clips: dict[str, Any]) -> str:
    from benchmarks.row_run import heading, shown_figure, shown_ratio

    cells, metric = [], ""
    for row in (row for row in rows if name in row["sets"]):
        figures = row["sets"][name]
        metric = heading(figures)
        fewer = "" if figures["clips"] == clips["clips"] else f" ({figures['clips']} clips)"
        failed = f" ({figures['failed']} clips not readable)" if figures["failed"] else ""
        cells.append([row["name"] + fewer + failed, shown_figure(figures), shown_ratio(figures)])
    return format_table(["", metric, f"times {COMPARED_WITH[clips['family']]}'s"], cells)


def _costs(rows: Sequence[dict[str, Any]]) -> str:
    from benchmarks.row_run import shown_number

    header = ["", "s per s of audio", "at once", "TTFT, s", "TPOT, ms", "peak, GiB", "before loading", "loading, s"]
    cells = [
        [
            row["name"],
            shown_number(row["seconds_per_audio_second"], "{:.3f}"),
            row["clips_at_once"],
            shown_number(row["ttft_s"], "{:.3f}"),
            shown_number(None if row["tpot_s"] is None else 1000 * row["tpot_s"], "{:.1f}"),
            f"{row['peak_gib']:.2f}",
            f"{row['before_load_gib']:.2f}",
            f"{row['load_s']:.1f}",
        ]
        for row in rows
    ]
    return format_table(header, cells)


if __name__ == "__main__":
    sys.exit(main())

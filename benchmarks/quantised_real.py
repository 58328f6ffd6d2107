"""What quantisation costs a system with real weights: WER, texts that change, bytes and times, next to float32.

    python -m benchmarks.quantised_real --adapter outputs/tiny/adapter \\
        --asr speech/annotation_test.json:source=librispeech_test-clean --gptq outputs/tiny-gptq

One adapter, the same clips, greedy or beams as its configuration says; each row in a process of its own
(benchmarks/row_jobs.py). The folder of --gptq is made, and calibrated, by

    python -m tools.quantize --cfg-path outputs/tiny/adapter/config.yaml --out outputs/tiny-gptq --group-size 64 \\
        --options model.ckpt=outputs/tiny/adapter datasets.train_ann_path=speech/annotation_train.json

Flips are measured on whole texts: the share of clips whose text is another than in float32, and the share of words
that differ from float32's text. A back-end that does not run on this device is left out, with the reason.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.suite import RESULTS
from support import command_line
from support.command_line import UserError
from support.tables import format_table
from support.units import MIB

if TYPE_CHECKING:
    from benchmarks.clip_sets import ClipSet
    from benchmarks.row_run import RowRun, Runner
    from benchmarks.rows import Row

EXACT = "float32"
PLAIN = ("model.quantization=none", "model.encoder_quantization=none", "model.dtype=float32")
NF4, INT8_ENCODERS = "model.quantization=nf4", "model.encoder_quantization=int8"
GPTQ = "model.quantization=gptq"


@dataclass(frozen=True)
class Choice:
    """A row: how weights are kept."""

    options: tuple[str, ...] = ()
    """Over `PLAIN`; slow kernels are allowed."""
    gptq: bool = False
    """With the language model in the folder that --gptq names."""


CHOICES = {
    EXACT: Choice(),
    "bfloat16": Choice(("model.dtype=bfloat16",)),
    "nf4": Choice((NF4,)),
    "int8": Choice(("model.quantization=int8",)),
    "gptq, packed": Choice((GPTQ, "model.gptq_kernel=packed"), gptq=True),
    "gptq, dequantize": Choice((GPTQ, "model.gptq_kernel=dequantize"), gptq=True),
    "torchao_int8": Choice(("model.quantization=torchao_int8",)),
    "torchao_int4": Choice(("model.quantization=torchao_int4", "model.dtype=bfloat16")),
    "encoders int8": Choice((INT8_ENCODERS,)),
    "nf4, encoders int8": Choice((NF4, INT8_ENCODERS)),
    "gptq, encoders int8": Choice((GPTQ, INT8_ENCODERS), gptq=True),
}
"""Name of a row -> what is quantised in it."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from benchmarks.row_run import add_arguments

    result = argparse.ArgumentParser(
        prog="python -m benchmarks.quantised_real",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--adapter", metavar="FOLDER", required=True, help="a trained adapter")
    add_arguments(result, RESULTS / "quantised_real.json")
    result.add_argument("--gptq", metavar="FOLDER", help="its language model as tools.quantize wrote it")
    result.add_argument("--rows", nargs="+", choices=CHOICES, default=list(CHOICES), help="default: all")
    return result


def main(argv: Sequence[str] | None = None, *, run_row: Runner | None = None) -> int:
    """Command line; the exit status. `run_row` measures a row (default: a process of its own)."""
    return command_line.run(partial(work, run_row=run_row), parser(), argv)


def work(arguments: argparse.Namespace, run_row: Runner | None = None) -> None:
    """Measure every row and write the table."""
    from benchmarks.clip_sets import read_sets
    from benchmarks.row_run import RowRun, command, require_adapter

    require_adapter(arguments.adapter)
    if arguments.gptq and not (Path(arguments.gptq) / "config.json").is_file():
        raise UserError(f"--gptq {arguments.gptq}: no config.json there; expected a folder that tools.quantize wrote")
    sets = [clips.sample(arguments.limit) for clips in read_sets(arguments.asr, arguments.aac)]
    about = {"benchmark": "quantised_real", "command": command("benchmarks.quantised_real")}
    run = RowRun(
        arguments.out,
        about,
        sets,
        lambda row, family: EXACT,
        device=arguments.device,
        flips=True,
        keep=arguments.keep,
        run=run_row,
    )
    rows = planned(arguments, sets)
    for name in (name for name in CHOICES if name in arguments.rows and CHOICES[name].gptq and not arguments.gptq):
        run.left_out(name, "gptq", "--gptq names no folder; tools.quantize makes one (see --help)")
    run.measure(rows, table)


def planned(arguments: argparse.Namespace, sets: Sequence[ClipSet]) -> list[Row]:
    """The rows: float32 first, which the others are compared with."""
    from benchmarks.rows import Row

    folder = str(Path(arguments.gptq).resolve()) if arguments.gptq else None
    rows = []
    for name, choice in CHOICES.items():
        if (name != EXACT and name not in arguments.rows) or (choice.gptq and folder is None):
            continue
        options = [*arguments.options, *PLAIN, *choice.options, "model.allow_slow_kernels=true"]
        rows.append(
            Row(
                name=name,
                kind="system",
                sets=tuple(sets),
                timed=sets[0].clips[: arguments.timed_clips],
                rounds=arguments.rounds,
                device=arguments.device,
                batch=arguments.batch,
                adapter=str(Path(arguments.adapter).resolve()),
                options=(*options, *([f"model.llama_path={folder}"] if choice.gptq else [])),
            )
        )
    return rows


def table(run: RowRun) -> str:
    """What is measured so far, as Markdown."""
    from benchmarks.row_run import as_markdown

    return as_markdown(run.report, _scores, "Bytes and times", _costs)


def _scores(rows: Sequence[dict[str, Any]], name: str, clips: dict[str, Any]) -> str:
    from benchmarks.row_run import heading, shown_figure, shown_interval

    cells = []
    for row in rows:
        figures = row["sets"][name]
        flips = figures.get("flips", {})
        shares = [shown_interval(flips.get(what), 100, "{:.1f}") for what in ("texts", "words")]
        cells.append([row["name"], shown_figure(figures), shown_interval(figures.get("ratio")), *shares])
    metric = heading(rows[0]["sets"][name]) if rows else ""
    return format_table(["", metric, "times float32's", "texts that change, %", "words that change, %"], cells)


def _costs(rows: Sequence[dict[str, Any]]) -> str:
    from benchmarks.row_run import shown_number

    exact = next((row for row in rows if row["name"] == EXACT), None)
    cells = []
    for row in rows:
        sizes = row["bytes"]
        encoders = sum(size for part, size in sizes.items() if part not in ("connector", "llm", "lora", "total"))
        cell = [row["name"], *(f"{size / MIB:.1f}" for size in (sizes["llm"], encoders, sizes["total"]))]
        for figure in ("ttft_s", "tpot_s"):
            before = exact[figure] if exact else None
            times = row[figure] / before if row[figure] and before else None
            milliseconds = None if row[figure] is None else 1000 * row[figure]
            cell += [shown_number(milliseconds, "{:.1f}"), shown_number(times, "{:.2f}")]
        cells.append([*cell, f"{row['peak_gib']:.2f}", row["kernel"]])
    times = ["TTFT, ms", "times float32's", "TPOT, ms", "times float32's"]
    sizes = ["language model, MiB", "encoders, MiB", "all, MiB"]
    return format_table(["", *sizes, *times, "peak, GiB", "kernel"], cells)


if __name__ == "__main__":
    sys.exit(main())

"""What the alignment stage buys: WER on unseen speakers against seconds of training, with it and without.

    python -m tools.weights tiny
    python -m data.prepare tiny --from RECORDINGS --out outputs/tiny/corpus
    python -m benchmarks.alignment --minutes 15 [--out FILE]

Three ways to begin with a fresh connector, on the same clips, in the same number of processes, at a constant learning
rate after warm-up:

- `align`: the alignment stage (configs/tiny/align.yaml); WER of the CTC path.
- `stage 1 with ctc`: connector and LoRA through the language model, with the alignment loss next to the cross-entropy;
  WER of the language model's text.
- `stage 1 alone`: the same with the cross-entropy alone, as the family trains.

Each gets the same minutes of training; validation, on the same dev clips, is not counted. Claim: alignment reaches any
WER that stage 1 alone reaches in at most a third of its time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.suite import RESULTS, origin, write_report
from support import command_line
from support.command_line import UserError

CLAIMED_SHARE = 1 / 3
RESULT = RESULTS / "alignment.json"
VALIDATE_EVERY = 67  # steps: half an epoch of the tiny corpus
POLL_S = 2.0
STOP_S = 300.0
COMMON = (
    "datasets.train_ann_path=outputs/tiny/corpus/align.json",
    "datasets.valid_ann_path=outputs/tiny/corpus/dev_asr_librispeech.json",
    "datasets.task_weights=null",
    "model.mask_frames=0.1",
    "run.batch_size_train=16",
    "run.epoch_based=false",
    f"run.iters_per_epoch={VALIDATE_EVERY}",
    "run.valid_freq=1",
    "run.valid_scoring=true",
    "run.valid_max_samples=32",
    "run.auto_second=false",
    "run.optims.max_epoch=1000",
    "run.optims.warmup_steps=100",
    "run.optims.init_lr=1e-3",
    "run.optims.min_lr=1e-3",
    "generate.max_new_tokens=60",
)


@dataclass(frozen=True)
class Variant:
    """A way to begin: its recipe, and what is different from it."""

    config: str
    options: tuple[str, ...] = ()


VARIANTS = {
    "align": Variant("configs/tiny/align.yaml"),
    "stage 1 with ctc": Variant("configs/tiny/stage1.yaml", ("model.ckpt=", "model.ctc_weight=0.5")),
    "stage 1 alone": Variant(
        "configs/tiny/stage1.yaml", ("model.ckpt=", "model.ctc_weight=0", "model.ctc_merge_pause_s=0")
    ),
}


def curve_of(log: Path) -> list[dict[str, float]]:
    """Steps, seconds of training and WER at each validation of a run's log.jsonl."""
    return [
        {"step": entry["step"], "seconds": round(seconds, 1), "wer": entry["valid/asr.wer"]}
        for entry, seconds in timed_lines(log)
        if entry.get("valid/asr.wer") is not None
    ]


def training_seconds(log: Path) -> float:
    """Seconds of training so far, validation left out."""
    return max((seconds for _, seconds in timed_lines(log)), default=0.0)


def timed_lines(log: Path) -> Iterator[tuple[dict[str, Any], float]]:
    """The lines of a run's log.jsonl, each with the seconds of training up to it; none where there is no log yet."""
    seconds, samples = 0.0, 0
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        entry = json.loads(line)
        if "samples_per_s" in entry:
            seconds += (entry["samples"] - samples) / max(entry["samples_per_s"], 1e-9)
            samples = entry["samples"]
        yield entry, seconds


def train(name: str, variant: Variant, folder: Path, minutes: float, processes: int) -> list[dict[str, float]]:
    """Train a variant for so many minutes, and its curve; a folder that has its log already is only read."""
    output = folder / name.replace(" ", "_")
    log = output / "log.jsonl"
    if training_seconds(log) >= minutes * 60:
        return curve_of(log)
    command = [
        sys.executable, "-m", "tools.launch", "--standalone", "--nproc-per-node", str(processes), "train.py",
        "--cfg-path", variant.config, "--resume", "--options", *COMMON, *variant.options, f"run.output_dir={output}",
    ]  # fmt: skip
    print(f"{name}: {minutes:g} minutes in {output}", flush=True)
    output.mkdir(parents=True, exist_ok=True)
    with (output / "train.out").open("w", encoding="utf-8") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"})
        while process.poll() is None and training_seconds(log) < minutes * 60:
            time.sleep(POLL_S)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_S)
    if not log.is_file():
        raise UserError(f"{name}: training failed; its messages are in {output / 'train.out'}")
    return curve_of(log)


def speed_up(fast: Sequence[dict[str, float]], slow: Sequence[dict[str, float]]) -> dict[str, float | None]:
    """How soon `fast` has the best WER of `slow`: the WER, both times, and their ratio (None where never)."""
    best = min(slow, key=lambda point: point["wer"])
    reached = next((point for point in fast if point["wer"] <= best["wer"]), None)
    return {
        "wer": best["wer"],
        "slow_seconds": best["seconds"],
        "fast_seconds": None if reached is None else reached["seconds"],
        "share": None if reached is None else reached["seconds"] / best["seconds"],
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.alignment", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--minutes", type=float, default=15.0, help="of training for each (default: %(default)s)")
    result.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    result.add_argument("--processes", type=int, default=2, help="that train together (default: %(default)s)")
    result.add_argument("--folder", type=Path, default=Path("outputs/benchmarks/alignment"), help="for the runs")
    result.add_argument("--out", type=Path, default=RESULT, help="JSON to write (default: %(default)s)")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status."""
    return command_line.run(work, parser(), argv)


def work(arguments: argparse.Namespace) -> int:
    """Train the variants one after another, write their curves, and say whether the claim holds."""
    curves = {
        name: train(name, VARIANTS[name], arguments.folder, arguments.minutes, arguments.processes)
        for name in arguments.variants
    }
    report: dict[str, object] = {"minutes": arguments.minutes, "curves": curves, "claimed_share": CLAIMED_SHARE}
    slow = "stage 1 alone"
    if {"align", slow} <= curves.keys() and all(curves[name] for name in ("align", slow)):
        report["speed_up"] = speed_up(curves["align"], curves[slow])
    write_report(arguments.out, {"origin": origin("cpu"), **report})
    for name, points in curves.items():
        shown = "  ".join(f"{point['seconds'] / 60:.1f} min {100 * point['wer']:.0f} %" for point in points)
        print(f"{name}: {shown or 'no validation yet'}")
    share = (report.get("speed_up") or {}).get("share")
    return 0 if share is None or share <= CLAIMED_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())

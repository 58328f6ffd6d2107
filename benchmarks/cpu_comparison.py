"""Ours against the reference model on the CPU, at the shapes of turbo, BEATs and Qwen2.5-0.5B, with random weights.

    python -m benchmarks.against_reference --out FILE [--parts latency bf16 …] [--small]

Parts, each of which can be left out: `latency` (the reference and ours in float32), `full_window` (ours on 30 s, which
the reference always encodes), `bf16`, `back_ends` (ours with every quantisation that is meant for this device), `light`
(the language model in 4 bits, the encoders in 8), `evaluation` (64 clips of 2 to 20 s, 4 beams) and `training` (an
optimiser step). Every run is a process of its own and loads the same files; its peak memory includes loading. With
`--keep`, runs that FILE already has are not repeated.

Ratios say how many times less the best of ours takes than the reference, in float32 unless the name says otherwise:
`ttft_ratio_fp32`, `ttft_ratio_bf16`, `ttft_ratio_full_window`, `tpot_ratio_fp32`, `tpot_ratio_best`,
`peak_memory_ratio`, `evaluation_ratio`, `training_ratio`. The reference is in float32 throughout, as the public code is
on a CPU. One that could not be computed is null, with the reason. On two cores the whole takes about two hours, most of
it the reference's evaluation; `--clips` makes it shorter.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import suite
from benchmarks.suite import Job, Suite
from configs.sections import ModelConfig
from support import command_line
from support.command_line import UserError

PARTS = ("latency", "full_window", "bf16", "back_ends", "light", "evaluation", "training")
SIZE: dict[str, Any] = {
    "clip_s": 10.0,
    "decode_steps": 32,
    "iterations": 3,
    "calibration_s": 0.3,
    "clips": 64,
    "shortest_s": 2.0,
    "longest_s": 20.0,
    "evaluated_tokens": 20,
    "num_beams": 4,
    "evaluation_batch": 8,
    "training_batch": 2,
}
NATIVE_BF16 = ("avx512_bf16", "amx_bf16")  # of x86, in /proc/cpuinfo


def has_native_bf16() -> bool | None:
    """Whether the processor multiplies bfloat16 itself; None where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return None
    return any(flag in cpuinfo.read_text(encoding="utf-8", errors="replace") for flag in NATIVE_BF16)


def back_ends() -> list[str]:
    """Quantisations that are meant for serving on a CPU and whose packages are installed."""
    rows = suite.back_ends("cpu").items()
    return [name for name, row in rows if "cpu" not in row.slower_on and suite.is_installed(row)]


def write_clips(folder: Path, size: dict[str, Any]) -> Path:
    """The evaluation's wav files, of evenly spread lengths in random order; the path of their annotations."""
    import numpy as np
    import soundfile

    from efficiency.timing import synthetic_clip
    from support.units import SAMPLE_RATE

    folder.mkdir(parents=True, exist_ok=True)
    lengths = np.linspace(size["shortest_s"], size["longest_s"], size["clips"])
    np.random.default_rng(0).shuffle(lengths)
    entries = []
    for number, seconds in enumerate(lengths):
        soundfile.write(folder / f"{number}.wav", synthetic_clip(float(seconds), seed=number).numpy(), SAMPLE_RATE)
        entries.append({"path": f"{number}.wav", "text": "w10 w11", "task": "asr", "testset_id": str(number)})
    path = folder / "clips.json"
    path.write_text(json.dumps({"annotation": entries}), encoding="utf-8")
    return path


def jobs_of(
    part: str, model: ModelConfig, size: dict[str, Any], *, annotations: Path | None, gptq: str | None
) -> list[Job]:
    """The runs of one part; `model` names the files, `gptq` the language model's folder in 4 bits."""
    latency = {name: size[name] for name in ("clip_s", "decode_steps", "iterations", "calibration_s")}
    settings: dict[str, Any] = {
        "evaluation": {
            "task": "evaluation",
            "annotations": str(annotations),
            "batch": size["evaluation_batch"],
            "num_beams": size["num_beams"],
            "decode_steps": size["evaluated_tokens"],
        },
        "training": {
            "task": "training",
            "clip_s": size["clip_s"],
            "batch": size["training_batch"],
            "iterations": size["iterations"],
        },
    }.get(part, {"task": "latency", **latency})
    half = "bfloat16" if has_native_bf16() else "float32"
    in_4_bits = {"quantization": "gptq", "llama_path": gptq, "dtype": half}
    runs: dict[str, dict[str, Any]] = {
        "latency": {"fp32": {}},
        "full_window": {part: {"window": "full"}},
        "bf16": {part: {"dtype": "bfloat16"}},
        "light": {part: in_4_bits | {"encoder_quantization": "int8"}},
        "back_ends": {
            name: in_4_bits if name == "gptq" else {"quantization": name, "dtype": half} for name in back_ends()
        },
    }.get(part, {part: {}})
    both = part in ("latency", "evaluation", "training")
    return [
        Job(config=dataclasses.replace(model, **changes), name=f"{side}_{name}", side=side, **settings)
        for name, changes in runs.items()
        for side in (("reference", "ours") if both else ("ours",))
    ]


def ratios_of(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The ratios, each with what it was computed from, or the reason why it is null."""
    latencies = {name: run for name, run in runs.items() if name.startswith("ours_") and run.get("tpot_s")}
    fastest = min(latencies, key=lambda name: latencies[name]["tpot_s"], default="ours_fp32")
    lightest = min(latencies, key=lambda name: latencies[name]["peak_with_loading_bytes"], default="ours_fp32")
    table = {
        "ttft_ratio_fp32": ("reference_fp32", "ours_fp32", "ttft_s"),
        "ttft_ratio_bf16": ("reference_fp32", "ours_bf16", "ttft_s"),
        "ttft_ratio_full_window": ("reference_fp32", "ours_full_window", "ttft_s"),
        "tpot_ratio_fp32": ("reference_fp32", "ours_fp32", "tpot_s"),
        "tpot_ratio_best": ("reference_fp32", fastest, "tpot_s"),
        "peak_memory_ratio": ("reference_fp32", lightest, "peak_with_loading_bytes"),
        "evaluation_ratio": ("reference_evaluation", "ours_evaluation", "seconds"),
        "training_ratio": ("reference_training", "ours_training", "seconds"),
    }
    found: dict[str, Any] = {}
    behind: dict[str, Any] = {}
    for name, (slow, fast, figure) in table.items():
        found[name] = suite.ratio(runs.get(slow), runs.get(fast), figure)
        if found[name] is None:
            missing = [run for run in (slow, fast) if not runs.get(run, {}).get(figure)]
            reasons = [f"{run}: {runs.get(run, {}).get('error', 'not run')}" for run in missing]
            behind[name] = {"reason": "; ".join(reasons)}
        else:
            behind[name] = {"figure": figure, slow: runs[slow][figure], fast: runs[fast][figure]}
    return found | {"behind": behind}


def compare(comparison: Suite, parts: Sequence[str], weights: Path, *, keep: bool = False) -> dict[str, Any]:
    """Run the parts, write the report after each run, and return it."""
    from benchmarks.weights import write_weights

    small, size, runs = comparison.small, comparison.size, {}
    if keep and comparison.out.exists():
        before = json.loads(comparison.out.read_text(encoding="utf-8"))["runs"]
        runs = {name: figures for name, figures in before.items() if "error" not in figures}
    comparison.say(f"writing random weights to {weights}")
    # No fast kernel is made for layers as small as these.
    model = dataclasses.replace(write_weights(suite.MODEL, weights, small=small), allow_slow_kernels=small)
    annotations = write_clips(weights / "clips", size) if "evaluation" in parts else None
    gptq = None
    if {"back_ends", "light"} & {*parts}:
        in_4_bits = dataclasses.replace(suite.MODEL, quantization="gptq")
        gptq = write_weights(in_4_bits, weights, small=small).llama_path
    for job in (job for part in parts for job in jobs_of(part, model, size, annotations=annotations, gptq=gptq)):
        if job.name not in runs:
            runs[job.name] = comparison.run(job)
        comparison.report |= ratios_of(runs) | {"runs": runs}
        comparison.write()
    return comparison.report


def work(arguments: argparse.Namespace, run_job: suite.Runner) -> None:
    about = {"shapes": suite.MODEL_NAME, "bf16_native": has_native_bf16()}
    comparison = Suite(Path(arguments.out), about, SIZE, small=arguments.small, run_job=run_job)
    for option, name in (("clips", "clips"), ("batch", "evaluation_batch")):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise UserError(f"--{option} is {value}; expected at least 1")
        comparison.size[name] = value or comparison.size[name]
    with suite.weights_folder(arguments.weights) as weights:
        report = compare(comparison, arguments.parts, weights, keep=arguments.keep)
    for name in report["behind"]:
        print(f"{name:24} {'–' if report[name] is None else f'{report[name]:.2f}'}")
    print(f"written to {arguments.out}")


def main(argv: Sequence[str] | None = None, *, run: suite.Runner = suite.run_apart) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.against_reference", description="Compare ours with the reference model on the CPU."
    )
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to run (default: all)")
    parser.add_argument("--clips", type=int, help="clips of the evaluation (default: 64)")
    parser.add_argument("--batch", type=int, help="clips at once in the evaluation, on both sides (default: 8)")
    parser.add_argument("--weights", help="folder for the random weights, kept (default: a temporary one; 4 GB)")
    parser.add_argument("--keep", action="store_true", help="do not repeat the runs that --out already has")
    parser.add_argument("--small", action="store_true", help="small shapes: seconds, and no claim")
    return command_line.run(partial(work, run_job=run), parser, argv)


if __name__ == "__main__":
    sys.exit(main())

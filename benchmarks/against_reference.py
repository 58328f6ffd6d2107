"""Ours against the reference way on the CPU, at the shapes of turbo, BEATs and Qwen2.5-0.5B, with random weights.

    python -m benchmarks.against_reference --out FILE [--parts latency bf16 …] [--small]

Parts, each of which can be left out: `latency` (the reference and ours in float32), `full_window` (ours on 30 s, as the
reference hears them), `bf16`, `back_ends` (ours with every quantisation that is meant for this device), `light` (the
language model in 4 bits, the encoders in 8), `evaluation` (64 clips of 2 to 20 s, 4 beams) and `training` (an optimiser
step). Every run is a process of its own and loads the same files; its peak memory includes loading. With `--keep` the
runs that FILE holds already are not repeated.

Ratios say how many times less the best of ours takes than the reference, in float32 unless the name says otherwise:
`ttft_ratio_fp32`, `ttft_ratio_bf16`, `ttft_ratio_full_window`, `tpot_ratio_fp32`, `tpot_ratio_best`,
`peak_memory_ratio`, `evaluation_ratio`, `training_ratio`. The reference is in float32 throughout, as the public code is
on a CPU. One that could not be computed is null, with the reason. On two cores the whole takes about two hours, most of
it the reference's evaluation; `--clips` makes it shorter.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gptq_weights import write_in_4_bits
from benchmarks.random_weights import write_weights
from benchmarks.sides import Job, ratio, run_apart
from configs.sections import ModelConfig
from efficiency.timing import synthetic_clip
from models.quantization.backends import BACKENDS, Backend
from support import provenance
from support.command_line import require_writable
from support.units import SAMPLE_RATE

MODEL = ModelConfig(
    llama_path="Qwen/Qwen2.5-0.5B-Instruct",
    whisper_path="openai/whisper-large-v3-turbo",
    beats_path="BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt",
    end_sym="<|im_end|>",
    bos_token="<|im_start|>",
    dtype="float32",
)
PARTS = ("latency", "full_window", "bf16", "back_ends", "light", "evaluation", "training")
CLIPS = 64
SHORTEST_S, LONGEST_S = 2.0, 20.0
NATIVE_BF16 = ("avx512_bf16", "amx_bf16")  # of x86, in /proc/cpuinfo
Runner = Callable[[Job], dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How much each part does."""

    clip_s: float = 10.0
    decode_steps: int = 32
    iterations: int = 3
    shortest_s: float = SHORTEST_S
    longest_s: float = LONGEST_S
    evaluated_tokens: int = 20
    num_beams: int = 4
    evaluation_batch: int = 8
    training_batch: int = 2
    calibration_s: float = 0.3


SMALL = Size(
    clip_s=1.0,
    decode_steps=3,
    iterations=1,
    shortest_s=0.5,
    longest_s=1.0,
    evaluated_tokens=2,
    num_beams=2,
    evaluation_batch=2,
    training_batch=1,
    calibration_s=0.01,
)


def has_native_bf16() -> bool | None:
    """Whether the processor multiplies bfloat16 itself; None where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return None
    return any(flag in cpuinfo.read_text(encoding="utf-8", errors="replace") for flag in NATIVE_BF16)


def back_ends(device: str = "cpu") -> list[str]:
    """Quantisations of the table that are meant for serving on `device` and whose packages are installed."""
    return [
        name
        for name, row in BACKENDS.items()
        if name != "none" and device in row.devices and device not in row.slower_on and is_installed(row)
    ]


def is_installed(row: Backend) -> bool:
    return row.package is None or importlib.util.find_spec(row.package) is not None


def write_clips(folder: Path, count: int, size: Size, seed: int = 0) -> Path:
    """`count` wav files of lengths spread between the shortest and the longest, in random order; the annotations."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    lengths = np.linspace(size.shortest_s, size.longest_s, count)
    np.random.default_rng(seed).shuffle(lengths)
    entries = []
    for number, seconds in enumerate(lengths):
        soundfile.write(folder / f"{number}.wav", synthetic_clip(float(seconds), seed=number).numpy(), SAMPLE_RATE)
        entries.append({"path": f"{number}.wav", "text": "w10 w11", "task": "asr", "testset_id": str(number)})
    path = folder / "clips.json"
    path.write_text(json.dumps({"annotation": entries}), encoding="utf-8")
    return path


def jobs_of(part: str, model: ModelConfig, size: Size, *, annotations: Path | None, gptq: Path | None) -> list[Job]:
    """The runs of one part; `model` names the files, `gptq` the language model's folder in 4 bits."""
    latency = {
        "task": "latency",
        "clip_s": size.clip_s,
        "decode_steps": size.decode_steps,
        "iterations": size.iterations,
        "calibration_s": size.calibration_s,
    }
    evaluation = {
        "task": "evaluation",
        "annotations": str(annotations),
        "batch": size.evaluation_batch,
        "num_beams": size.num_beams,
        "decode_steps": size.evaluated_tokens,
    }
    training = {"task": "training", "clip_s": size.clip_s, "batch": size.training_batch, "iterations": size.iterations}

    def ours(name: str, settings: dict[str, Any], **changes: Any) -> Job:
        return Job.of(dataclasses.replace(model, **changes), name=f"ours_{name}", side="ours", **settings)

    def reference(name: str, settings: dict[str, Any]) -> Job:
        return Job.of(model, name=f"reference_{name}", side="reference", **settings)

    half = "bfloat16" if has_native_bf16() else "float32"
    if part == "latency":
        return [reference("fp32", latency), ours("fp32", latency)]
    if part == "full_window":
        return [ours("full_window", latency, window="full")]
    if part == "bf16":
        return [ours("bf16", latency, dtype="bfloat16")]
    if part == "light":
        return [
            ours("light", latency, dtype=half, encoder_quantization="int8", quantization="gptq", llama_path=str(gptq))
        ]
    if part == "back_ends":
        paths = {"gptq": {"llama_path": str(gptq)}}
        return [ours(name, latency, quantization=name, dtype=half, **paths.get(name, {})) for name in back_ends()]
    if part == "evaluation":
        return [reference("evaluation", evaluation), ours("evaluation", evaluation)]
    assert part == "training", part
    return [reference("training", training), ours("training", training)]


def ratios_of(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The ratios, each with what it was computed from, or the reason why it is null."""
    latencies = {name: run for name, run in runs.items() if name.startswith("ours_") and run.get("tpot_s")}
    quickest = min(latencies, key=lambda name: latencies[name]["tpot_s"], default="ours_fp32")
    lightest = min(latencies, key=lambda name: latencies[name]["peak_with_loading_bytes"], default="ours_fp32")
    table = {
        "ttft_ratio_fp32": ("reference_fp32", "ours_fp32", "ttft_s"),
        "ttft_ratio_bf16": ("reference_fp32", "ours_bf16", "ttft_s"),
        "ttft_ratio_full_window": ("reference_fp32", "ours_full_window", "ttft_s"),
        "tpot_ratio_fp32": ("reference_fp32", "ours_fp32", "tpot_s"),
        "tpot_ratio_best": ("reference_fp32", quickest, "tpot_s"),
        "peak_memory_ratio": ("reference_fp32", lightest, "peak_with_loading_bytes"),
        "evaluation_ratio": ("reference_evaluation", "ours_evaluation", "seconds"),
        "training_ratio": ("reference_training", "ours_training", "seconds"),
    }
    found: dict[str, Any] = {}
    behind: dict[str, Any] = {}
    for name, (slow, fast, figure) in table.items():
        found[name] = ratio(runs.get(slow), runs.get(fast), figure)
        if found[name] is None:
            reasons = [f"{run}: {runs.get(run, {}).get('error', 'not run')}" for run in (slow, fast)]
            behind[name] = {"reason": "; ".join(reason for reason, run in zip(reasons, (slow, fast), strict=True)
                                                if not runs.get(run, {}).get(figure))}  # fmt: skip
        else:
            behind[name] = {"figure": figure, slow: runs[slow][figure], fast: runs[fast][figure]}
    return found | {"behind": behind}


def compare(
    out: Path,
    parts: Sequence[str],
    weights: Path,
    size: Size,
    *,
    small: bool = False,
    clips: int = CLIPS,
    keep: bool = False,
    run: Runner = run_apart,
) -> dict[str, Any]:
    """Run the parts, write the report after each run, and return it."""
    runs: dict[str, dict[str, Any]] = {}
    if keep and out.exists():
        held = json.loads(out.read_text(encoding="utf-8"))["runs"]
        runs = {name: figures for name, figures in held.items() if "error" not in figures}
    start = time.perf_counter()
    print(f"writing random weights to {weights}", flush=True)
    # Layers as small as these fit no fast kernel.
    model = dataclasses.replace(write_weights(MODEL, weights, small=small), allow_slow_kernels=small)
    annotations = write_clips(weights / "clips", clips, size) if "evaluation" in parts else None
    gptq = None
    if {"back_ends", "light"} & {*parts}:
        gptq = Path(write_in_4_bits(model, weights, small=small).llama_path)
    report: dict[str, Any] = {}
    for job in (job for part in parts for job in jobs_of(part, model, size, annotations=annotations, gptq=gptq)):
        if job.name not in runs:
            print(f"[{time.perf_counter() - start:6.0f} s] {job.name} …", flush=True)
            runs[job.name] = run(job)
            print(f"[{time.perf_counter() - start:6.0f} s] {job.name}: {_in_a_line(runs[job.name])}", flush=True)
        report = {
            **ratios_of(runs),
            "bf16_native": has_native_bf16(),
            "shapes": "small, for trying out" if small else "Whisper-large-v3-turbo, BEATs, Qwen2.5-0.5B-Instruct",
            "size": dataclasses.asdict(size) | {"clips": clips},
            "runs": runs,
            "machine": provenance.machine(torch.device("cpu")),
            "versions": provenance.versions(),
            "commit": provenance.commit(),
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report


def _in_a_line(figures: dict[str, Any]) -> str:
    if "error" in figures:
        return figures["error"]
    shown = [f"{name} {figures[name]:.4g}" for name in ("ttft_s", "tpot_s", "seconds") if name in figures]
    return ", ".join([*shown, f"peak {figures['peak_with_loading_gib']:.2f} GiB"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare ours with the reference way on the CPU.")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to run (default: all)")
    parser.add_argument("--clips", type=int, default=CLIPS, help=f"clips of the evaluation (default: {CLIPS})")
    parser.add_argument("--batch", type=int, help="clips at once in the evaluation, on both sides (default: 8)")
    parser.add_argument("--weights", help="folder for the random weights, kept (default: a temporary one; 4 GB)")
    parser.add_argument("--keep", action="store_true", help="do not repeat the runs that --out holds already")
    parser.add_argument("--small", action="store_true", help="small shapes: seconds, and no claim")
    arguments = parser.parse_args(argv)
    for name, value in (("clips", arguments.clips), ("batch", arguments.batch)):
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}; expected at least 1")
    try:  # an hour before anything is written there
        require_writable(str(Path(arguments.out).parent), "--out")
    except ValueError as error:
        parser.error(str(error))
    clips = min(arguments.clips, 2) if arguments.small else arguments.clips
    size = SMALL if arguments.small else Size()
    if arguments.batch is not None:
        size = dataclasses.replace(size, evaluation_batch=arguments.batch)
    with tempfile.TemporaryDirectory(prefix="against_reference_") as folder:
        report = compare(
            Path(arguments.out),
            arguments.parts,
            Path(arguments.weights or folder),
            size,
            small=arguments.small,
            clips=clips,
            keep=arguments.keep,
        )
    for name, value in report.items():
        if name.endswith(("_ratio", "_fp32", "_bf16", "_window", "_best")):
            print(f"{name:24} {'–' if value is None else f'{value:.2f}'}")
    print(f"written to {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

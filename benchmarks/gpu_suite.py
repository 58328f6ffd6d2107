"""Every system at full shape on this machine's GPU, ours and the reference way in one run, within eight minutes.

    python -m benchmarks.gpu_suite [--systems salmonn_3b nlp07 …] [--minutes 8] [--out FILE]

Needs torch, transformers, peft and accelerate, no network and no other file than this checkout; quantisation packages
are used where they are installed. Weights are random (random_weights.py). For each system one process measures ours
(time to first token and its parts, time per token, prefill, peak memory, and the limits of the device beside them) and
one the reference way; `ratios` say how many times less ours takes. Times are at batch 1, for a 10 s clip.

Each system gets an equal share of the time that is left; what does not fit is stopped, and the file says so. It is
written after every measurement, to benchmarks/results/<gpu>_<date>.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.util
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.bare_machine import ABSENT
from benchmarks.gptq_weights import write_in_4_bits
from benchmarks.random_weights import write_weights
from benchmarks.sides import Job, ratio, run_apart
from configs.schema import load_config
from configs.sections import ModelConfig
from models.quantization.backends import BACKENDS
from support import provenance
from support.command_line import require_writable

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
SYSTEMS = ("nlp07", "smolt", "cv16", "salmonn_3b")
"""Folders of configs, the small ones first."""
MINUTES = 8.0
LEAST_S = 15.0  # a process takes about as long to begin
RESERVE_S = 10.0  # at the end, for what cannot be stopped
FIGURES = ("ttft_s", "tpot_s", "contest_ttft_s", "contest_tpot_s", "peak_gib", "peak_with_loading_gib", "load_s")
Runner = Callable[..., dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """What is measured of each side."""

    clip_s: float = 10.0
    decode_steps: int = 64
    iterations: int = 10
    warmup: int = 3
    reference_decode_steps: int = 32
    reference_iterations: int = 3
    calibration_s: float = 0.3


SMALL = Size(
    clip_s=0.6,
    decode_steps=2,
    iterations=1,
    warmup=0,
    reference_decode_steps=2,
    reference_iterations=1,
    calibration_s=0.01,
)


def system_config(system: str) -> ModelConfig | None:
    """The system's model; None where it has no configuration."""
    path = ROOT / "configs" / system / "evaluate.yaml"
    return load_config(path).model if path.exists() else None


def runnable(config: ModelConfig) -> tuple[ModelConfig, str | None]:
    """The configuration that this machine can run, and what was changed in it."""
    row = BACKENDS.get(config.quantization)
    if row is None:
        problem = f"{config.quantization} is not known"
    elif row.package is not None and importlib.util.find_spec(row.package) is None:
        problem = f"{row.package} is not installed"
    else:
        return config, None
    return dataclasses.replace(config, quantization="none"), f"{problem}: unquantised"


def jobs_of(
    system: str, config: ModelConfig, device: str, size: Size, unquantised: ModelConfig | None = None
) -> list[Job]:
    """Ours and the reference's; `config` names the files, `unquantised` those of the reference where they are others.

    Kernels that are slow here are measured all the same.
    """
    common = {"task": "latency", "device": device, "clip_s": size.clip_s, "calibration_s": size.calibration_s}
    allowed = dataclasses.replace(config, allow_slow_kernels=True)
    ours = Job.of(
        allowed,
        name=f"{system}, ours",
        side="ours",
        decode_steps=size.decode_steps,
        iterations=size.iterations,
        warmup=size.warmup,
        **common,
    )
    reference_config = unquantised or config
    if reference_config.quantization not in ("none", "nf4"):
        reference_config = dataclasses.replace(reference_config, quantization="none")
    reference = Job.of(
        reference_config,
        name=f"{system}, the reference way",
        side="reference",
        decode_steps=size.reference_decode_steps,
        iterations=size.reference_iterations,
        warmup=min(1, size.warmup),
        **common,
    )
    return [ours, reference]


class Suite:
    """One run: a deadline, the report so far, and the file that it goes to."""

    def __init__(self, device: str, out: Path, seconds: float, size: Size, *, small: bool, run: Runner) -> None:
        self.device, self.out, self.size, self.small, self.run = device, out, size, small, run
        self.begin = time.monotonic()
        self.end = self.begin + seconds
        self.report: dict[str, Any] = {
            "suite": "gpu_suite",
            "shapes": "small, for trying out" if small else "full, random weights",
            "date": datetime.date.today().isoformat(),
            "machine": provenance.machine(torch.device(device)),
            "versions": provenance.versions(),
            "commit": provenance.commit(),
            "placeholders": ABSENT,
            "size": dataclasses.asdict(size),
            "systems": {},
        }

    def left_s(self) -> float:
        return self.end - RESERVE_S * (not self.small) - time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.begin:5.0f} s] {text}", flush=True)

    def write(self) -> None:
        self.report["seconds"] = round(time.monotonic() - self.begin, 1)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(self.report, indent=1), encoding="utf-8")

    def measure_system(self, system: str, weights: Path, share_s: float) -> dict[str, Any]:
        """Both sides of one system, in at most `share_s` seconds."""
        config = system_config(system)
        if config is None:
            return {"skipped": f"configs/{system}/evaluate.yaml does not exist"}
        if share_s < LEAST_S * (not self.small):
            return {"skipped": f"no time was left: {max(0.0, share_s):.0f} s"}
        end = time.monotonic() + share_s
        config, changed = runnable(config)
        row: dict[str, Any] = {"quantization": config.quantization} | ({"changed": changed} if changed else {})
        self.say(f"{system}: writing random weights")
        try:
            gptq = config.quantization == "gptq"
            plain = dataclasses.replace(config, quantization="none") if gptq else config
            unquantised = write_weights(plain, weights, small=self.small, device=self.device)
            local = write_in_4_bits(unquantised, weights, small=self.small) if gptq else unquantised
        except (ValueError, OSError, RuntimeError) as error:
            return row | {"skipped": f"no weights could be written: {error}"}
        jobs = jobs_of(system, local, self.device, self.size, unquantised)
        for position, job in enumerate(jobs):
            left_s = end - time.monotonic()
            self.say(f"{job.name}, {left_s:.0f} s left for {system}")
            if left_s <= 0:
                row[job.side] = {"error": "no time was left"}
                continue
            row[job.side] = self.run(job, timeout_s=left_s * (0.6 if position == 0 else 1.0))
            self.say(f"{job.name}: {_in_a_line(row[job.side])}")
        row["ratios"] = {figure: ratio(row["reference"], row["ours"], figure) for figure in FIGURES}
        return row

    def measure(self, systems: Sequence[str], weights: Path) -> dict[str, Any]:
        for position, system in enumerate(systems):
            share_s = self.left_s() / (len(systems) - position)
            self.report["systems"][system] = row = self.measure_system(system, weights, share_s)
            if "skipped" in row:
                self.say(f"{system}: skipped, {row['skipped']}")
            self.write()
        self._measure_back_ends(weights)
        return self.report

    def _measure_back_ends(self, weights: Path) -> None:
        """In the time that is left: the smallest system's ours, with every quantisation that can be made here."""
        rows = self.report["systems"]
        system = next((name for name, row in rows.items() if "ours" in row and "error" not in row["ours"]), None)
        if system is None or self.small:
            return
        local = write_weights(system_config(system), weights, device=self.device)
        found = self.report["back_ends"] = {"system": system}
        for name, back_end in BACKENDS.items():
            made_at_loading = name not in ("none", "gptq") and self.device.partition(":")[0] in back_end.devices
            if not made_at_loading or name == self.report["systems"][system]["quantization"]:
                continue
            config, changed = runnable(dataclasses.replace(local, quantization=name))
            if changed is not None:
                found[name] = {"skipped": changed.partition(":")[0]}
            elif self.left_s() < LEAST_S:
                found[name] = {"skipped": "no time was left"}
            else:
                job, _ = jobs_of(f"{system} in {name}", config, self.device, self.size)
                found[name] = self.run(job, timeout_s=self.left_s())
                self.say(f"{job.name}: {_in_a_line(found[name])}")
            self.write()


def _in_a_line(figures: dict[str, Any]) -> str:
    if "error" in figures:
        return figures["error"]
    line = f"TTFT {figures['ttft_s']:.4f} s, TPOT {figures['tpot_s']:.4f} s, peak {figures['peak_gib']:.2f} GiB"
    limit = figures.get("limits", {}).get("figures", {}).get("tpot_s")
    return line + (f", TPOT {limit['ratio']:.1f} times the bandwidth's limit" if limit else "")


def result_path(device: str, *, small: bool = False) -> Path:
    """benchmarks/results/<gpu>_<date>.json, which a trial at small shapes must not replace."""
    name = str(provenance.machine(torch.device(device))["name"])
    name = re.sub("[^a-z0-9]+", "_", name.lower()).strip("_")
    return RESULTS / f"{name}_{datetime.date.today().isoformat()}{'_small' if small else ''}.json"


def main(argv: Sequence[str] | None = None, *, run: Runner = run_apart) -> int:
    parser = argparse.ArgumentParser(description="Measure every system at full shape, ours and the reference way.")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), help="folders of configs (default: all)")
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"ends within these (default: {MINUTES:g})")
    parser.add_argument("--out", help="JSON file to write (default: benchmarks/results/<gpu>_<date>.json)")
    parser.add_argument("--weights", help="folder for the random weights, kept (default: a temporary one; 16 GB)")
    parser.add_argument("--small", action="store_true", help="small shapes, for trying out")
    arguments = parser.parse_args(argv)
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        print("error: PyTorch finds no CUDA device; --small --device cpu tries the suite out", file=sys.stderr)
        return 1
    if arguments.minutes <= 0:
        parser.error(f"--minutes is {arguments.minutes:g}; expected more than 0")
    if arguments.device.partition(":")[0] not in ("cpu", "cuda"):
        parser.error(f"--device is {arguments.device}; expected cuda, cuda:N or, with --small, cpu")
    out = Path(arguments.out) if arguments.out else result_path(arguments.device, small=arguments.small)
    try:
        require_writable(str(out.parent), "--out")
    except ValueError as error:
        parser.error(str(error))
    size = SMALL if arguments.small else Size()
    suite = Suite(arguments.device, out, 60 * arguments.minutes, size, small=arguments.small, run=run)
    with tempfile.TemporaryDirectory(prefix="gpu_suite_") as folder:
        suite.measure(arguments.systems, Path(arguments.weights or folder))
    suite.write()
    suite.say(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Every system at full shape on this machine's GPU, ours and the reference model in one run, within eight minutes.

    python -m benchmarks.gpu_suite [--systems salmonn_3b nlp07 …] [--minutes 8] [--out FILE]

Needs torch, transformers, peft and accelerate, no network and no other file than this checkout; quantisation packages
are used where they are installed. Weights are random (weights.py). For each system one process measures ours (time to
first token and its parts, time per token, prefill, peak memory, and the limits of the device next to them) and one the
reference model; `ratios` say how many times less ours takes. Times are at batch 1, for a 10 s clip.

Each system gets an equal share of the time that is left; what does not fit is stopped, and the file says so. It is
written after every system, to benchmarks/results/<gpu>_<date>.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import re
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import suite
from benchmarks.bare_machine import ABSENT
from benchmarks.suite import Job, Suite
from configs.schema import load_config
from configs.sections import ModelConfig
from support import command_line
from support.command_line import UserError, number

SYSTEMS = ("nlp07", "smolt", "cv16", "salmonn_3b")
"""Folders of configs, the small ones first."""
SIZE: dict[str, Any] = {
    "clip_s": 10.0,
    "decode_steps": 64,
    "iterations": 10,
    "warmup": 3,
    "reference_decode_steps": 32,
    "reference_iterations": 3,
    "calibration_s": 0.3,
}
MINUTES = 8.0
LEAST_S = 15.0  # a process takes about as long to begin
RESERVE_S = 10.0  # at the end, for what cannot be stopped
FIGURES = ("ttft_s", "tpot_s", "contest_ttft_s", "contest_tpot_s", "peak_gib", "peak_with_loading_gib", "load_s")


def system_config(system: str) -> ModelConfig | None:
    """The system's model; None where it has no configuration."""
    path = suite.ROOT / "configs" / system / "evaluate.yaml"
    return load_config(path).model if path.exists() else None


def runnable(config: ModelConfig) -> tuple[ModelConfig, str | None]:
    """The configuration that this machine can run, and what was changed in it."""
    from models.quantization.backends import BACKENDS

    row = BACKENDS[config.quantization]
    if suite.is_installed(row):
        return config, None
    return dataclasses.replace(config, quantization="none"), f"{row.package} is not installed: unquantised"


def jobs_of(system: str, config: ModelConfig, plain: ModelConfig, device: str, size: dict[str, Any]) -> list[Job]:
    """Ours and the reference's; `config` and `plain` name the files, as quantised for ours and unquantised.

    Kernels that are slow here are measured all the same.
    """
    common = {"task": "latency", "device": device, "clip_s": size["clip_s"], "calibration_s": size["calibration_s"]}
    ours = Job(
        config=dataclasses.replace(config, allow_slow_kernels=True),
        name=f"{system}, ours",
        side="ours",
        **{name: size[name] for name in ("decode_steps", "iterations", "warmup")},
        **common,
    )
    reference = Job(
        config=dataclasses.replace(plain, quantization="nf4" if config.quantization == "nf4" else "none"),
        name=f"{system}, reference",
        side="reference",
        decode_steps=size["reference_decode_steps"],
        iterations=size["reference_iterations"],
        warmup=min(1, size["warmup"]),
        **common,
    )
    return [ours, reference]


def about() -> dict[str, Any]:
    """How the report begins."""
    return {
        "suite": "gpu_suite",
        "shapes": "full, random weights",
        "date": datetime.date.today().isoformat(),
        "placeholders": ABSENT,
        "systems": {},
    }


class SystemSuite(Suite):
    """The systems within a deadline, each in an equal share of what is left."""

    def write(self) -> None:
        self.report["seconds"] = round(self.spent_s(), 1)
        super().write()

    def measure(self, systems: Sequence[str], weights: Path) -> dict[str, Any]:
        for position, system in enumerate(systems):
            share_s = self.left_s() / (len(systems) - position)
            self.report["systems"][system] = row = self._system(system, weights, share_s)
            if "skipped" in row:
                self.say(f"{system}: skipped, {row['skipped']}")
            self.write()
        if not self.small:
            self._back_ends(weights)
        return self.report

    def _system(self, system: str, weights: Path, share_s: float) -> dict[str, Any]:
        """Both sides of one system, in at most `share_s` seconds."""
        from benchmarks.gptq_weights import write_in_4_bits
        from benchmarks.weights import write_weights

        config = system_config(system)
        if config is None:
            return {"skipped": f"configs/{system}/evaluate.yaml does not exist"}
        if share_s < LEAST_S and not self.small:
            return {"skipped": f"no time was left: {max(0.0, share_s):.0f} s"}
        end = time.monotonic() + share_s
        config, changed = runnable(config)
        row: dict[str, Any] = {"quantization": config.quantization} | ({"changed": changed} if changed else {})
        self.say(f"{system}: writing random weights")
        try:
            plain = dataclasses.replace(config, quantization="none")
            plain = write_weights(plain, weights, small=self.small, device=self.device)
            local = dataclasses.replace(plain, quantization=config.quantization)
            if config.quantization == "gptq":
                local = write_in_4_bits(plain, weights, small=self.small)
        except (UserError, OSError, RuntimeError) as error:  # the last: memory, or PyTorch's own writing
            return row | {"skipped": f"no weights could be written: {error}"}
        for job, part in zip(jobs_of(system, local, plain, self.device, self.size), (0.6, 1.0), strict=True):
            left_s = end - time.monotonic()
            row[job.side] = {"error": "no time was left"}
            if left_s > 0:
                row[job.side] = self.run(job, timeout_s=left_s * part)
        row["ratios"] = {figure: suite.ratio(row["reference"], row["ours"], figure) for figure in FIGURES}
        return row

    def _back_ends(self, weights: Path) -> None:
        """In the time that is left: the smallest system's ours, with every quantisation that can be made here."""
        from benchmarks.weights import write_weights

        rows = self.report["systems"]
        system = next((name for name, row in rows.items() if "ours" in row and "error" not in row["ours"]), None)
        if system is None:
            return
        plain = dataclasses.replace(system_config(system), quantization="none")
        plain = write_weights(plain, weights, device=self.device)
        found = self.report["back_ends"] = {"system": system}
        for name in suite.back_ends(self.device.partition(":")[0]):
            if name in ("gptq", rows[system]["quantization"]):  # the first is not made while loading
                continue
            config, changed = runnable(dataclasses.replace(plain, quantization=name))
            if changed is not None:
                found[name] = {"skipped": changed.partition(":")[0]}
            elif self.left_s() < LEAST_S:
                found[name] = {"skipped": "no time was left"}
            else:
                job, _ = jobs_of(f"{system} in {name}", config, plain, self.device, self.size)
                found[name] = self.run(job, timeout_s=self.left_s())
            self.write()


def result_path(device: str, *, small: bool = False) -> Path:
    """benchmarks/results/<gpu>_<date>.json; a trial at small shapes has a file of its own."""
    name = re.sub("[^a-z0-9]+", "_", suite.origin(device)["machine"]["name"].lower()).strip("_")
    return suite.RESULTS / f"{name}_{datetime.date.today().isoformat()}{'_small' if small else ''}.json"


def work(arguments: argparse.Namespace, run_job: suite.Runner) -> None:
    import torch

    if arguments.device.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"--device is {arguments.device}; expected cuda, cuda:N or, with --small, cpu")
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("PyTorch finds no CUDA device; --small --device cpu tries the suite out")
    small = arguments.small
    out = Path(arguments.out) if arguments.out else result_path(arguments.device, small=small)
    seconds = 60 * arguments.minutes - (0.0 if small else RESERVE_S)
    systems = SystemSuite(out, about(), SIZE, device=arguments.device, small=small, seconds=seconds, run_job=run_job)
    with suite.weights_folder(arguments.weights) as weights:
        systems.measure(arguments.systems, weights)
    systems.write()
    systems.say(f"written to {out}")


def main(argv: Sequence[str] | None = None, *, run: suite.Runner = suite.run_apart) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_suite",
        description="Measure every system at full shape, ours and the reference model.",
    )
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), help="folders of configs (default: all)")
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument(
        "--minutes", type=number(float, 0.1), default=MINUTES, help=f"ends within these (default: {MINUTES:g})"
    )
    parser.add_argument("--out", help="JSON file to write (default: benchmarks/results/<gpu>_<date>.json)")
    parser.add_argument("--weights", help="folder for the random weights, kept (default: a temporary one; 16 GB)")
    parser.add_argument("--small", action="store_true", help="small shapes, for trying out")
    return command_line.run(partial(work, run_job=run), parser, argv)


if __name__ == "__main__":
    sys.exit(main())

"""One model over batch sizes, clip lengths, quantisation back-ends and encoders: tables, JSON and pictures.

    python -m benchmarks.sweep --out FOLDER [--cfg-path YAML] [--axes grid back_ends encoders] [--small]

`grid` is every batch size with every clip length; `back_ends` and `encoders` are variants of the model at batch 1 and a
10 s clip. Each variant is a process of its own, which loads it once. Weights are random at full shape, unless
`--trained` says that the files the YAML names are there; with `--annotations` each variant is then scored as well.

FOLDER gets `sweep.json`, the tables as `sweep.md`, and `ttft.png`, `tpot.png`, `memory.png`, `pareto.png`: memory
against latency, score as colour, the variants that no other beats in both joined by a line. Points that would take
longer than `--point-seconds`, judging by smaller ones, are left out and say so.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import against_reference
from benchmarks.gptq_weights import write_in_4_bits
from benchmarks.random_weights import write_weights
from benchmarks.sides import PROMPT, Job, run_apart
from configs.schema import load_config
from configs.sections import ModelConfig
from models.device import pick_device
from models.quantization.backends import BACKENDS
from support import provenance
from support.command_line import UserError, require_writable
from support.tables import format_table

AXES = ("grid", "back_ends", "encoders")
BATCHES = (1, 2, 4, 8, 16, 32)
CLIPS_S = (1.0, 3.0, 10.0, 30.0)
CLIP_S = 10.0
POINT_S = 60.0
CED = "mispeech/ced-small"
Runner = Callable[[Job], dict[str, Any]]
Variant = tuple[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How much each point does."""

    batches: tuple[int, ...] = BATCHES
    clips_s: tuple[float, ...] = CLIPS_S
    clip_s: float = CLIP_S
    decode_steps: int = 16
    iterations: int = 2
    warmup: int = 1
    point_s: float = POINT_S


SMALL = Size(batches=(1, 2), clips_s=(0.5, 1.0), clip_s=0.5, decode_steps=2, iterations=1, warmup=0)


def back_end_variants(device: torch.device, config: ModelConfig) -> list[Variant]:
    """Every way to hold the language model's weights on `device`: its types unquantised, then the table's rows."""
    half = {"cuda": "float16", "cpu": "bfloat16"}[device.type]
    variants: list[Variant] = [(dtype, {"quantization": "none", "dtype": dtype}) for dtype in ("float32", half)]
    for name, row in BACKENDS.items():
        if name == "none" or device.type not in row.devices or not against_reference.is_installed(row):
            continue
        types = [str(dtype).removeprefix("torch.") for dtype in row.dtypes]
        variants.append((name, {"quantization": name, "dtype": half if half in types else types[0]}))
    variants.append((f"{half}, encoders int8", {"dtype": half, "encoder_quantization": "int8"}))
    gptq = dict(variants).get("gptq")
    if gptq is not None:
        variants.append(("gptq, encoders int8", gptq | {"encoder_quantization": "int8"}))
    return variants


def encoder_variants(config: ModelConfig) -> list[Variant]:
    """Encoders alone, another one in the place of BEATs, and fewer layers; what the model has not is passed over."""
    variants: list[Variant] = [("as configured", {})]
    if config.whisper_path:
        if config.beats_path or config.ced_path:
            variants.append(("Whisper alone", {"beats_path": "", "ced_path": ""}))
        variants += [(f"Whisper, {layers} layers", {"whisper_layers": layers}) for layers in (24, 16)]
    if config.beats_path:
        variants.append(("CED-small for BEATs", {"beats_path": "", "ced_path": CED}))
        variants.append(("BEATs, 6 layers", {"beats_layers": 6}))
        variants.append(("BEATs alone", {"whisper_path": ""}))
    return variants


class Sweep:
    """One run: where files are, what is measured, and the report so far."""

    def __init__(self, arguments: argparse.Namespace, config: ModelConfig, weights: Path, run: Runner) -> None:
        self.arguments, self.config, self.weights, self.run = arguments, config, weights, run
        self.device = pick_device(arguments.device)
        self.size = SMALL if arguments.small else Size(
            batches=tuple(arguments.batches), clips_s=tuple(arguments.clips), point_s=arguments.point_seconds
        )  # fmt: skip
        self.out = Path(arguments.out)
        self.report: dict[str, Any] = {
            "benchmark": "sweep",
            "weights": "trained" if arguments.trained else "random",
            "shapes": "small, for trying out" if arguments.small else "full",
            "model": arguments.cfg_path or "Whisper-large-v3-turbo, BEATs, Qwen2.5-0.5B-Instruct",
            "options": arguments.options,
            "machine": provenance.machine(self.device),
            "versions": provenance.versions(),
            "commit": provenance.commit(),
            "size": dataclasses.asdict(self.size),
        }

    def measure(self, axes: Sequence[str]) -> dict[str, Any]:
        if "grid" in axes:
            self.report["grid"] = self._variant("grid", {}, self.size.batches, self.size.clips_s)
            self._write()
        one = (1,), (self.size.clip_s,)
        for axis, variants in (
            ("back_ends", back_end_variants(self.device, self.config)),
            ("encoders", encoder_variants(self.config)),
        ):
            rows: dict[str, Any] = {}
            for name, changes in variants if axis in axes else []:
                rows[name] = self._variant(name, changes, *one)
                self.report[axis] = rows
                self._write()
        return self.report

    def _variant(
        self, name: str, changes: dict[str, Any], batches: Sequence[int], clips_s: Sequence[float]
    ) -> dict[str, Any]:
        """The points of one variant of the model, or why there are none."""
        arguments = self.arguments
        scored = {"annotations": arguments.annotations, "prefix": arguments.prefix} if arguments.annotations else {}
        try:
            job = Job.of(
                self._files(changes),
                name=name,
                side="ours",
                task="grid",
                device=str(self.device),
                batches=tuple(batches),
                clips_s=tuple(clips_s),
                decode_steps=self.size.decode_steps,
                iterations=self.size.iterations,
                warmup=self.size.warmup,
                point_s=self.size.point_s,
                batch=8,
                prompt=arguments.prompt,
                **scored,
            )
        except (ValueError, OSError) as error:
            result = {"error": str(error).splitlines()[0]}
        else:
            result = self.run(job)
        print(f"{name}: {in_a_line(result)}", flush=True)
        return {"changes": changes} | result

    def _files(self, changes: dict[str, Any]) -> ModelConfig:
        """The changed model, with paths of files that are there; slow kernels are measured all the same."""
        wanted = dataclasses.replace(self.config, allow_slow_kernels=True, **changes)
        gptq = wanted.quantization == "gptq"
        small = self.arguments.small
        if self.arguments.trained:
            local = wanted
            if {"whisper_path", "beats_path", "ced_path"} & changes.keys():
                raise UserError("a trained adapter knows no other encoders than its own; leave --trained out for these")
        else:
            unquantised = dataclasses.replace(wanted, quantization="none") if gptq else wanted
            local = write_weights(unquantised, self.weights, small=small, device="cpu")
        return write_in_4_bits(local, self.weights, small=small) if gptq else local

    def _write(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "sweep.json").write_text(json.dumps(self.report, indent=1), encoding="utf-8")
        (self.out / "sweep.md").write_text(tables(self.report), encoding="utf-8")


def in_a_line(result: dict[str, Any]) -> str:
    if "error" in result:
        return result["error"]
    done = [point for point in result["points"] if "ttft_s" in point]
    if not done:
        return result["points"][0]["left_out"]
    last = done[-1]
    shape = f"batch {last['batch']}, {last['clip_s']:g} s"
    return (
        f"{len(done)} points, the largest ({shape}): TTFT {last['ttft_s']:.3f} s, TPOT {last['tpot_s']:.4f} s, "
        f"peak {last['peak_gib']:.2f} GiB"
    )


def tables(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    machine = report["machine"]
    parts = [
        f"# Sweep: {report['model']}",
        f"{report['weights']} weights, {report['shapes']} shapes; {machine['name']} ({machine['device']}), "
        f"{machine['threads']} threads; commit {report['commit']}.",
    ]
    if "grid" in report:
        parts += ["## Batch and clip length", _grid_table(report["grid"])]
    for axis, title in (("back_ends", "Quantisation"), ("encoders", "Encoders")):
        if axis in report:
            parts += [f"## {title}", _variant_table(report[axis])]
    return "\n\n".join(parts) + "\n"


def _grid_table(grid: dict[str, Any]) -> str:
    if "error" in grid:
        return f"Not measured: {grid['error']}"
    header = ["batch", "clip s", "TTFT s", "TPOT s", "tokens/s", "audio s/s", "peak GiB", ""]
    return format_table(
        header, [[point["batch"], f"{point['clip_s']:g}", *_figures(point)] for point in grid["points"]]
    )


def _figures(point: dict[str, Any]) -> list[str | None]:
    if "left_out" in point:
        return [None] * 5 + [point["left_out"]]
    digits = {"ttft_s": 4, "tpot_s": 4, "tokens_per_s": 1, "rtfx": 2, "peak_gib": 2}
    return [*(f"{point[name]:.{places}f}" for name, places in digits.items()), ""]


def _variant_table(rows: dict[str, Any]) -> str:
    lines = []
    for name, row in rows.items():
        point = single_point(row)
        if point is None:
            why = row.get("error") or row["points"][0]["left_out"]
            lines.append([name, None, None, None, None, why])
            continue
        figures = [f"{point['ttft_s']:.4f}", f"{point['tpot_s']:.4f}", f"{row['peak_with_loading_gib']:.2f}"]
        scores = "; ".join(
            f"{task} {found['metric']} {found['value']:.4f}"
            for task, found in row.get("scores", {}).items()
            if found["value"] is not None
        )
        lines.append([name, *figures, scores or None, row["kernel"]])
    return format_table(["variant", "TTFT s", "TPOT s", "peak GiB, with loading", "score", "language model"], lines)


def single_point(row: dict[str, Any]) -> dict[str, Any] | None:
    """A variant's one point; None where it was not measured."""
    points = [point for point in row.get("points", []) if "ttft_s" in point]
    return points[0] if points else None


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure one model over batches, clip lengths, back-ends, encoders.")
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--cfg-path", help="YAML of the model (default: turbo, BEATs, Qwen2.5-0.5B)")
    parser.add_argument(
        "--options", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="settings over the YAML's"
    )
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), help="what to sweep (default: all)")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES), help="default: 1 to 32")
    parser.add_argument("--clips", nargs="+", type=float, default=list(CLIPS_S), help="seconds (default: 1 to 30)")
    parser.add_argument("--point-seconds", type=float, default=POINT_S, help="leave longer points out (default: 60)")
    parser.add_argument("--device", help="default: cuda where there is one")
    parser.add_argument("--weights", help="folder for the random weights, kept (default: a temporary one)")
    parser.add_argument("--trained", action="store_true", help="take the files that the YAML names")
    parser.add_argument("--annotations", help="with --trained: score every variant on these clips, all of one task")
    parser.add_argument("--prefix", help="folder that the annotations' paths start from")
    parser.add_argument("--prompt", default=PROMPT, help="instruction with <SpeechHere>")
    parser.add_argument("--small", action="store_true", help="small shapes, for trying out")
    arguments = parser.parse_args(argv)
    if arguments.trained and not arguments.cfg_path:
        parser.error("--trained needs --cfg-path: a YAML that names the trained files")
    if arguments.options and not arguments.cfg_path:
        parser.error("--options needs --cfg-path: a YAML whose settings they change")
    if arguments.annotations and not arguments.trained:
        parser.error("--annotations needs --trained: random weights have no score")
    if min(arguments.batches) < 1 or not 0 < min(arguments.clips) <= max(arguments.clips) <= 3600:
        parser.error(f"--batches {arguments.batches}, --clips {arguments.clips}: expected 1 or more, and 0 to 3600 s")
    return arguments


def main(argv: Sequence[str] | None = None, *, run: Runner = run_apart) -> int:
    from benchmarks.plots import draw

    arguments = parse_arguments(argv)
    try:
        require_writable(arguments.out, "--out")
        if arguments.annotations and not Path(arguments.annotations).is_file():
            raise UserError(f"--annotations {arguments.annotations}: no such file")
        config = against_reference.MODEL
        if arguments.cfg_path:
            config = load_config(arguments.cfg_path, arguments.options).model
        with tempfile.TemporaryDirectory(prefix="sweep_") as folder:
            report = Sweep(arguments, config, Path(arguments.weights or folder), run).measure(arguments.axes)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    pictures = draw(report, Path(arguments.out))
    print(tables(report), f"written to {arguments.out}: sweep.json, sweep.md, {', '.join(pictures)}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

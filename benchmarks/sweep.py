"""One model over batch sizes, clip lengths, quantisation back-ends and encoders: tables, JSON and pictures.

    python -m benchmarks.sweep --out FOLDER [--cfg-path YAML] [--axes grid back_ends encoders] [--small]

`grid` is every batch size with every clip length; `back_ends` and `encoders` are variants of the model at batch 1 and a
10 s clip. Each variant is a process of its own, which loads it once. Weights are random at full shape; `--trained` uses
the files that the YAML names, and with `--annotations` each variant is then scored as well.

FOLDER gets `sweep.json`, the tables as `sweep.md`, and `ttft.png`, `tpot.png`, `memory.png`, `pareto.png`: memory
against latency, score as colour, the variants that no other beats in both joined by a line. Points that would take
longer than `--point-seconds`, judging by smaller ones, are not measured, and their rows say so.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import suite
from benchmarks.suite import Job, Suite
from configs.schema import load_config
from configs.sections import ModelConfig
from support import command_line
from support.command_line import UserError
from support.tables import format_table
from support.units import dtype_name

AXES = ("grid", "back_ends", "encoders")
SIZE: dict[str, Any] = {
    "batches": (1, 2, 4, 8, 16, 32),
    "clips_s": (1.0, 3.0, 10.0, 30.0),
    "clip_s": 10.0,
    "decode_steps": 16,
    "iterations": 2,
    "warmup": 1,
    "point_s": 60.0,
}
CED = "mispeech/ced-small"
Variant = tuple[str, dict[str, Any]]


def back_end_variants(device: str) -> list[Variant]:
    """Every form of the language model's weights on `cpu` or `cuda`: its types unquantised, then the table's rows."""
    half = {"cuda": "float16", "cpu": "bfloat16"}[device]
    variants: list[Variant] = [(dtype, {"quantization": "none", "dtype": dtype}) for dtype in ("float32", half)]
    for name, row in suite.back_ends(device).items():
        if suite.is_installed(row):
            types = [dtype_name(dtype) for dtype in row.dtypes]
            variants.append((name, {"quantization": name, "dtype": half if half in types else types[0]}))
    variants.append((f"{half}, encoders int8", {"dtype": half, "encoder_quantization": "int8"}))
    gptq = dict(variants).get("gptq")
    if gptq is not None:
        variants.append(("gptq, encoders int8", gptq | {"encoder_quantization": "int8"}))
    return variants


def encoder_variants(config: ModelConfig) -> list[Variant]:
    """Each encoder alone, CED in place of BEATs, and fewer layers; for the encoders that the model has."""
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


class Sweep(Suite):
    """The variants of one model, each measured by one job."""

    def __init__(
        self, arguments: argparse.Namespace, config: ModelConfig, weights: Path, run_job: suite.Runner
    ) -> None:
        from models.device import pick_device

        self.arguments, self.config, self.weights = arguments, config, weights
        asked = {"batches": tuple(arguments.batches), "clips_s": tuple(arguments.clips)}
        super().__init__(
            Path(arguments.out) / "sweep.json",
            {
                "benchmark": "sweep",
                "weights": "trained" if arguments.trained else "random",
                "shapes": "full",
                "model": arguments.cfg_path or suite.MODEL_NAME,
                "options": arguments.options,
            },
            SIZE | asked | {"point_s": arguments.point_seconds},
            device=str(pick_device(arguments.device)),
            small=arguments.small,
            run_job=run_job,
        )

    def write(self) -> None:
        super().write()
        self.out.with_suffix(".md").write_text(tables(self.report), encoding="utf-8")

    def measure(self, axes: Sequence[str]) -> dict[str, Any]:
        if "grid" in axes:
            self.report["grid"] = self._variant("grid", {}, self.size["batches"], self.size["clips_s"])
            self.write()
        for axis, variants in (
            ("back_ends", back_end_variants(self.device.partition(":")[0])),
            ("encoders", encoder_variants(self.config)),
        ):
            for name, changes in variants if axis in axes else []:
                row = self._variant(name, changes, (1,), (self.size["clip_s"],))
                self.report.setdefault(axis, {})[name] = row
                self.write()
        return self.report

    def _variant(
        self, name: str, changes: dict[str, Any], batches: Sequence[int], clips_s: Sequence[float]
    ) -> dict[str, Any]:
        """The points of one variant of the model, or why there are none."""
        arguments = self.arguments
        scored = {"annotations": arguments.annotations, "prefix": arguments.prefix} if arguments.annotations else {}
        try:
            job = Job(
                config=self._files(changes),
                name=name,
                side="ours",
                task="grid",
                device=self.device,
                batches=tuple(batches),
                clips_s=tuple(clips_s),
                batch=8,
                prompt=arguments.prompt,
                **{key: self.size[key] for key in ("decode_steps", "iterations", "warmup", "point_s")},
                **scored,
            )
        except (UserError, OSError) as error:
            self.say(f"{name}: {error}")
            return {"changes": changes, "error": str(error).splitlines()[0]}
        return {"changes": changes} | self.run(job)

    def _files(self, changes: dict[str, Any]) -> ModelConfig:
        """The changed model, with paths of files that exist; slow kernels are measured all the same."""
        from benchmarks.gptq_weights import write_in_4_bits
        from benchmarks.weights import write_weights

        wanted = dataclasses.replace(self.config, allow_slow_kernels=True, **changes)
        if not self.arguments.trained:
            return write_weights(wanted, self.weights, small=self.small)
        if {"whisper_path", "beats_path", "ced_path"} & changes.keys():
            raise UserError("a trained adapter fits its own encoders only; leave --trained out for others")
        return write_in_4_bits(wanted, self.weights, small=self.small) if wanted.quantization == "gptq" else wanted


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
        points = suite.measured_points(row)
        if not points:
            lines.append([name, None, None, None, None, suite.in_a_line(row)])
            continue
        point = points[0]
        figures = [f"{point['ttft_s']:.4f}", f"{point['tpot_s']:.4f}", f"{row['peak_with_loading_gib']:.2f}"]
        scores = "; ".join(
            f"{task} {found['metric']} {found['value']:.4f}"
            for task, found in row.get("scores", {}).items()
            if found["value"] is not None
        )
        lines.append([name, *figures, scores or None, row["kernel"]])
    return format_table(["variant", "TTFT s", "TPOT s", "peak GiB, with loading", "score", "language model"], lines)


def work(arguments: argparse.Namespace, run_job: suite.Runner) -> None:
    from benchmarks.plots import draw

    if arguments.trained and not arguments.cfg_path:
        raise UserError("--trained needs --cfg-path: a YAML that names the trained files")
    if arguments.options and not arguments.cfg_path:
        raise UserError("--options needs --cfg-path: a YAML whose settings they change")
    if arguments.annotations and not arguments.trained:
        raise UserError("--annotations needs --trained: random weights have no score")
    if min(arguments.batches) < 1 or not 0 < min(arguments.clips) <= max(arguments.clips) <= 3600:
        raise UserError(
            f"--batches {arguments.batches}, --clips {arguments.clips}: expected 1 or more, and 0 to 3600 s"
        )
    if arguments.annotations and not Path(arguments.annotations).is_file():
        raise UserError(f"--annotations {arguments.annotations}: no such file")
    config = load_config(arguments.cfg_path, arguments.options).model if arguments.cfg_path else suite.MODEL
    with suite.weights_folder(arguments.weights) as weights:
        report = Sweep(arguments, config, weights, run_job).measure(arguments.axes)
    pictures = draw(report, Path(arguments.out))
    print(tables(report), f"written to {arguments.out}: sweep.json, sweep.md, {', '.join(pictures)}", sep="\n")


def main(argv: Sequence[str] | None = None, *, run: suite.Runner = suite.run_apart) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep",
        description="Measure one model over batches, clip lengths, back-ends, encoders.",
    )
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--cfg-path", help="YAML of the model (default: turbo, BEATs, Qwen2.5-0.5B)")
    parser.add_argument(
        "--options", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="settings over the YAML's"
    )
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), help="what to sweep (default: all)")
    parser.add_argument("--batches", nargs="+", type=int, default=SIZE["batches"], help="default: 1 to 32")
    parser.add_argument("--clips", nargs="+", type=float, default=SIZE["clips_s"], help="seconds (default: 1 to 30)")
    parser.add_argument(
        "--point-seconds", type=float, default=SIZE["point_s"], help="leave longer points out (default: 60)"
    )
    parser.add_argument("--device", help="default: cuda where there is one")
    parser.add_argument("--weights", help="folder for the random weights, kept (default: a temporary one)")
    parser.add_argument("--trained", action="store_true", help="use the files that the YAML names")
    parser.add_argument("--annotations", help="with --trained: score every variant on these clips, all of one task")
    parser.add_argument("--prefix", help="folder that the annotations' paths start from")
    parser.add_argument("--prompt", default=suite.PROMPT, help="instruction with <SpeechHere>")
    parser.add_argument("--small", action="store_true", help="small shapes, for trying out")
    return command_line.run(partial(work, run_job=run), parser, argv)


if __name__ == "__main__":
    sys.exit(main())

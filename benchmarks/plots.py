"""The pictures of a sweep (sweep.py): times and memory over batch and clip length, and the Pareto picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed

import matplotlib.pyplot as plt

from benchmarks.leaderboard import Row, published_rows
from benchmarks.suite import measured_points

CURVES = {
    "ttft": ("ttft_s", "time to first token, s"),
    "tpot": ("tpot_s", "time per step, s"),
    "memory": ("peak_gib", "peak memory, GiB"),
}
"""Name of the picture -> figure of a point, and its axis."""
DOTS_PER_INCH = 120


def draw(report: dict[str, Any], folder: Path) -> list[str]:
    """Write the pictures that the report has figures for; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    points = measured_points(report.get("grid", {}))
    if points:
        made += [_curves(points, name, report, folder) for name in CURVES]
    variants = pareto_points(report)
    if variants:
        made.append(_pareto(variants, report, folder))
    return made


def pareto_points(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Variants that were measured: name, memory with loading, latency of a 10 s clip, score (None where none is)."""
    found = []
    for axis in ("back_ends", "encoders"):
        for name, row in report.get(axis, {}).items():
            scores = [score["value"] for score in row.get("scores", {}).values() if score["value"] is not None]
            found += [
                {
                    "name": name,
                    "memory_gib": row["peak_with_loading_gib"],
                    "latency_s": point["ttft_s"] + point["tpot_s"],
                    "score": scores[0] if scores else None,
                }
                for point in measured_points(row)
            ]
    return found


def front(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points that no other beats in both memory and latency, the lightest first."""
    best: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda point: (point["memory_gib"], point["latency_s"])):
        if not best or point["latency_s"] < best[-1]["latency_s"]:
            best.append(point)
    return best


def _title(report: dict[str, Any]) -> str:
    machine = report["machine"]
    return f"{Path(report['model']).name}, {report['weights']} weights\n{machine['name']}, {machine['threads']} threads"


def _curves(points: Sequence[dict[str, Any]], name: str, report: dict[str, Any], folder: Path) -> str:
    figure, label = CURVES[name]
    canvas, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for clip_s in sorted({point["clip_s"] for point in points}):
        line = [point for point in points if point["clip_s"] == clip_s]
        line.sort(key=lambda point: point["batch"])
        axes.plot([point["batch"] for point in line], [point[figure] for point in line], "o-", label=f"{clip_s:g} s")
    batches = sorted({point["batch"] for point in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    if figure != "peak_gib":
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("clips at once")
    axes.set_ylabel(label)
    axes.set_title(_title(report), fontsize=9)
    axes.grid(alpha=0.3, which="both")
    axes.legend(title="clip", fontsize=8)
    return _save(canvas, folder / f"{name}.png")


def _pareto(variants: Sequence[dict[str, Any]], report: dict[str, Any], folder: Path) -> str:
    """Memory against latency; the published systems, on their own machine and by the contest's clock, in grey."""
    canvas, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    best = front(variants)
    axes.plot(*_places(best), "-", color="tab:green", alpha=0.6, label="none is better in both")
    scored = [variant for variant in variants if variant["score"] is not None]
    plain = [variant for variant in variants if variant["score"] is None]
    if plain:
        axes.scatter(*_places(plain), marker="o", facecolors="none", edgecolors="tab:blue", label="measured, no score")
    if scored:
        dots = axes.scatter(
            *_places(scored), c=[variant["score"] for variant in scored], cmap="viridis", label="scored"
        )
        canvas.colorbar(dots, ax=axes, label="score")
    rows = [row for row in published_rows() if row.latency_s and row.peak_gb]
    axes.scatter(
        [row.latency_s for row in rows], [row.peak_gb for row in rows], marker="s", color="grey",
        label="published, V100, contest's clock",
    )  # fmt: skip
    for variant in variants:
        _name(axes, variant["latency_s"], variant["memory_gib"], variant["name"], "tab:blue")
    for row in rows:
        _name(axes, row.latency_s, row.peak_gb, _published_name(row), "grey")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("latency: first token and one more, s")
    axes.set_ylabel("peak memory, loading included, GiB")
    axes.set_title(_title(report), fontsize=9)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    return _save(canvas, folder / "pareto.png")


def _published_name(row: Row) -> str:
    return row.system if row.wer is None else f"{row.system} (WER {row.wer:g} %)"


def _places(points: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return [point["latency_s"] for point in points], [point["memory_gib"] for point in points]


def _name(axes: Any, x: float, y: float, text: str, color: str) -> None:
    axes.annotate(text, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7, color=color)


def _save(canvas: Any, path: Path) -> str:
    canvas.savefig(path, dpi=DOTS_PER_INCH)
    plt.close(canvas)
    return path.name

"""Every system in one table, published and measured, ranked; memory and latency count double.

    python -m benchmarks.leaderboard [--out FILE]

Rows are the systems of configs/, the published figures (published.json) and the files under benchmarks/results. The
formula is ours (docs/leaderboard.md): a weighted geometric mean of how many times better a row is than the 3B baseline
on the same machine, measured by the same authors where they did. A row without all figures has no score and no rank; a
missing figure is a dash.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.suite import RESULTS, ROOT
from efficiency import report
from support import command_line
from support.command_line import UserError
from support.tables import format_table

BASELINE = "salmonn_3b"
WEIGHTS = {"asr": 1.0, "captions": 1.0, "memory": 2.0, "latency": 2.0}
"""Weight of each term."""
LIGHT = ("memory", "latency")
CAPTION_METRICS = ("SPIDEr", "CIDEr-D×100")
"""In this order; a figure is compared with the baseline's of the same metric only."""
PUBLISHED_AS = {"SALMONN-3B": "salmonn_3b", "SALMONN-7B": "salmonn_7b"}
"""Published name -> folder of configs, where they differ."""
NOT_SYSTEMS = ("architectures", "demo", "real", "three_encoders")
PARTS = ("whisper_path", "parakeet_path", "beats_path", "ced_path", "llama_path", "llm_path", "gemma_path", "qwen_path")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One system, by one source, on one machine."""

    system: str
    """Folder of configs, or the published name."""
    source: str
    """`published`, or the file of results and the way it ran."""
    device: str | None = None
    parts: str | None = None
    wer: float | None = None
    """Per cent."""
    captions: tuple[tuple[str, float], ...] = ()
    """Metric and value."""
    peak_gb: float | None = None
    """Loading included, in units of 2^30 bytes, as the contest's evaluator counts."""
    ttft_s: float | None = None
    """By the contest's clock, as all times here."""
    tpot_s: float | None = None
    latency_s: float | None = None
    """Both together: all that some systems published."""
    baseline: Row | None = None
    """The 3B baseline as the row's own authors measured it, where they did."""


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A row, its terms, scores and rank."""

    row: Row
    terms: dict[str, float]
    """Term -> times better than the baseline, for the terms that can be compared."""
    score: float | None
    """Of all terms; None where one is missing."""
    light: float | None
    """Of memory and latency alone; None where one of the two is missing."""
    rank: int | None

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(term for term in WEIGHTS if term not in self.terms)


def published_rows(path: Path = report.PUBLISHED) -> list[Row]:
    """The rows of a file in the form of published.json."""
    source = "published" if path == report.PUBLISHED else path.name
    return [_published_row(entry, source) for entry in report.published_rows(path)]


def _published_row(entry: dict[str, Any], source: str) -> Row:
    baseline = entry.get("baseline")
    if baseline is not None:
        named = {"name": BASELINE, "device": entry["device"], **baseline}
        baseline = _published_row(named, f"{source}, {entry['name']}")
    ttft, tpot, together = entry.get("ttft_s"), entry.get("tpot_s"), entry["ttft_plus_tpot_s"]
    if together is None and None not in (ttft, tpot):
        together = ttft + tpot
    return Row(
        system=PUBLISHED_AS.get(entry["name"], entry["name"]),
        source=source,
        device=entry["device"],
        parts=entry["parts"],
        wer=entry["asr"]["value"] if entry["asr"] and entry["asr"]["metric"] == "WER %" else None,
        captions=tuple((score["metric"], score["value"]) for score in entry["aac"]),
        peak_gb=entry["peak_gb"],
        ttft_s=ttft,
        tpot_s=tpot,
        latency_s=together,
        baseline=baseline,
    )


def result_rows(folder: Path = RESULTS) -> list[Row]:
    """The rows of a folder's files: of gpu_suite, of evaluate_efficiency, or in the form of published.json.

    Files of other benchmarks are ignored.
    """
    rows: list[Row] = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            continue
        if content.get("suite") == "gpu_suite":
            if content["shapes"].startswith("full"):
                rows += _suite_rows(content, path.name)
        elif "rows" in content and "about" in content:
            rows += published_rows(path)
        elif "contest_ttft_s" in content:
            system = Path(content["config"]["run"]["output_dir"]).name if "config" in content else path.stem
            rows.append(_measured(system, path.name, content["machine"]["name"], content))
    return rows


def _suite_rows(content: dict[str, Any], file: str) -> Iterable[Row]:
    for system, sides in content["systems"].items():
        for side in ("ours", "reference"):
            figures = sides.get(side)
            if figures and "error" not in figures:
                yield _measured(system, f"{file}, {side}", content["machine"]["name"], figures)


def _measured(system: str, source: str, device: str, figures: dict[str, Any]) -> Row:
    ttft, tpot = figures["contest_ttft_s"], figures["contest_tpot_s"]
    peak = figures.get("contest_peak_gib") or figures["peak_with_loading_gib"]
    return Row(
        system=system, source=source, device=device, peak_gb=peak, ttft_s=ttft, tpot_s=tpot, latency_s=ttft + tpot
    )


def config_rows(folder: Path = ROOT / "configs") -> list[Row]:
    """One a system that has a configuration, without figures."""
    rows = []
    for path in sorted(folder.iterdir()):
        file = path / "evaluate.yaml"
        if path.name in NOT_SYSTEMS or not file.exists():
            continue
        model = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]
        parts = [Path(str(model[key])).name for key in PARTS if model.get(key)]
        rows.append(Row(system=path.name, source="configs", parts=", ".join(parts)))
    return rows


def collect(rows: Sequence[Row], configured: Sequence[Row]) -> list[Row]:
    """All rows with figures, with their system's parts, and a row without any for each system that has none."""
    parts = {row.system: row.parts for row in configured}
    known = [row if row.parts else replace(row, parts=parts.get(row.system)) for row in rows]
    return known + [row for row in configured if row.system not in {other.system for other in rows}]


def baseline_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """The 3B baseline that the row's own authors measured; else the one on the row's machine: the reference model in
    the same file, else as published."""
    if row.baseline is not None:
        return row.baseline
    candidates = [other for other in rows if other.system == BASELINE and other.device == row.device]
    same_file = [other for other in candidates if other.source.partition(",")[0] == row.source.partition(",")[0]]
    reference = [other for other in same_file or candidates if other.source.endswith((", reference", "published"))]
    return reference[0] if reference else None


def terms_of(row: Row, baseline: Row | None, accuracy: Row | None) -> dict[str, float]:
    """Times better than the baseline, term by term. `accuracy` is the baseline of scores: no machine changes them."""
    terms: dict[str, float] = {}
    if accuracy is not None:
        if row.wer and accuracy.wer:
            terms["asr"] = accuracy.wer / row.wer
        theirs, ours = dict(accuracy.captions), dict(row.captions)
        shared = [metric for metric in CAPTION_METRICS if ours.get(metric) and theirs.get(metric)]
        if shared:
            terms["captions"] = ours[shared[0]] / theirs[shared[0]]
    if baseline is not None:
        if row.peak_gb and baseline.peak_gb:
            terms["memory"] = baseline.peak_gb / row.peak_gb
        if row.latency_s and baseline.latency_s:
            terms["latency"] = baseline.latency_s / row.latency_s
    return terms


def weighted_mean(terms: dict[str, float], wanted: Iterable[str]) -> float | None:
    """The weighted geometric mean of the wanted terms; None where one is missing."""
    wanted = list(wanted)
    if any(term not in terms for term in wanted):
        return None
    total = sum(WEIGHTS[term] for term in wanted)
    return math.exp(sum(WEIGHTS[term] * math.log(terms[term]) for term in wanted) / total)


def ranked(rows: Sequence[Row]) -> list[Ranked]:
    """Rows with a score first, best first; then those with memory and latency, lightest first; then the others."""
    accuracy = next((row for row in rows if row.system == BASELINE and row.source == "published"), None)
    found = []
    for row in rows:
        terms = terms_of(row, baseline_of(row, rows), row.baseline or accuracy)
        score, light = weighted_mean(terms, WEIGHTS), weighted_mean(terms, LIGHT)
        found.append(Ranked(row=row, terms=terms, score=score, light=light, rank=None))
    found.sort(key=lambda entry: (-(entry.score or 0.0), -(entry.light or 0.0), entry.row.system))
    return [replace(entry, rank=place + 1 if entry.score is not None else None) for place, entry in enumerate(found)]


def table(entries: Sequence[Ranked]) -> str:
    """Markdown; a dash is a figure that is missing."""

    def shown(value: float | None, digits: int) -> str | None:
        return None if value is None else f"{value:.{digits}f}"

    lines = []
    for entry in entries:
        row = entry.row
        together = row.ttft_s is None and row.latency_s is not None
        lines.append(
            [
                entry.rank,
                row.system,
                row.source,
                row.device,
                shown(row.wer, 2),
                "; ".join(f"{metric} {value:g}" for metric, value in row.captions) or None,
                shown(row.peak_gb, 2),
                f"{row.latency_s:.4f} with TPOT" if together else shown(row.ttft_s, 4),
                shown(row.tpot_s, 4),
                shown(entry.light, 2),
                shown(entry.score, 2),
                ", ".join(entry.missing) or None,
            ]
        )
    header = ["", "system", "source", "machine", "WER %", "captions", "peak GB", "TTFT s", "TPOT s"]
    return format_table([*header, "light", "score", "missing"], lines)


def work(arguments: argparse.Namespace) -> None:
    if not Path(arguments.results).is_dir():
        raise UserError(f"--results {arguments.results}: no such folder")
    rows = collect([*published_rows(), *result_rows(Path(arguments.results))], config_rows())
    entries = ranked(rows)
    print(table(entries))
    print(
        "\nscore, light: times better than the 3B baseline on the same machine, by the same authors where they "
        "measured it (docs/leaderboard.md); a formula of ours"
    )
    if arguments.out:
        content = {
            "formula": "weighted geometric mean of ratios to the baseline; ours, see docs/leaderboard.md",
            "weights": WEIGHTS,
            "baseline": BASELINE,
            "rows": [asdict(entry) | {"missing": entry.missing} for entry in entries],
        }
        Path(arguments.out).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.leaderboard", description="Rank every system, memory and latency counting double."
    )
    parser.add_argument("--results", default=str(RESULTS), help="folder of measured JSON files")
    parser.add_argument("--out", help="JSON file to write")
    return command_line.run(work, parser, argv)


if __name__ == "__main__":
    sys.exit(main())

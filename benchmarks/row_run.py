"""Rows measured one after another, each in a process of its own, and the report that grows with them.

Written after every row: the JSON with all figures, the tables next to it (`.md`), and, in `outputs/`, every clip's text
(CSV). What the processes answered is kept there as well, so that an interrupted run continues with `--keep`.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.metadata
import io
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.clip_sets import ClipSet
from benchmarks.row_scores import METRICS, Scorer, common
from benchmarks.rows import Row
from benchmarks.suite import ROOT, origin, run_apart, write_report
from configs.recorded import CONFIG_FILE
from scoring.intervals import LEVEL, RESAMPLES
from support import provenance
from support.command_line import UserError, number, require_writable
from support.files import write_json, write_whole

KEPT = ROOT / "outputs" / "benchmarks"
MANIFEST = "manifest.json"
PROGRAM = ("benchmarks", "configs", "data", "dataset.py", "efficiency", "evaluation", "models", "support")
"""What a row's answer depends on; it is scored anew."""
OTHER_PACKAGES = ("ctranslate2", "faster-whisper")
Runner = Callable[[Row], dict[str, Any]]


def add_arguments(result: argparse.ArgumentParser, out: Path) -> None:
    """What every command that measures rows takes."""
    result.add_argument(
        "--asr", nargs="+", action="extend", default=[], metavar="FILE", help="to transcribe; FILE or FILE:field=value"
    )
    result.add_argument(
        "--aac", nargs="+", action="extend", default=[], metavar="FILE", help="to caption; FILE or FILE:field=value"
    )
    result.add_argument(
        "--limit", type=number(int, 2), metavar="N", help="clips of each, drawn at random: a quick look"
    )
    result.add_argument("--batch", type=number(int, 1), metavar="N", help="clips at once (default: the adapter's)")
    result.add_argument(
        "--options", nargs="+", action="extend", default=[], metavar="section.key=value", help="over the adapter's YAML"
    )
    result.add_argument(
        "--timed-clips", type=number(int, 0), default=5, metavar="N", help="for TTFT and TPOT (default: 5; 0: none)"
    )
    result.add_argument("--rounds", type=number(int, 1), default=3, help="measurements of each of them (default: 3)")
    result.add_argument("--device", default="cpu", help="of every row (default: cpu)")
    result.add_argument("--keep", action="store_true", help="continue: rows that the same program has measured stay")
    result.add_argument("--out", type=Path, default=out, help="JSON to write (default: %(default)s)")


def require_adapter(folder: str) -> None:
    """Before any row: the folder is one that training wrote."""
    if not (Path(folder).expanduser() / CONFIG_FILE).is_file():
        raise UserError(
            f"--adapter {folder}: no {CONFIG_FILE} there; expected an adapter's folder, such as outputs/…/best"
        )


def command(module: str) -> str:
    """What this process was called with, as a line to repeat it."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


class RowRun:
    """One run: its rows so far, their figures, and the files they are written to.

    `base_of` names the row that a row's figure on a set of a family is divided by (None: no ratio). With `flips`, the
    texts are compared with that row's too.
    """

    def __init__(
        self,
        out: Path,
        about: Mapping[str, Any],
        sets: Sequence[ClipSet],
        base_of: Callable[[Row, str], str | None],
        *,
        device: str = "cpu",
        flips: bool = False,
        keep: bool = False,
        run: Runner | None = None,
    ) -> None:
        require_writable(str(out.parent), "--out")
        self.out, self.sets, self.base_of, self.flips, self.keep = out, list(sets), base_of, flips, keep
        self.texts_file = KEPT / f"{out.stem}.csv"
        require_writable(str(KEPT), "outputs")
        self._kept = KEPT / out.stem
        self._run = run or partial(run_apart, program="benchmarks.row_jobs")
        self._done: list[tuple[Row, dict[str, Any]]] = []
        self._scorer = Scorer()
        self._start = time.monotonic()
        about = {**about, "intervals": {"level": LEVEL, "resamples": RESAMPLES, "method": "bootstrap over clips"}}
        self.report: dict[str, Any] = {**about, **origin(device)}
        self.report["versions"] |= {package: _version(package) for package in OTHER_PACKAGES}
        self.report["sets"] = {row.name: _described(row) for row in self.sets}

    def measure(self, rows: Sequence[Row], shown: Callable[[RowRun], str]) -> None:
        """Measure row after row; `shown` makes the tables from the report so far."""
        for place, row in enumerate(rows, 1):
            self._say(f"row {place} of {len(rows)}, {row.name} …")
            self._done.append((row, self._result(row)))
            self.report["rows"] = self._entries()
            write_report(self.out, self.report)
            write_whole(self.out.with_suffix(".md"), shown(self) + "\n")
            self._write_texts()
            self._say(f"{row.name}: {in_words(self.report['rows'][-1])}")
        print("\n" + shown(self))
        self._say(f"written: {self.out}, {self.out.with_suffix('.md')}, {self.texts_file}")

    def left_out(self, name: str, kind: str, reason: str) -> None:
        """A row that is not measured, for the record."""
        self._done.append((Row(name=name, kind=kind, sets=()), {"left_out": reason}))

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._start:6.0f} s] {text}", flush=True)

    def _result(self, row: Row) -> dict[str, Any]:
        """The answer of the row's process, or one that is kept."""
        digest = _digest(row)
        file = self._kept / f"{digest}.json"
        if self.keep and file.is_file():
            self._say(f"{row.name}: kept from an earlier run")
            return json.loads(file.read_text(encoding="utf-8"))
        result = self._run(row)
        if "sets" in result:
            self._kept.mkdir(parents=True, exist_ok=True)
            write_json(file, result)
        return result

    def _entries(self) -> list[dict[str, Any]]:
        """Every row's part of the report."""
        texts = {row.name: _texts(result) for row, result in self._done}
        return [self._entry(row, result, texts) for row, result in self._done]

    def _entry(
        self, row: Row, result: dict[str, Any], texts: Mapping[str, dict[str, dict[str, str]]]
    ) -> dict[str, Any]:
        entry: dict[str, Any] = {"name": row.name, "kind": row.kind, "num_beams": row.num_beams}
        if "sets" not in result:
            return entry | result
        entry |= result["about"]
        entry |= {name: value for name, value in result.items() if name not in ("sets", "about", "times")}
        entry |= result["times"] or {"ttft_s": None, "tpot_s": None}
        audio_s = sum(part["audio_s"] for part in result["sets"].values())
        seconds = sum(part["seconds"] for part in result["sets"].values())
        entry["seconds_per_audio_second"] = seconds / audio_s if audio_s else None
        entry["sets"] = {}
        for clips in row.sets:
            base = self.base_of(row, clips.family)
            others = texts.get(base, {}).get(clips.name) if base not in (None, row.name) else None
            entry["sets"][clips.name] = self._figures(clips, result["sets"][clips.name], base, others)
        return entry

    def _figures(
        self, clips: ClipSet, answered: Mapping[str, Any], base: str | None, others: dict[str, str] | None
    ) -> dict[str, Any]:
        texts = answered["texts"]
        figures = {
            "metric": METRICS[clips.family],
            **asdict(self._scorer.figure(clips, texts)),
            "clips": len(clips.clips),
            "failed": len(answered["problems"]),
            "audio_s": answered["audio_s"],
            "seconds": answered["seconds"],
            "processor_s": answered["processor_s"],
        }
        if others is not None:
            shared = common(clips, texts, others)
            ratio = asdict(self._scorer.ratio(clips, texts, others))
            figures["ratio"] = {"to": base, "clips": len(shared.clips), **ratio}
            if self.flips:
                figures["flips"] = self._scorer.flips(clips, texts, others)
        return figures

    def _write_texts(self) -> None:
        """Every clip's text by every row."""
        content = io.StringIO(newline="")
        table = csv.writer(content)
        table.writerow(["row", "set", "clip", "reference", "hypothesis", "errors or score", "problem"])
        for row, result in self._done:
            for clips in row.sets if "sets" in result else ():
                answered = result["sets"][clips.name]
                scores = self._scorer.per_clip(clips, answered["texts"])
                for clip, score in zip(clips.clips, scores, strict=True):
                    text, problem = answered["texts"][clip.source], answered["problems"].get(clip.source)
                    table.writerow([row.name, clips.name, Path(clip.path).name, clip.text, text, score, problem])
        write_whole(self.texts_file, content.getvalue())


def in_words(entry: Mapping[str, Any]) -> str:
    """A row's figures in a line, or why there are none."""
    if "sets" not in entry:
        return entry.get("error") or f"left out: {entry['left_out']}"
    figures = [f"{name}: {shown_figure(row)}" for name, row in entry["sets"].items()]
    return f"{'; '.join(figures)}; {entry['seconds_per_audio_second']:.3f} s a second, {entry['peak_gib']:.2f} GiB"


def as_markdown(
    report: dict[str, Any],
    scores: Callable[[list[dict[str, Any]], str, dict[str, Any]], str],
    costs_title: str,
    costs: Callable[[list[dict[str, Any]]], str],
) -> str:
    """A report as Markdown: the measured rows' scores on each set of clips, their costs, and why others are missing."""
    measured = [row for row in report["rows"] if "sets" in row]
    parts = [origin_line(report)]
    for name, clips in report["sets"].items():
        parts.append(f"### {name}: {clips['clips']} of {clips['of']} clips\n\n{scores(measured, name, clips)}")
    parts.append(f"### {costs_title}\n\n{costs(measured)}")
    missing = [f"- {row['name']}: {in_words(row)}" for row in report["rows"] if "sets" not in row]
    return "\n\n".join([*parts, *(["\n".join(missing)] if missing else [])])


def origin_line(report: Mapping[str, Any]) -> str:
    """Above the tables: what gave them, of which commit, on what."""
    machine = report["machine"]
    about = f"Commit {report['commit']}; {machine['name']}, {machine['threads']} threads; 95 % intervals in brackets."
    return f"`{report['command']}`\n\n{about}"


def heading(figures: Mapping[str, Any]) -> str:
    """Of the column that `shown_figure` fills."""
    return {"wer": "WER, %", "cider_d": "CIDEr-D"}[figures["metric"]]


def shown_figure(figures: Mapping[str, Any]) -> str | None:
    """WER in percent, CIDEr-D as it is, with its interval."""
    if figures["metric"] == "wer":
        return shown_interval(figures, 100, "{:.1f}")
    return shown_interval(figures)


def shown_interval(interval: Mapping[str, Any] | None, times: float = 1.0, pattern: str = "{:.2f}") -> str | None:
    """`1.10 [1.02, 1.19]`; None where there is none, or where nothing is divided by nothing."""
    if interval is None or math.isnan(interval["value"]):
        return None
    value, low, high = (
        (pattern.format(times * interval[name])).replace("inf", "∞") for name in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


def shown_ratio(figures: Mapping[str, Any]) -> str | None:
    """The ratio of a row, and on how many clips where the other row has fewer."""
    ratio = figures.get("ratio")
    fewer = "" if ratio is None or ratio["clips"] == figures["clips"] else f" on {ratio['clips']} clips"
    shown = shown_interval(ratio)
    return None if shown is None else shown + fewer


def shown_number(value: float | None, pattern: str) -> str | None:
    return None if value is None or not math.isfinite(value) else pattern.format(value)


def _texts(result: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    return {name: part["texts"] for name, part in result.get("sets", {}).items()}


def _described(clips: ClipSet) -> dict[str, Any]:
    return {"given": clips.given, "family": clips.family, "clips": len(clips.clips), "of": clips.of}


def _digest(row: Row) -> str:
    """Of what a row's answer depends on: the row, the program, and the adapter's content."""
    manifest = Path(row.adapter) / MANIFEST if row.adapter else None
    content = manifest.read_text(encoding="utf-8") if manifest and manifest.is_file() else ""
    return hashlib.sha256(f"{row!r}\n{provenance.source_digest(PROGRAM)}\n{content}".encode()).hexdigest()[:16]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

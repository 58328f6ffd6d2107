"""Rows with real weights, on a tiny system: every kind, the same texts as evaluate.py, what is kept and left out."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import evaluate
import metrics
from benchmarks import row_run, with_weights
from benchmarks.clip_sets import read_sets
from benchmarks.ctranslate2_rows import in_windows, joined
from benchmarks.row_jobs import run_row
from benchmarks.rows import LeftOut, Row
from benchmarks.suite import run_apart
from benchmarks.whisper_rows import OwnDecoder
from data.audio import load_waveform
from models.build import load_model
from models.sizes import part_sizes
from tests.benchmarks.conftest import Trained


def measured(trained: Trained, out: Path, *arguments: str, run: Any = run_row) -> dict[str, Any]:
    """The report of a run in this process, quick unless `arguments` say otherwise."""
    given = ["--adapter", str(trained.adapter), "--asr", str(trained.project.test_asr), "--timed-clips", "1"]
    assert with_weights.main([*given, "--rounds", "1", "--out", str(out), *arguments], run_row=run) == 0
    return json.loads(out.read_text(encoding="utf-8"))


def test_every_row(trained: Trained, tmp_path: Path, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.json"
    report = measured(trained, out, "--aac", str(trained.project.test_aac), "--control-clips", "3")
    rows = {row["name"]: row for row in report["rows"]}
    whisper, system = "whisper alone, greedy", "adapter"
    assert list(rows) == [
        whisper, "whisper alone, 5 beams", system, "adapter, CTC path without the language model",
        "adapter, swapped audio", "adapter, untrained connector",
    ]  # fmt: skip
    assert "no alignment head" in rows.pop("adapter, CTC path without the language model")["left_out"]
    asr, aac = "corpus/test_asr", "corpus/test_aac"
    assert report["sets"][asr] == {"given": str(trained.project.test_asr), "family": "asr", "clips": 5, "of": 5}
    for row in rows.values():
        figures = row["sets"][asr]
        assert figures["metric"] == "wer" and figures["low"] <= figures["value"] <= figures["high"]
        assert row["peak_gib"] >= row["before_load_gib"] > 0 and row["seconds_per_audio_second"] > 0
    assert (
        asr in rows[whisper]["sets"] and aac not in rows[whisper]["sets"] and "ratio" not in rows[whisper]["sets"][asr]
    )
    ratio = rows[system]["sets"][asr]["ratio"]
    assert ratio["to"] == whisper
    assert ratio["value"] == pytest.approx(rows[system]["sets"][asr]["value"] / rows[whisper]["sets"][asr]["value"])
    assert rows[system]["sets"][aac]["ratio"]["to"] == "adapter, swapped audio"
    assert rows[system]["sets"][aac]["ratio"]["clips"] == 3 and ratio["clips"] == 5
    assert rows["adapter, swapped audio"]["sets"][asr]["clips"] == 3 and rows[system]["sets"][asr]["clips"] == 5
    for name in (whisper, "whisper alone, 5 beams", system):
        assert rows[name]["ttft_s"] > 0 and rows[name]["timed_clips"] == 1
    assert rows[system]["tpot_s"] > 0 and rows["adapter, untrained connector"]["ttft_s"] is None
    assert report["commit"] and report["versions"]["torch"] and report["command"].startswith("python -m benchmarks.")
    printed = capsys.readouterr().out
    written = out.with_suffix(".md").read_text(encoding="utf-8")
    assert written.strip() in printed and "### Time and memory" in written and "(3 clips)" in written
    with (kept / "rows.csv").open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["row"] == system and line["set"] == asr]
    errors = metrics.wer([line["reference"] for line in lines], [line["hypothesis"] for line in lines])
    assert rows[system]["sets"][asr]["value"] == pytest.approx(errors.wer)
    assert sum(float(line["errors or score"]) for line in lines) == errors.errors


def test_the_system_is_what_evaluate_gives(trained: Trained, tmp_path: Path) -> None:
    project = trained.project
    arguments = ["--cfg-path", str(project.config), "--ckpt", str(trained.adapter), "--mode", "submission_asr"]
    assert evaluate.main([*arguments, "--options", f"run.output_dir={tmp_path}"]) == 0
    lines = (tmp_path / "eval" / "submission_asr" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    sets = tuple(read_sets([str(project.test_asr)], []))
    for batch in (None, 1):
        answered = run_row(Row(name="ours", kind="system", sets=sets, adapter=str(trained.adapter), batch=batch))
        texts = answered["sets"][sets[0].name]["texts"]
        assert [texts[clip.source] for clip in sets[0].clips] == [json.loads(line)["hypothesis"] for line in lines]


@pytest.mark.slow
def test_a_row_in_a_process_of_its_own(trained: Trained) -> None:
    sets = tuple(read_sets([str(trained.project.test_asr)], []))
    row = Row(name="ours", kind="ctc", sets=sets, adapter=str(trained.adapter))
    assert "no alignment head" in run_apart(row, program="benchmarks.row_jobs")["left_out"]


def test_the_ctc_path_is_that_of_the_whole_model(trained: Trained) -> None:
    (clips,) = read_sets([str(trained.project.test_asr)], [])
    model = load_model(trained.aligned, "cpu")
    waves = [load_waveform(clip.path) for clip in clips.clips]
    expected = [model.ctc_texts(wave[None], torch.tensor([len(wave)]))[0] for wave in waves]
    assert any(expected)
    for batch in (1, 4):
        row = Row(name="c", kind="ctc", sets=(clips,), timed=clips.clips[:1], adapter=str(trained.aligned), batch=batch)
        answered = run_row(row)
        assert [answered["sets"][clips.name]["texts"][clip.source] for clip in clips.clips] == expected
        assert answered["times"]["ttft_s"] > 0 and answered["times"]["tpot_s"] is None
        assert answered["sets"][clips.name]["audio_s"] == pytest.approx(sum(map(len, waves)) / 16_000)
        layers = sum(parameter.nbytes for parameter in model.llm.model.get_decoder().layers.parameters())
        assert answered["about"]["bytes"]["total"] < sum(row.bytes for row in part_sizes(model)[:-1]) - layers // 2


def test_a_clip_that_cannot_be_read_counts_with_an_empty_text(trained: Trained, tmp_path: Path) -> None:
    entries = json.loads(trained.project.test_asr.read_text())["annotation"]
    for entry in entries:
        entry["path"] = str(trained.project.test_asr.parent / entry["path"])
    (tmp_path / "broken.wav").write_text("no sound")
    entries[0]["path"] = str(tmp_path / "broken.wav")
    (tmp_path / "some.json").write_text(json.dumps(entries))
    (clips,) = read_sets([str(tmp_path / "some.json")], [])
    whisper = str(trained.project.whisper)
    for row in (
        Row(name="whisper", kind="whisper", sets=(clips,), whisper=whisper, batch=2),
        Row(name="ours", kind="system", sets=(clips,), adapter=str(trained.adapter)),
    ):
        answered = run_row(row)["sets"][clips.name]
        assert answered["texts"][clips.clips[0].source] == "" and len(answered["texts"]) == 5
        (problem,) = answered["problems"].values()
        assert problem


def test_rows_of_an_interrupted_run_stay(trained: Trained, tmp_path: Path, kept: Path) -> None:
    asked: list[str] = []

    def once(row: Row) -> dict[str, Any]:
        asked.append(row.name)
        return run_row(row)

    options = ("--rows", "whisper", "--limit", "3")
    first = measured(trained, tmp_path / "rows.json", *options, run=once)
    again = measured(trained, tmp_path / "rows.json", *options, "--keep", run=once)
    assert len(asked) == 2 and again["rows"] == first["rows"]
    measured(trained, tmp_path / "rows.json", "--rows", "whisper", "--limit", "4", "--keep", run=once)
    assert len(asked) == 4


def test_a_row_that_fails_says_why(trained: Trained, tmp_path: Path, kept: Path) -> None:
    def fails(row: Row) -> dict[str, Any]:
        return (
            {"error": "its process ended with status -9 and no result (memory?)"}
            if row.num_beams == 5
            else run_row(row)
        )

    report = measured(trained, tmp_path / "rows.json", "--rows", "whisper", run=fails)
    assert "memory?" in report["rows"][1]["error"]
    assert "5 beams: its process ended" in (tmp_path / "rows.md").read_text(encoding="utf-8")


def test_long_clips_are_windows_of_30_s() -> None:
    waves = [torch.arange(5.0), torch.arange(12.0), torch.arange(1.0)]
    windows, owners = in_windows(waves, 5)
    assert [len(window) for window in windows] == [5, 5, 5, 2, 1] and owners == [0, 1, 1, 1, 2]
    assert joined([" a", " b", " c", "d", ""], owners, 3) == ["a", "b c d", ""]


def test_whisper_without_a_tokenizer_is_left_out(shared_tiny_project: Any) -> None:
    row = Row(name="w", kind="whisper", sets=(), whisper=str(shared_tiny_project.whisper))
    assert "tokenizer" in run_row(row)["left_out"]


def test_whisper_alone_is_the_librarys_generate(trained: Trained) -> None:
    (clips,) = read_sets([str(trained.project.test_asr)], [])
    together = {}
    for batch in (1, 4):
        row = Row(name="w", kind="whisper", sets=(clips,), whisper=str(trained.project.whisper), batch=batch)
        together[batch] = OwnDecoder(row).answer(clips).texts
    assert together[1] == together[4]


def test_faster_whisper_where_it_is_installed(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package: what it is called with, and how its times are taken."""
    calls: list[dict[str, Any]] = []

    class WhisperModel:
        def __init__(self, folder: str, **options: Any) -> None:
            assert folder == "converted" and options["compute_type"] == "int8"

        def transcribe(self, samples: np.ndarray, **options: Any) -> tuple[Any, None]:
            assert samples.dtype == np.float32
            calls.append(options)
            tokens = [7] * (options.get("max_new_tokens") or 3)
            return iter([SimpleNamespace(text=" one ", tokens=tokens), SimpleNamespace(text=" two", tokens=[])]), None

    package = ModuleType("faster_whisper")
    package.WhisperModel = WhisperModel
    monkeypatch.setitem(sys.modules, "faster_whisper", package)
    (clips,) = read_sets([str(trained.project.test_asr)], [])
    row = Row(
        name="f", kind="faster_whisper", sets=(clips,), timed=clips.clips[:1], whisper="converted", compute_type="int8",
        num_beams=5,
    )  # fmt: skip
    answered = run_row(row)
    assert set(answered["sets"][clips.name]["texts"].values()) == {"one two"}
    assert calls[0] == {"language": "en", "beam_size": 5} and answered["times"]["ttft_s"] > 0
    assert {call.get("max_new_tokens") for call in calls} == {None, 1}


def test_faster_whisper_where_it_is_not(monkeypatch: pytest.MonkeyPatch, trained: Trained) -> None:
    for kind, package in (("faster_whisper", "faster_whisper"), ("ctranslate2", "ctranslate2")):
        monkeypatch.setitem(sys.modules, package, None)
        row = Row(name="f", kind=kind, sets=(), whisper="folder", features=str(trained.project.whisper))
        assert "cannot be imported" in run_row(row)["left_out"]
    assert issubclass(LeftOut, Exception)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--adapter", "nowhere", "--asr", "x.json"], "--adapter nowhere: no config.yaml there"),
        (["--adapter", "ADAPTER"], "no clips to measure on"),
        (["--adapter", "ADAPTER", "--aac", "ASR"], "no clip for --aac; its tasks are asr"),
        (["--adapter", "ADAPTER", "--aac", "AAC", "--rows", "whisper"], "none of them has a clip"),
    ],
)
def test_mistakes(
    trained: Trained, capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str, tmp_path: Path
) -> None:
    project = trained.project
    named = {"ADAPTER": str(trained.adapter), "ASR": str(project.test_asr), "AAC": str(project.test_aac)}
    given = [named.get(word, word) for word in arguments]
    assert with_weights.main([*given, "--out", str(tmp_path / "x.json")]) == 1
    assert problem in capsys.readouterr().err


def test_numbers_in_words() -> None:
    assert row_run.shown_interval({"value": 0.051, "low": 0.04, "high": float("inf")}, 100, "{:.1f}") == "5.1 [4.0, ∞]"
    assert row_run.shown_interval({"value": float("nan"), "low": 0.0, "high": 1.0}) is None
    ratio = {"value": 2.0, "low": 1.0, "high": 3.0, "clips": 3}
    assert row_run.shown_ratio({"clips": 5, "ratio": ratio}) == "2.00 [1.00, 3.00] on 3 clips"
    assert row_run.shown_ratio({"clips": 3, "ratio": ratio}) == "2.00 [1.00, 3.00]"
    assert row_run.shown_ratio({"clips": 3}) is None
    assert row_run.shown_number(None, "{:.1f}") is None and row_run.shown_number(float("inf"), "{:.1f}") is None

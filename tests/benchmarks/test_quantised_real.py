"""What quantisation costs, on a tiny system: rows against float32, what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import quantised_real
from benchmarks.clip_sets import read_sets
from benchmarks.gptq_weights import write_gptq
from benchmarks.row_jobs import run_row
from benchmarks.row_scores import Scorer
from configs.recorded import CONFIG_FILE
from configs.schema import load_config
from tests.benchmarks.conftest import Trained

ROWS = ["float32", "bfloat16", "gptq, packed", "torchao_int4", "encoders int8"]


def test_rows_against_float32(trained: Trained, tmp_path: Path, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "q.json"
    given = ["--adapter", str(trained.adapter), "--asr", str(trained.project.test_asr), "--out", str(out)]
    arguments = [*given, "--timed-clips", "1", "--rounds", "1", "--rows", *ROWS]
    assert quantised_real.main(arguments, run_row=run_row) == 0
    report = json.loads(out.read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in report["rows"]}
    assert set(rows) == set(ROWS)
    assert "--gptq names no folder" in rows["gptq, packed"]["left_out"] and "cuda" in rows["torchao_int4"]["left_out"]
    exact, half, encoders = (rows[name] for name in ("float32", "bfloat16", "encoders int8"))
    assert "flips" not in exact["sets"]["corpus/test_asr"]
    figures = half["sets"]["corpus/test_asr"]
    assert figures["ratio"]["to"] == "float32" and 0 <= figures["flips"]["texts"]["value"] <= 1
    assert 2 * half["bytes"]["llm"] == pytest.approx(exact["bytes"]["llm"], rel=0.05)
    assert (
        encoders["bytes"]["whisper"] < exact["bytes"]["whisper"] and encoders["bytes"]["llm"] == exact["bytes"]["llm"]
    )
    written = out.with_suffix(".md").read_text(encoding="utf-8")
    assert written.strip() in capsys.readouterr().out
    assert "texts that change" in written and "### Bytes and times" in written and "- torchao_int4: left out" in written


def test_flips_are_of_texts_and_of_words(trained: Trained) -> None:
    (clips,) = read_sets([str(trained.project.test_asr)], [])
    sources = [clip.source for clip in clips.clips]
    before = dict(zip(sources, ["the cat", "red fish", "three", "", "four"], strict=True))
    after = before | {sources[0]: "the hat", sources[1]: "Red fish."}
    flips = Scorer().flips(clips, after, before)
    assert flips["texts"]["value"] == 0.4 and flips["words"]["value"] == pytest.approx(1 / 6)


def test_a_folder_of_gptq(trained: Trained, tmp_path: Path, kept: Path) -> None:
    folder = write_gptq(trained.project.llm, tmp_path / "gptq", group_size=32)
    out, name = tmp_path / "q.json", "gptq, dequantize"
    given = ["--adapter", str(trained.adapter), "--asr", str(trained.project.test_asr), "--out", str(out)]
    arguments = [*given, "--gptq", str(folder), "--limit", "2", "--timed-clips", "0", "--rows", name]
    assert quantised_real.main(arguments, run_row=run_row) == 0
    exact, rounded = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert (exact["name"], rounded["name"]) == ("float32", name) and rounded["kernel"].startswith(
        "gptq: 4 bits unpacked"
    )
    assert rounded["bytes"]["llm"] < exact["bytes"]["llm"] and rounded["ttft_s"] is None


@pytest.mark.parametrize("name", quantised_real.CHOICES)
def test_every_choice_is_a_configuration(trained: Trained, name: str) -> None:
    options = [*quantised_real.PLAIN, *quantised_real.CHOICES[name].options, "model.allow_slow_kernels=true"]
    assert load_config(trained.adapter / CONFIG_FILE, options).model.allow_slow_kernels


def test_a_folder_that_is_none(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--adapter", str(trained.adapter), "--asr", str(trained.project.test_asr), "--gptq", str(tmp_path)]
    assert quantised_real.main([*given, "--out", str(tmp_path / "q.json")]) == 1
    assert "expected a folder that tools.quantize wrote" in capsys.readouterr().err

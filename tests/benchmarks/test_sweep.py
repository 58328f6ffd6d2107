"""The sweep at small shapes: every axis, tables, pictures, scores; what is left out and what fails says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import jobs, plots, sweep
from benchmarks.cpu_comparison import write_clips
from benchmarks.suite import MODEL, SMALL, Job
from tests.tiny import TinyProject

PNG = b"\x89PNG"
BACK_ENDS = [("float32", {"dtype": "float32"}), ("gptq", {"quantization": "gptq", "dtype": "bfloat16"})]
ENCODERS = [("as configured", {}), ("Whisper alone", {"beats_path": ""})]


def here(job: Job, *, timeout_s: float | None = None) -> dict[str, Any]:
    return jobs.run_job(job)


def test_every_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sweep, "back_end_variants", lambda *_: [*BACK_ENDS, ("broken", {"llama_path": "nobody/none"})])
    monkeypatch.setattr(sweep, "encoder_variants", lambda *_: ENCODERS)
    assert sweep.main(["--small", "--device", "cpu", "--out", str(tmp_path)], run=here) == 0
    report = json.loads((tmp_path / "sweep.json").read_text())
    points = report["grid"]["points"]
    assert [(point["batch"], point["clip_s"]) for point in points] == [(1, 0.5), (1, 1.0), (2, 0.5), (2, 1.0)]
    for point in points:
        assert point["tokens_per_s"] == pytest.approx(point["batch"] / point["tpot_s"]) and point["peak_gib"] > 0
    assert report["back_ends"]["gptq"]["kernel"].startswith("gptq") and "error" in report["back_ends"]["broken"]
    assert set(report["encoders"]) == {"as configured", "Whisper alone"}
    written = (tmp_path / "sweep.md").read_text()
    assert written in capsys.readouterr().out and "| gptq " in written and "## Encoders" in written
    for name in ("ttft", "tpot", "memory", "pareto"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)


def test_points_that_take_too_long_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def point(model: Any, job: Job, memory: Any, batch: int, clip_s: float) -> dict[str, Any]:
        return {"ttft_s": 1.0, "tpot_s": 1.0, "peak_gib": 1.0, "took_s": 2.0 * batch * clip_s}

    monkeypatch.setattr(jobs, "_point", point)
    job = Job(name="", side="ours", task="grid", config=MODEL, batches=(1, 4, 2), clips_s=(1.0, 10.0), point_s=25.0)
    points = jobs._grid(None, job, None)["points"]
    assert [(row["batch"], row["clip_s"]) for row in points if "left_out" in row] == [(2, 10.0), (4, 10.0)]
    assert points[-1]["left_out"] == "it would take about 80 s"


def test_the_front_holds_what_nothing_beats() -> None:
    points = [
        {"name": name, "memory_gib": memory, "latency_s": latency}
        for name, memory, latency in (
            ("a", 1.0, 5.0),
            ("b", 2.0, 6.0),
            ("c", 3.0, 1.0),
            ("d", 3.0, 2.0),
            ("e", 9.0, 0.5),
        )
    ]
    assert [point["name"] for point in plots.front(points)] == ["a", "c", "e"]


def test_trained_models_are_scored(
    shared_tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "encoder_variants", lambda *_: ENCODERS)
    annotations = write_clips(tmp_path / "clips", SMALL)
    arguments = ["--small", "--device", "cpu", "--out", str(tmp_path / "out"), "--axes", "encoders", "--trained"]
    arguments += ["--cfg-path", str(shared_tiny_project.config), "--annotations", str(annotations)]
    arguments += ["--options", "model.dtype=bfloat16"]
    assert sweep.main(arguments, run=here) == 0
    rows = json.loads((tmp_path / "out" / "sweep.json").read_text())["encoders"]
    score = rows["as configured"]["scores"]["asr"]
    assert "bfloat16" in rows["as configured"]["kernel"]
    assert score["metric"] == "wer" and score["clips"] == 2 and score["value"] >= 0
    assert "leave --trained out" in rows["Whisper alone"]["error"]
    assert "asr wer" in (tmp_path / "out" / "sweep.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--trained"], "--trained needs --cfg-path"),
        (["--options", "model.dtype=bfloat16"], "--options needs --cfg-path"),
        (["--annotations", "x.json"], "--annotations needs --trained"),
        (["--batches", "0"], "expected 1 or more"),
    ],
)
def test_arguments_that_do_not_go_together(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep.main(["--out", "x", *arguments]) == 1
    assert problem in capsys.readouterr().err


def test_the_variants_cover_the_table() -> None:
    names = [name for name, _ in sweep.back_end_variants("cpu")]
    assert {"float32", "bfloat16", "gptq", "bfloat16, encoders int8"} <= set(names)
    assert {"as configured", "Whisper alone", "CED-small for BEATs"} <= {
        name for name, _ in sweep.encoder_variants(MODEL)
    }

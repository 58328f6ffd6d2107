"""The demo's driver on a tiny project: every step runs, the summary has its keys, and the table shows them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import TinyProject
from tools import demo


@pytest.mark.slow
def test_whole_path_on_a_tiny_project(
    tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    second = tiny_project.config.with_name("second.yaml")
    shutil.copy(tiny_project.config, second)
    recipe = demo.Recipe(name="tiny", stages=(str(tiny_project.config), str(second)))
    monkeypatch.setitem(demo.RECIPES, "tiny", recipe)
    output = tmp_path / "out"
    stale = output / "tiny" / "checkpoint_000001"
    stale.mkdir(parents=True)  # of an earlier run: a demo starts from scratch
    monkeypatch.chdir(demo.ROOT)

    quantised = ["--options", "model.quantization=nf4", "model.allow_slow_kernels=true"]
    assert demo.main(["--recipe", "tiny", "--short", "--output", str(output), *quantised]) == 0

    summary = json.loads((output / "summary.json").read_text())
    assert set(summary["asr"]) == {"wer", "wer_swapped", "wer_untrained"}
    assert set(summary["aac"]) == {"cider_d", "cider_d_swapped", "cider_d_untrained"}
    assert all(isinstance(value, float) for task in ("asr", "aac") for value in summary[task].values())
    assert {"ttft_s", "tpot_s", "peak_gib"} <= set(summary["efficiency"])
    assert list(summary["precisions"]) == ["nf4", "float32"]
    nf4, float32 = summary["precisions"].values()
    assert nf4["wer"] == summary["asr"]["wer"] and nf4["ttft_s"] == summary["efficiency"]["ttft_s"]
    assert isinstance(float32["wer"], float) and isinstance(float32["cider_d"], float)
    assert nf4["kernel"].startswith("nf4: ") and float32["kernel"].startswith("none: ")
    assert nf4["lora"] == "next to the weights" and float32["lora"] == "merged into the weights"
    saved = float32["llm_bytes"] - nf4["llm_bytes"]
    assert saved > 0 and float32["model_bytes"] - nf4["model_bytes"] == saved
    assert 0 < sum(summary["seconds_by_step"].values()) <= summary["seconds"] + 1
    for place in summary["files"].values():
        assert Path(place).exists(), place
    assert not stale.exists()
    assert (output / "eval" / "submission_asr" / "submission.csv").is_file()
    printed = capsys.readouterr().out
    assert printed.index("| figure") < printed.index("| one adapter") < printed.index("summary.json")
    assert str(output / "second") in printed


@pytest.mark.parametrize("arguments", [[], ["--recipe", "real", "--prefix", "recordings"]])
def test_it_may_be_started_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """The recipe's files are found, and what the user names, or is given to read, stays where the user is."""
    started: list[demo.Run] = []

    def started_in(run: demo.Run) -> None:
        assert Path.cwd() == demo.ROOT and Path(run.recipe.stages[0]).is_file()
        started.append(run)
        raise SystemExit(0)

    monkeypatch.setattr(demo, "make_corpus", started_in)
    monkeypatch.setattr(demo, "require_recordings", lambda run, prefix: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        demo.main([*arguments, "--output", "mine"])
    assert started[0].output == tmp_path / "mine" and started[0].output.is_dir()
    prefix = tmp_path / ("recordings" if arguments else "mine/corpus")
    assert f"datasets.prefix={prefix}" in started[0].overrides
    assert f"continuing in {demo.ROOT}" in capsys.readouterr().out


def test_a_failing_step_ends_the_run(tmp_path: Path) -> None:
    run = demo.Run(recipe=demo.RECIPES["demo"], output=tmp_path, overrides=(), short=True)
    with pytest.raises(SystemExit, match=r"corpus.*status 3"):
        run.step("corpus", lambda: 3)


def test_real_recordings_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo.main(["--recipe", "real"])
    assert "--prefix" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["folder", "annotations", "weights"])
def test_what_is_missing_is_one_sentence_and_nothing_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    monkeypatch.chdir(demo.ROOT)
    (tmp_path / "empty").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "summary.json").write_text("of an earlier run")
    prefix = tmp_path / ("nowhere" if missing == "folder" else "empty")
    arguments = ["--recipe", "real", "--prefix", str(prefix), "--short", "--output", str(tmp_path / "out")]
    options = ["--options", "model.llama_path=nowhere/llm.bin/x"] if missing == "weights" else []
    assert demo.main([*arguments, *options]) == 1
    out, err = capsys.readouterr()
    expected = {
        "folder": f"--prefix {prefix}: no such folder",
        "annotations": "train_ann_path",
        "weights": "llama_path",
    }
    assert out == "" and err.startswith("error: ") and expected[missing] in err and "Traceback" not in err
    assert missing != "folder" or err.count("\n") == 1  # what is missing below it is listed, one a line
    assert (tmp_path / "out" / "summary.json").read_text() == "of an earlier run"


@pytest.mark.slow
def test_a_step_of_several_processes_fails_without_the_launchers_trace(tmp_path: Path) -> None:
    words = ["--nproc-per-node", "2", "train.py", "--cfg-path", "absent.yaml"]
    command = [sys.executable, "-m", "tools.launch", "--standalone", *words]
    done = subprocess.run(command, cwd=demo.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "absent.yaml: no such file" in done.stderr
    assert "Traceback" not in done.stderr and "ChildFailedError" not in done.stderr


@pytest.mark.parametrize("backend", ["none", "gptq"])
def test_without_two_precisions_there_is_nothing_to_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """Neither an unquantised recipe nor a folder that holds nothing but quantised weights is measured twice."""
    measured = []
    report = {"ttft_s": 1.0, "tpot_s": 2.0, "peak_gib": 3.0, "rtfx": 4.0}
    monkeypatch.setattr(demo, "measure_efficiency", lambda *arguments: measured.append(arguments) or report)
    run = demo.Run(
        recipe=demo.RECIPES["demo"], output=tmp_path, overrides=(f"model.quantization={backend}",), short=True
    )
    demo.measure_trained(run, tmp_path)
    assert len(measured) == 1 and run.efficiency == report and run.precisions == {}
    assert "one adapter" not in demo.table(run)


def test_quantised_and_float32_weights_stand_side_by_side(tmp_path: Path) -> None:
    run = demo.Run(recipe=demo.RECIPES["demo"], output=tmp_path, overrides=(), short=False)
    figures = {"wer": 0.05, "cider_d": None, "ttft_s": 0.08, "tpot_s": 0.002, "peak_gib": 0.5, "lora": "none"}
    for backend, kernel, size in (("nf4", "nf4: unpacked, cpu, 14 layers", 10), ("float32", "none: torch, cpu", 80)):
        run.precisions[backend] = {**figures, "llm_bytes": size, "model_bytes": 100 + size, "kernel": kernel}
    shown = demo.table(run)
    for line in ("| nf4 ", "| float32", "nf4: unpacked", "none: torch", "| 10 ", "| 180 ", "fewer bits save little"):
        assert line in shown, line
    run.precisions["nf4"]["kernel"] = "nf4: fused, cuda, 14 layers"
    assert "fewer bits save little" not in demo.precision_table(run)


def test_missing_figures_are_shown_as_missing(tmp_path: Path) -> None:
    run = demo.Run(recipe=demo.RECIPES["demo"], output=tmp_path, overrides=(), short=False)
    run.scores["asr"] = {"wer": 0.03125, "wer_swapped": None}
    line = next(line for line in demo.table(run).splitlines() if "WER" in line)
    assert "0.0312" in line and line.count("–") == 2

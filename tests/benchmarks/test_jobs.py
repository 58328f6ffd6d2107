"""The comparisons run at small shapes: both sides, every part, and what is said where one fails."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import against_reference, cpu_comparison, gptq_weights, gpu_suite, leaderboard, suite, sweep
from benchmarks.jobs import run_job
from benchmarks.suite import Job, Suite, run_apart
from benchmarks.weights import write_weights
from models.quantization.gptq import GPTQLinear, GPTQSettings
from tests.quantized import dequantized_weight


def here(job: Job, *, timeout_s: float | None = None) -> dict[str, Any]:
    """In this process: a new one would spend seconds on imports alone."""
    return run_job(job)


def test_every_ratio_of_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_comparison, "back_ends", lambda: ["gptq"])
    out = tmp_path / "out.json"
    comparison = Suite(out, {}, cpu_comparison.SIZE, small=True, run_job=here)
    cpu_comparison.compare(comparison, cpu_comparison.PARTS, tmp_path / "weights")
    report = json.loads(out.read_text())
    names = [name for name in report["behind"] if name != "ttft_ratio_bf16"]
    assert len(names) == 7
    for name in (*names, "ttft_ratio_bf16"):
        slow, fast = (value for key, value in report["behind"][name].items() if key != "figure")
        assert report[name] == pytest.approx(slow / fast) and report[name] > 0
    reference, ours = report["runs"]["reference_fp32"], report["runs"]["ours_fp32"]
    assert ours["lora_merged"] and not reference["lora_merged"]
    assert sum(reference["ttft_parts_s"].values()) == pytest.approx(reference["ttft_s"])
    assert reference["contest_ttft_s"] < reference["ttft_s"]
    assert "tpot_s" in ours["limits"]["figures"]
    assert {"ours_gptq", "ours_light"} <= set(report["runs"])
    assert report["runs"]["ours_evaluation"]["clips"] == report["runs"]["reference_evaluation"]["clips"] == 2

    def never(job: Job, *, timeout_s: float | None = None) -> dict[str, Any]:
        raise AssertionError(job.name)

    again = Suite(out, {}, cpu_comparison.SIZE, small=True, run_job=never)
    kept = cpu_comparison.compare(again, ["latency"], tmp_path / "weights", keep=True)
    assert kept["ttft_ratio_fp32"] == report["ttft_ratio_fp32"]


def test_the_command_prints_the_ratios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--small", "--parts", "training", "--batch", "1", "--out", str(tmp_path / "out.json")]
    assert against_reference.main(arguments, run=here) == 0
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if "_ratio" in line)
    report = json.loads((tmp_path / "out.json").read_text())
    assert printed.keys() == report["behind"].keys() and printed["ttft_ratio_fp32"] == "–"
    assert printed["training_ratio"] == f"{report['training_ratio']:.2f}"
    assert report["size"]["evaluation_batch"] == 1 and report["machine"]["name"] and report["versions"]["torch"]


def test_what_was_not_run_is_null_with_a_reason() -> None:
    ratios = cpu_comparison.ratios_of({"reference_fp32": {"ttft_s": 2.0}, "ours_bf16": {"error": "killed"}})
    assert ratios["ttft_ratio_bf16"] is None and ratios["behind"]["ttft_ratio_bf16"]["reason"] == "ours_bf16: killed"
    assert ratios["training_ratio"] is None
    assert ratios["behind"]["training_ratio"]["reason"] == "reference_training: not run; ours_training: not run"


def test_a_process_of_its_own(tmp_path: Path) -> None:
    """One that fails: the error comes back, in the words of the program."""
    config = write_weights(suite.MODEL, tmp_path, small=True)
    config = dataclasses.replace(config, quantization="int8")
    result = run_apart(Job(config=config, name="reference", side="reference", task="latency"))
    assert result == {"error": "UserError: the reference model has no quantisation 'int8', only nf4"}
    job = Job(config=config, name="x", side="ours", task="latency")
    assert "stopped after 0 s" in run_apart(job, timeout_s=0.01)["error"]


def test_the_suite_at_small_shapes_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "suite.json"
    arguments = ["--small", "--device", "cpu", "--systems", "nlp07", "cv16", "nowhere", "--out", str(out)]
    assert gpu_suite.main(arguments, run=here) == 0
    report = json.loads(out.read_text())
    assert report["systems"]["nowhere"] == {"skipped": "configs/nowhere/evaluate.yaml does not exist"}
    for system in ("nlp07", "cv16"):
        row = report["systems"][system]
        assert row["ratios"]["ttft_s"] == pytest.approx(row["reference"]["ttft_s"] / row["ours"]["ttft_s"])
        assert {"prefill", "connector"} <= set(row["ours"]["ttft_parts_s"])
        assert row["ours"]["limits"]["figures"]["tpot_s"]["ratio"] > 0
    assert str(out) in capsys.readouterr().out


def test_arguments_are_looked_at_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    inside = str(tmp_path / "file" / "out.json")
    for main, arguments, said in (
        (gpu_suite.main, ["--small", "--device", "tpu"], "--device is tpu; expected cuda"),
        (gpu_suite.main, ["--small", "--device", "cpu", "--out", inside], "is a file; expected a folder"),
        (against_reference.main, ["--small", "--out", inside], "is a file; expected a folder"),
        (against_reference.main, ["--clips", "0", "--out", str(tmp_path / "out.json")], "--clips is 0; expected"),
        (leaderboard.main, ["--results", str(tmp_path / "absent")], "absent: no such folder"),
    ):
        assert main(arguments) == 1
        assert said in capsys.readouterr().err
    for arguments, said in (
        (["--out", str(tmp_path / "file")], "is a file; expected a folder"),
        (["--out", str(tmp_path / "out"), "--device", "tpu"], "no such device"),
        (["--out", str(tmp_path / "out"), "--cfg-path", str(tmp_path / "absent.yaml")], "absent.yaml: no such file"),
    ):
        assert sweep.main(["--small", *arguments], run=lambda job: pytest.fail("nothing should be run")) == 1
        assert said in capsys.readouterr().err
    assert gpu_suite.result_path("cpu") != gpu_suite.result_path("cpu", small=True)


def test_weights_in_4_bits_are_near() -> None:
    layer = torch.nn.Linear(96, 64)
    settings = GPTQSettings(group_size=64)  # the second group is half full
    near = dequantized_weight(GPTQLinear(gptq_weights.rounded(layer, settings)))
    assert (near - layer.weight).abs().max() <= layer.weight.abs().max() / 14 * 1.01


def test_a_system_in_4_bits_is_written_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(gpu_suite.system_config("nlp07"), quantization="gptq")
    monkeypatch.setattr(gpu_suite, "system_config", lambda system: config)
    systems = gpu_suite.SystemSuite(tmp_path / "out.json", gpu_suite.about(), gpu_suite.SIZE, small=True, run_job=here)
    row = systems.measure(["nlp07"], tmp_path)["systems"]["nlp07"]
    assert row["quantization"] == "gptq" and row["ours"]["kernel"].startswith("gptq")
    assert row["ratios"]["tpot_s"] > 0


def test_the_suite_ends_in_time_and_says_what_it_left_out(tmp_path: Path) -> None:
    systems = gpu_suite.SystemSuite(tmp_path / "out.json", gpu_suite.about(), gpu_suite.SIZE, seconds=0.0, run_job=here)
    report = systems.measure(["nlp07"], tmp_path)
    assert report["systems"]["nlp07"] == {"skipped": "no time was left: 0 s"}


def test_without_its_package_a_system_runs_unquantised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite.importlib.util, "find_spec", lambda name: None)
    config, changed = gpu_suite.runnable(gpu_suite.system_config("cv16"))
    assert config.quantization == "none" and changed == "bitsandbytes is not installed: unquantised"

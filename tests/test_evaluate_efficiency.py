"""The command: its report is whole, and what a user can fix is said in a sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import soundfile

import evaluate_efficiency as efficiency
from efficiency.report import published_rows
from efficiency.timing import synthetic_clip
from tests.tiny import TinyProject

STEPS = 4


def test_report_is_whole(shared_tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, synthetic_clip(0.6).numpy(), 16_000)
    out = tmp_path / "new" / "efficiency.json"
    arguments = ["--cfg-path", str(shared_tiny_project.config), "--out", str(out), "--clip", str(clip)]
    arguments += ["--num_it", "2", "--num_warmup", "1", "--decode-steps", str(STEPS)]
    assert efficiency.main([*arguments, "--options", "run.seed=5"]) == 0

    report = json.loads(out.read_text())
    for name in ("ttft_s", "tpot_s", "generate_s", "contest_ttft_s", "contest_tpot_s"):
        assert 0 < report[name] == report["spread"][name]["median"] <= report["spread"][name]["p90"]
    assert report["spread"]["ttft_s"]["count"] == report["iterations"] == 2
    for name in ("peak_gib", "load_peak_gib", "loaded_gib", "before_load_gib", "contest_peak_gib", "rtfx"):
        assert math.isfinite(report[name]) and report[name] > 0, name
    assert report["clip"] == {"source": str(clip), "seconds": 0.6, "window": "clip"}
    assert {"features.whisper", "encoder.beats", "connector", "prefill", "other"} <= set(report["ttft_parts_s"])
    assert report["reused_prefix_tokens"] > 0
    limits = report["limits"]["figures"]
    for name, measured in (("ttft_s", report["ttft_s"]), ("tpot_s", report["tpot_s"])):
        assert limits[name]["measured_s"] == measured
        assert limits[name]["ratio"] == pytest.approx(measured / limits[name]["limit_s"])
    assert {"encoder.whisper", "encoder.beats", "connector", "prefill"} <= set(limits)
    assert report["machine"]["name"] and report["versions"]["torch"] and report["config"]["run"]["seed"] == 5
    assert report["config"]["model"]["token"] is None

    printed = capsys.readouterr().out
    for row in published_rows():
        assert f"| {row['name']} " in printed
    assert report["kernel"].endswith(" linear, float32, cpu") and report["kernel"] in printed
    assert report["lora"] == "merged into the weights"
    assert "unstated 48.5" in printed and str(out) in printed


def test_user_errors_are_sentences(
    shared_tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["--cfg-path", str(shared_tiny_project.config)]
    assert efficiency.main([*config, "--task", "singing"]) == 1
    assert "singing" in capsys.readouterr().err
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"not audio")
    assert efficiency.main([*config, "--clip", str(broken)]) == 1
    assert "broken.wav" in capsys.readouterr().err
    assert efficiency.main([*config, "--clip", "nowhere.wav"]) == 1
    assert capsys.readouterr().err == "error: --clip nowhere.wav: no such file; expected an audio file\n"
    assert efficiency.main([*config, "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"error: --out {tmp_path} is a folder; expected a file to write\n"
    assert efficiency.main([*config, "--device", "gpu"]) == 1
    assert "'gpu': no such device" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        efficiency.main([*config, "--iterations", "0"])
    assert "--iterations/--num_it: 0; expected at least 1" in capsys.readouterr().err

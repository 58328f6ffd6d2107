"""benchmarks/clip_checks.py: it runs, and leaves the checks as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import clip_checks
from data import opening
from tests import tiny


def test_a_run_is_written(tiny_project: tiny.TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, inspect = tmp_path / "checks.json", opening.inspect
    arguments = ["--cfg-path", str(tiny_project.config), "--steps", "2", "--rounds", "1", "--out", str(out)]
    status = clip_checks.main(arguments)
    report = json.loads(out.read_text())
    figures = report["figures"]
    checks_s = figures["checks_while_loading_s"] + figures["checks_before_training_s"]
    assert figures["share"] == pytest.approx(checks_s / figures["epoch_s"]) and figures["epoch_s"] > 0
    assert status == int(not report["reached"])
    assert opening.inspect is inspect
    assert "written to" in capsys.readouterr().out

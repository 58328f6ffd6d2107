"""What importing costs: every command is found, measured, and shown beside another checkout's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import imports


def test_every_command_is_measured() -> None:
    asked = imports.commands()
    for words in (("train.py", "--help"), ("-m", "data.prepare", "--help"), ("-m", "tools.quantize", "--help")):
        assert asked[words] == imports.HELP_ASKED_S
    assert asked[imports.MISTYPED] == 1.5 and asked["-m", "benchmarks.imports", "--help"] is None
    assert ("-m", "tools.calibration", "--help") not in asked


def test_the_table_and_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(imports, "commands", lambda: {("-c", "pass"): None, ("-c", "raise SystemExit(1)"): 1.0})
    arguments = ["--runs", "1", "--against", str(imports.ROOT), "--json", str(tmp_path / "x.json")]
    assert imports.main(arguments) == 0
    printed = capsys.readouterr().out
    assert str(imports.ROOT) in printed and "tools.check_submission submission.csv test.json" in printed
    fine, failed, check = json.loads((tmp_path / "x.json").read_text())["processor_seconds"]
    assert 0 < fine["s"] < 10 and 0 < fine["against_s"] < 10
    assert failed["s"] is None and failed["asked_s"] == 1.0
    assert 0 < check["s"] < 10

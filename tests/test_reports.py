"""Reported inputs: folders with clips and an expect.json, or with a run.py, each of which prints `ok` or `FAULT`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REPORTS = Path(os.environ.get("SMOLT_REPORTS") or ROOT.parent / "shared" / "reports").resolve()
CASES = sorted(folder for folder in REPORTS.iterdir() if folder.is_dir()) if REPORTS.is_dir() else []


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES or [None], ids=lambda case: case.name if case else "none")
def test_a_reported_case_is_well(case: Path | None) -> None:
    if case is None:
        assert "SMOLT_REPORTS" not in os.environ, f"{REPORTS}: no case found"
        pytest.skip(f"{REPORTS}: no such folder; name one in SMOLT_REPORTS")
    if (case / "run.py").exists():
        command = [sys.executable, case / "run.py"]
    elif (case / "expect.json").exists():
        command = [sys.executable, REPORTS / "check_audio.py", case]
    else:
        pytest.skip("no case")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    verdicts = [line for line in done.stdout.splitlines() if line.startswith(("ok", "FAULT"))]
    assert done.returncode == 0 and verdicts, "\n".join(verdicts) or done.stderr[-3000:]

"""benchmarks/loader.py: it runs, and what it claims holds with a few clips."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile

from benchmarks import loader


def test_clips_are_what_they_are_called(tmp_path: Path) -> None:
    for kind in loader.KINDS:
        (annotation,) = loader.write_clips(tmp_path, kind, 1)
        info = soundfile.info(annotation.path)
        assert (info.samplerate, info.channels) == (kind.rate_hz, kind.channels)
        assert info.duration == pytest.approx(loader.CLIP_S)


def test_a_run_is_written_with_its_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "loader.json"
    status = loader.main(["--clips", "1", "--rounds", "1", "--workers", "0", "--out", str(out)])
    result, committed = json.loads(out.read_text()), json.loads(loader.RESULT.read_text())
    assert result.keys() == committed.keys() and result["settings"].keys() == committed["settings"].keys()
    assert [row.keys() for row in result["rows"]] == [row.keys() for row in committed["rows"]]
    assert result["settings"]["clips"] == 1 and result["versions"]["soxr"]
    assert status == int(not all(row["reached"] for row in result["rows"]))
    assert f"written to {out}" in capsys.readouterr().out


@pytest.mark.slow
def test_claimed_ratios_hold() -> None:
    claimed = [kind for kind in loader.KINDS if kind.claimed_ratio is not None]
    rows = loader.run(clips=8, rounds=3, workers=1, kinds=claimed)
    # A few clips on a busy machine: the committed result holds the claim itself, this catches a loader grown slow.
    assert all(row.ratio >= 0.8 * row.claimed_ratio for row in rows), [(row.kind, row.round_ratios) for row in rows]


def test_committed_result_reaches_its_claims() -> None:
    result = json.loads(loader.RESULT.read_text())
    assert {row["kind"] for row in result["rows"]} == {kind.name for kind in loader.KINDS}
    assert all(row["reached"] for row in result["rows"])
    assert result["commit"] and result["machine"]["name"] and result["versions"]["torch"]

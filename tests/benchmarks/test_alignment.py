"""Curves from logs, and what is concluded from them."""

import json
from pathlib import Path

import pytest

from benchmarks import alignment
from benchmarks.alignment import curve_of, speed_up, training_seconds


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log whose second interval holds a validation, which takes no training time."""
    lines = [
        {"step": 10, "samples": 100, "samples_per_s": 10.0, "seconds": 10.0},
        {"step": 10, "valid/loss": 2.0, "valid/asr.wer": 0.9},
        {"step": 20, "samples": 200, "samples_per_s": 20.0, "seconds": 1000.0},
        {"step": 20, "valid/loss": 1.0, "valid/asr.wer": 0.5},
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_curve_counts_seconds_of_training_alone(log: Path) -> None:
    assert curve_of(log) == [
        {"step": 10, "seconds": 10.0, "wer": 0.9},
        {"step": 20, "seconds": 15.0, "wer": 0.5},
    ]
    assert training_seconds(log) == 15.0


def test_a_run_that_has_not_begun_has_no_seconds(tmp_path: Path) -> None:
    assert training_seconds(tmp_path / "log.jsonl") == 0.0


def test_the_share_is_of_the_time_to_the_slower_ways_best_rate() -> None:
    fast = [{"step": 1, "seconds": 10.0, "wer": 0.95}, {"step": 2, "seconds": 20.0, "wer": 0.5}]
    slow = [{"step": 1, "seconds": 50.0, "wer": 0.9}, {"step": 2, "seconds": 100.0, "wer": 0.92}]
    assert speed_up(fast, slow) == {"wer": 0.9, "slow_seconds": 50.0, "fast_seconds": 20.0, "share": 0.4}


def test_a_rate_that_is_never_reached_has_no_share() -> None:
    never = speed_up([{"step": 1, "seconds": 1.0, "wer": 0.8}], [{"step": 1, "seconds": 9.0, "wer": 0.2}])
    assert never["share"] is None


def test_a_claim_that_fails_is_the_exit_status(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "train", lambda *arguments: curve_of(log))
    out = tmp_path / "result.json"
    assert alignment.main(["--out", str(out), "--variants", "align", "stage 1 alone"]) == 1
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["speed_up"]["share"] == 1.0

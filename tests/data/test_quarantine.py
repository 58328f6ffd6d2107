"""Clips that cannot be used are listed and counted, and too many end the run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from data.batch import BadClip
from data.quarantine import Quarantine, TooManyBadClips


def test_quarantine(tmp_path: Path) -> None:
    path = tmp_path / "run" / "quarantine.jsonl"
    quarantine = Quarantine(path, total=100, max_bad_fraction=0.02)
    bad = [BadClip(index, f"{index}.wav", "is empty; copy it again") for index in range(3)]
    for _ in range(3):
        quarantine.add(bad[0])
        quarantine.add(bad[1])
    assert len(quarantine) == 2
    assert [json.loads(line) for line in path.read_text().splitlines()] == [dataclasses.asdict(b) for b in bad[:2]]
    with pytest.raises(TooManyBadClips, match=r"3 of 100 clips cannot be used.*0\.02 allows") as caught:
        quarantine.add(bad[2])
    assert "2.wav: is empty" in str(caught.value) and str(path) in str(caught.value)
    assert len(path.read_text().splitlines()) == 3


def test_quarantine_goes_on_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    path.write_text('{"index": 0, "path": "0.wav", "reason": "x"}\n{"index": 1, "pa')
    quarantine = Quarantine(path, total=10, max_bad_fraction=1)
    for index in range(2):
        quarantine.add(BadClip(index, f"{index}.wav", "x"))
    lines = path.read_text().splitlines()
    assert len(lines) == 3 and json.loads(lines[2])["index"] == 1
    assert (
        len(Quarantine(path, total=10, max_bad_fraction=1)) == 0
    )  # the file may know clips from beyond the checkpoint
    with pytest.raises(TooManyBadClips, match="2 of 10"):
        goes_on = Quarantine(tmp_path / "elsewhere.jsonl", total=10, max_bad_fraction=0.1)
        goes_on.take_up([BadClip(0, "0.wav", "x")])
        assert len(goes_on) == len((tmp_path / "elsewhere.jsonl").read_text().splitlines()) == 1
        goes_on.add(BadClip(0, "0.wav", "x"))
        goes_on.add(BadClip(1, "1.wav", "x"))
    counting = Quarantine(None, total=1, max_bad_fraction=0.5)
    with pytest.raises(TooManyBadClips):
        counting.add(BadClip(0, "0.wav", "x"))

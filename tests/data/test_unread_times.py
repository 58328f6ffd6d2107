"""Fields that look like a time and are not read are named; others are not."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from data.annotations import load_annotations
from data.unread_times import unread_times


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"speaker_start": 2.0, "speaker_end": 3.0}, ["speaker_start", "speaker_end"]),
        ({"seek": 2.0}, ["seek"]),
        ({"window_offset": [2.0, 3.0]}, ["window_offset"]),
        ({"audio": {"path": "a.wav", "offset": 2.0, "duration": 1.0}}, ["audio.offset"]),
        ({"startOfTalk": 2.0, "beginTalk": 1.0}, ["beginTalk"]),
    ],
)
def test_named(fields: dict, named: list[str]) -> None:
    assert unread_times(fields) == named


@pytest.mark.parametrize(
    "fields",
    [
        {"start": 2.0, "end": 3.0, "offset_ms": 1, "duration": 3},
        {"start_char": 3, "answer_start": 5, "end_token": 9, "start_date": 2020, "end_of_turn": 1},
        {"gender": 1, "friend": 2, "restart_note": "x", "end_note": "late", "weekend": 1},
        {"segment": {"start": 2.0, "end": 3.0}, "custom": {"start": 1.0}, "meta": {"offset": "far"}},
    ],
)
def test_not_named(fields: dict) -> None:
    assert unread_times(fields) == []


def test_said_once_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "a.json"
    entry = {"path": "a.wav", "text": "x", "task": "asr", "speaker_start": 2.0}
    file.write_text(json.dumps([entry, entry, {**entry, "speaker_start": None}]), encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        load_annotations(file)
        load_annotations(file)
    assert caplog.text.count("field 'speaker_start' of 2 entries is not read") == 1

"""Every spelling of a part that is read, and one sentence for those that are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.annotation_error import AnnotationError
from data.annotations import load_annotations
from data.part_fields import read_part, stated_duration
from data.parts import Part
from tests.annotated_clips import write_clips

HALF = Part(2.0, 2.5)


@pytest.mark.parametrize(
    "fields",
    [
        {"offset": 2.0, "duration": 0.5},
        {"offset": 2, "end": 2.5},
        {"start": 2, "end": 2.5},
        {"start": 2, "end": 2.5, "duration": 0.5},
        {"start": 2, "duration": 0.5, "audio_duration": 10},
        {"start_time": 2, "end_time": 2.5},
        {"start-time": 2, "end-time": 2.5},
        {"startTime": 2, "endTime": 2.5},
        {"begin": 2, "end": 2.5},
        {"begin_time": 2, "stop_time": 2.5},
        {"onset": 2, "offset": 2.5},
        {"event_onset": 2, "event_offset": 2.5},
        {"onset": 2, "duration": 0.5},
        {"segment": [2, 2.5]},
        {"segment": {"start": 2, "end": 2.5}},
        {"timestamp": [2, 2.5], "segments": [{"start": 0, "end": 1, "text": "a"}]},
        {"segment_start": 2, "segment_end": 2.5},
        {"clip_start": 2, "clip_end": 2.5},
        {"audio_offset": 2, "duration": 0.5},
        {"audio_start_sec": 2, "audio_end_sec": 2.5},
        {"start_s": 2, "duration_s": 0.5},
        {"start_seconds": 2, "end_seconds": 2.5},
        {"start_ms": 2000, "end_ms": 2500},
        {"offset_ms": 2000, "duration_ms": 500},
        {"offset": 2.0, "segment_duration": 0.5, "end": None},
        {"from": 2, "to": 2.5},
        {"xmin": 2, "xmax": 2.5},
        {"start": 2, "length": 0.5},
        {"START_TIME": 2, "END_TIME": 2.5},
        {"offset_in_seconds": 2, "duration_in_seconds": 0.5},
        {"start_time_ms": 2000, "end_time_ms": 2500},
        {"audio_offset": 2, "audio_duration": 0.5},
        {"audio_start": 2, "audio_end": 2.5, "audio_duration": 10},
        {"start (s)": 2, "end (s)": 2.5},
        {"start_us": 2_000_000, "end_us": 2_500_000},
        {"start_min": 2 / 60, "end_ns": 2.5e9},
        {"start_timestamp": 2, "end_timestamp": 2.5},
        {"trim": [2, 2.5]},
    ],
)
def test_spellings(fields: dict) -> None:
    part = read_part({"path": "a.wav", **fields}, "here")
    assert (part.start_s, part.end_s) == pytest.approx((HALF.start_s, HALF.end_s))
    assert all(name in part.fields for name in fields if name.startswith(("start", "offset", "onset", "begin")))


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({}, None),
        ({"duration": 3.0}, None),
        ({"offset": 0}, None),
        ({"offset": None, "duration": None, "start": None}, None),
        ({"offset": 0, "duration": 3.0}, Part(0.0, 3.0)),
        ({"offset": 2.0}, Part(2.0)),
        ({"segment": [2, None]}, Part(2.0)),
        ({"end": 2.0}, Part(0.0, 2.0)),
        ({"channel": 1}, Part(channel=1)),
        ({"channel": [1], "start": 1, "end": 2}, Part(1.0, 2.0, 1)),
        ({"channels": [0]}, Part(channel=0)),
    ],
)
def test_whole_files_ends_and_channels(fields: dict, part: Part | None) -> None:
    assert read_part(fields, "here") == part


@pytest.mark.parametrize(
    "fields",
    [
        {"words": [{"word": "a", "start": 0.1, "end": 0.2}]},
        {"segments": [{"start": 0.1, "end": 0.2}]},
        {"segment": 3, "segment_id": 4, "timestamp": "2020-01-01", "time": "morning"},
        {"channel": "BBC One", "channels": 2, "num_channels": 2, "num_samples": 16_000, "n_frames": 100},
        {"from": "human", "to": "gpt", "length": 12, "text_length": 7},
        {"start_char": 3, "answer_start": 5, "end_token": 9, "frame_rate": 25, "sample_rate": 8000},
        {"audio_duration": 3.0, "total_duration": 9, "speaker": "a", "language": "en", "gender": "f"},
    ],
)
def test_notes_stay_notes(fields: dict) -> None:
    assert read_part(fields, "here") is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start": 2.5, "end": 2.0}, "start 2.5, end 2.0: the part ends before it starts"),
        ({"start": 2.0, "end": 2.0}, "ends before it starts"),
        ({"offset": -1.0, "duration": 2}, "field 'offset': expected seconds as a number of at least 0, found -1.0"),
        ({"offset": float("nan"), "duration": 2}, "field 'offset': .* found nan"),
        ({"start": 1, "end": float("inf")}, "field 'end': .* found inf"),
        ({"start": 10**400}, "field 'start'"),
        ({"offset": 1, "duration": 0}, "field 'duration': expected seconds as a number above 0, found 0"),
        ({"duration": -1}, "field 'duration': .* found -1"),
        ({"offset": "2.0"}, r'field \'offset\': .* found "2.0" \(2 without quotes\?\)'),
        ({"start": "00:01:02.5"}, r"\(62.5 without quotes\?\)"),
        ({"start": "early"}, 'found "early"; correct it, or rename the field'),
        ({"start": True}, "found True"),
        ({"duration": "long"}, 'found "long"'),
        ({"segment": ["2", "2.5"]}, "field 'segment'"),
        ({"segment": "2.0-2.5"}, r"write start and end as numbers: \[2.0, 2.5\]"),
        ({"start": 1, "end": 2, "duration": 5}, "from 1 s, the duration ends at 6 s, the end is 2 s"),
        ({"start": 1, "offset": 3}, "start 1, offset 3 disagree"),
        ({"start_sample": 16_000, "end_sample": 32_000}, "'start_sample' counts samples or frames; write seconds"),
        ({"frame_offset": 16_000, "num_frames": 100}, "'frame_offset' counts samples"),
        ({"channel": "A"}, "field 'channel': expected the number of one channel, from 0"),
        ({"channel": [0, 1]}, "field 'channel'"),
        ({"channel": -1}, "field 'channel'"),
    ],
)
def test_contradictions_are_one_sentence(tmp_path: Path, fields: dict, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        read_part(fields, "here")
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"path": "a.wav", "text": "x", "task": "asr", **fields}]), encoding="utf-8")
    with pytest.raises(AnnotationError, match=r"a\.json, annotation\[0\]: "):
        load_annotations(file)


def test_stated_durations() -> None:
    assert stated_duration({"duration": 3}) == 3.0
    assert stated_duration({"duration_ms": 2500}) == 2.5
    assert [stated_duration({"duration": value}) for value in ("long", None, True, -1, float("nan"), 10**400)] == [
        None
    ] * 6


def test_a_duration_alone_is_the_first_part_of_a_recording_that_others_divide(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [
        {"path": "a.wav", "duration": 2.0},
        {"path": "a.wav", "offset": 2.0, "duration": 1.5},
        {"path": "b.wav", "duration": 2.0},
    ]
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"text": "x", "task": "asr", **entry} for entry in entries]), encoding="utf-8")
    first, second, third = load_annotations(file)
    assert (first.part, second.part, third.part) == (Part(0.0, 2.0), Part(2.0, 3.5), None)
    assert len({one.audio for one in (first, second, third)}) == 3
    assert second.clip == f"{tmp_path / 'a.wav'} [2-3.5 s]" and third.clip == third.path
    assert second.extra == {"offset": 2.0, "duration": 1.5}
    assert "2 of 3 entries name a part of their file" in caplog.text
    caplog.clear()
    load_annotations(file)
    assert not caplog.text


def test_fields_that_change_the_sound_elsewhere_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fields = [{"speed": 1.1}, {"speed": 1.0, "tempo": 0}, {"speed": "fast"}, {"augment": [{"type": "noise"}]}]
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"path": "a.wav", "text": "x", "task": "asr", **entry} for entry in fields]))
    load_annotations(file)
    assert "field 'speed' of 1 entries has no effect here" in caplog.text
    assert "'augment' of 1" in caplog.text and "tempo" not in caplog.text


def test_python_entries_need_no_part(tmp_path: Path) -> None:
    assert all(annotation.part is None for annotation in write_clips(tmp_path))

"""Durations and rates that annotations state are compared with their files, and the differences listed once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data import opening, sampling, stated
from data.annotations import Annotation
from data.opening import header_duration_s, probe_duration_s
from data.parts import Part
from data.sampling import clip_durations
from data.stated import misstated, spread
from dataset import AudioTextDataset, build_loader, collate
from tests.encoded import encoded, with_number
from tests.parts import batch_sampler


@pytest.fixture
def clips(tmp_path: Path) -> list[Annotation]:
    found = []
    for index in range(200):
        path = tmp_path / f"{index % 5}.wav"
        soundfile.write(path, np.full(16_000 * (1 + index % 5), 0.1), 16_000)
        found.append(
            Annotation(
                path=str(path), text="x", task="asr", texts=("x",), index=index, source=f"{tmp_path}/a.json#{index}",
                extra={"duration": 1.0 + index % 5},
            )
        )  # fmt: skip
    return found


def stating(annotation: Annotation, seconds: float, **fields: object) -> Annotation:
    return dataclasses.replace(annotation, extra={"duration": seconds}, **fields)


def test_right_durations_are_believed(clips: list[Annotation], caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    probed: list[str] = []
    monkeypatch.setattr(sampling, "header_duration_s", lambda path: probed.append(path) or header_duration_s(path))
    found = clip_durations([stating(clip, 1.05 + index % 5) for index, clip in enumerate(clips)])
    assert found == [1.05 + index % 5 for index in range(len(clips))] and 1 <= len(probed) <= 5
    assert not caplog.text


def test_a_right_duration_over_a_wrong_header_is_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = encoded(format="FLAC")
    field = int.from_bytes(whole[21:26], "big")  # its low 36 bits are the number of samples
    understated = field >> 36 << 36 | 1000
    path = tmp_path / "understating.flac"
    path.write_bytes(whole[:21] + understated.to_bytes(5, "big") + whole[26:])
    true_s = probe_duration_s(path)
    assert header_duration_s(path) < true_s / 2
    clip = Annotation(path=str(path), text="a", task="asr", index=0, extra={"duration": true_s})
    assert clip_durations([clip]) == [true_s] and not caplog.text
    assert clip_durations([dataclasses.replace(clip, extra={})]) == [header_duration_s(path)]


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3", "WAV"])
def test_lengths_are_read_from_headers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = tmp_path / f"clip.{kind.lower()}"
    path.write_bytes(encoded(format=kind))
    clip = Annotation(path=str(path), text="a", task="asr", index=0)
    exact = probe_duration_s(path)
    monkeypatch.setattr(opening, "inspect", lambda *_: pytest.fail("the whole file is read"))
    assert clip_durations([clip]) == [pytest.approx(exact, abs=0.1)]


def test_a_file_without_a_length_is_read(tmp_path: Path) -> None:
    path = tmp_path / "streamed.wav"
    path.write_bytes(with_number(encoded(format="WAV"), 40, 0))
    assert header_duration_s(path) == probe_duration_s(path) > 0


def test_wrong_durations_are_not_believed(clips: list[Annotation], caplog: pytest.LogCaptureFixture) -> None:
    wrong = [stating(clip, 100.0 * clip.extra["duration"]) for clip in clips]  # in hundredths of a second
    assert clip_durations(wrong) == [clip.extra["duration"] for clip in clips]
    assert "200 clips with another length than their annotation's 'duration' states" in caplog.text
    assert "and 197 more" in caplog.text and "stated 100 s, found 1 s" in caplog.text
    caplog.clear()
    clip_durations(wrong)
    assert not caplog.text


def test_a_wrong_one_that_was_not_probed_is_found_when_it_is_loaded(
    clips: list[Annotation], caplog: pytest.LogCaptureFixture
) -> None:
    few = [*clips[:3], stating(clips[3], 1.0), stating(clips[4], 30.0), *clips[5:8]]
    data = AudioTextDataset(few, {"asr": ["x <SpeechHere>"]})
    loader = build_loader(data, batch_sampler([1.0] * 8, batch_size=4, shuffle=False), collate=collate)
    for _ in range(2):
        assert sum(len(batch) for batch in loader) == 8
    assert caplog.text.count("2 clips with another length") == 1
    assert f"({few[3].source}): stated 1 s, found 4 s" in caplog.text


def test_what_counts_as_another_length(clips: list[Annotation]) -> None:
    one = stating(clips[0], 1.0)
    assert not misstated(one, 1.09) and not misstated(one, 0.91)
    assert misstated(one, 1.2) and misstated(one, 0.8)
    assert not misstated(stating(clips[0], 100.0), 101.5)
    assert not misstated(stating(clips[0], 9.0), 5.0, capped=True)
    assert misstated(stating(clips[0], 3.0), 5.0, capped=True)
    assert not misstated(stating(clips[0], 9.0, expand_wav=("b.wav",)), 5.0)
    assert not misstated(stating(clips[0], 9.0, part=Part(1.0, 2.0)), 1.0)
    assert misstated(stating(clips[0], 9.0, part=Part(channel=0)), 1.0)


def test_lengths_of_parts(clips: list[Annotation]) -> None:
    parts = [Part(1.0, 2.5), Part(1.0), Part(4.0, None, 0), Part(9.0)]
    found = clip_durations([dataclasses.replace(clips[4], part=part, extra={"duration": 99.0}) for part in parts])
    assert found == [1.5, 4.0, 1.0, 0.0]


def test_another_sample_rate_is_said(clips: list[Annotation], caplog: pytest.LogCaptureFixture) -> None:
    clip_durations([dataclasses.replace(clips[0], extra={"sampling_rate": 16_000})])
    assert not caplog.text
    clip_durations([dataclasses.replace(clips[0], extra={"sampling_rate": 8_000})] * 3)
    assert caplog.text.count("stated 8000 Hz, found 16000 Hz") == 1


def test_spread(clips: list[Annotation]) -> None:
    assert spread([]) == [] and spread(clips[:10]) == clips[:10]
    assert len(spread(clips)) <= stated.PROBED and spread(clips)[-1].index > 190

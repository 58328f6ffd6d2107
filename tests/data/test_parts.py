"""Parts of recordings: the samples of the whole file, cut; from every format and rate, at every place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from data import audio, opening
from data.audio import AudioError, load_clip
from data.parts import Part, PartError
from support.units import SAMPLE_RATE

SECONDS = 8
PLACES = [(0.0, 1.0), (2.0, 2.5), (3.21, 3.33), (0.037, 7.9), (7.5, None), (6.0, 8.0), (1.00003, 1.50007)]
EXACT = [("wav", "PCM_16"), ("wav", "FLOAT"), ("wav", "PCM_24"), ("flac", "PCM_16"), ("aiff", "PCM_16"),
         ("ogg", "VORBIS"), ("opus", "OPUS"), ("mp3", None)]  # fmt: skip


def recording(folder: Path, suffix: str, subtype: str | None, rate_hz: int, channels: int = 1) -> Path:
    rng = np.random.default_rng(rate_hz + channels)
    time_s = np.arange(SECONDS * rate_hz) / rate_hz
    sound = 0.3 * np.sin(2 * np.pi * 300 * time_s * (1 + 0.05 * np.sin(time_s))) + 0.05 * rng.standard_normal(
        len(time_s)
    )
    samples = np.stack([sound * (1 - 0.5 * channel) for channel in range(channels)], axis=1)
    path = folder / f"long.{suffix}"
    container = {"ogg": "OGG", "opus": "OGG", "mp3": "MP3"}.get(suffix)
    with soundfile.SoundFile(path, "w", rate_hz, channels, subtype, format=container) as file:
        for start in range(0, len(samples), 4096):
            file.write(samples[start : start + 4096])
    return path


def cut(path: Path, start_s: float, end_s: float | None) -> torch.Tensor:
    whole = load_clip(path)[0]
    return whole[round(start_s * SAMPLE_RATE) : None if end_s is None else round(end_s * SAMPLE_RATE)]


@pytest.mark.parametrize(("suffix", "subtype"), EXACT)
def test_at_16_khz_the_samples_are_the_whole_files(tmp_path: Path, suffix: str, subtype: str | None) -> None:
    path = recording(tmp_path, suffix, subtype, SAMPLE_RATE, channels=2)
    for start_s, end_s in PLACES:
        part, capped = load_clip(path, part=Part(start_s, end_s))
        assert torch.equal(part, cut(path, start_s, end_s)), (start_s, end_s)
        assert not capped


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 24_000, 44_056, 44_100, 48_000])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_resampled_parts_differ_by_rounding_alone(tmp_path: Path, suffix: str, rate_hz: int) -> None:
    path = recording(tmp_path, suffix, "PCM_16", rate_hz)
    for start_s, end_s in PLACES:
        part, expected = load_clip(path, part=Part(start_s, end_s))[0], cut(path, start_s, end_s)
        assert len(part) == len(expected)
        assert (part - expected).abs().max() < 1e-6, (start_s, end_s)


@pytest.mark.parametrize(("suffix", "rate_hz"), [("mp3", 44_100), ("ogg", 44_100), ("opus", 48_000), ("mp3", 22_050)])
def test_resampled_parts_of_lossy_files(tmp_path: Path, suffix: str, rate_hz: int, monkeypatch) -> None:
    monkeypatch.setattr(audio, "MP3_FROM_START_S", 1)  # so that later parts are read as in a long file
    path = recording(tmp_path, suffix, None if suffix == "mp3" else {"ogg": "VORBIS", "opus": "OPUS"}[suffix], rate_hz)
    for start_s, end_s in PLACES:
        part, expected = load_clip(path, part=Part(start_s, end_s))[0], cut(path, start_s, end_s)
        assert len(part) == len(expected)
        assert (part - expected).abs().max() < 1e-6, (start_s, end_s)


def test_from_bytes(tmp_path: Path) -> None:
    path = recording(tmp_path, "flac", "PCM_16", 44_100)
    part = Part(2.0, 2.5)
    assert torch.equal(load_clip(path.read_bytes(), part=part)[0], load_clip(path, part=part)[0])


def test_what_lies_before_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recording(tmp_path, "wav", "PCM_16", 44_100)
    read: list[int] = []
    whole_read = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda self, frames, **options: read.append(frames) or whole_read(self, frames, **options),
    )
    load_clip(path, part=Part(6.0, 6.5))
    assert sum(read) < 0.8 * 44_100


def test_max_audio_s_cuts_a_part(tmp_path: Path) -> None:
    path = recording(tmp_path, "wav", "PCM_16", 44_100)
    part, capped = load_clip(path, part=Part(2.0, 4.0), max_audio_s=0.5)
    assert capped and len(part) == 8_000
    assert (part - cut(path, 2.0, 2.5)).abs().max() < 1e-6
    assert not load_clip(path, part=Part(2.0, 2.5), max_audio_s=0.5)[1]


def test_clips_that_are_appended_are_whole(tmp_path: Path) -> None:
    path = recording(tmp_path, "wav", "PCM_16", SAMPLE_RATE)
    joined, _ = load_clip(path, part=Part(2.0, 2.5), expand=[path])
    assert len(joined) == 8_000 + audio.EXPAND_SILENCE_SAMPLES + SECONDS * SAMPLE_RATE


def test_one_channel(tmp_path: Path) -> None:
    path = recording(tmp_path, "wav", "PCM_16", SAMPLE_RATE, channels=2)
    samples = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    for channel in (0, 1):
        assert torch.equal(load_clip(path, part=Part(channel=channel))[0], samples[:, channel])
        assert torch.equal(load_clip(path, part=Part(1.0, 2.0, channel))[0], samples[16_000:32_000, channel])
    with pytest.raises(AudioError, match=r"channel 2 \(counted from 0\), but the file has 2"):
        load_clip(path, part=Part(channel=2))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Part(8.0, 9.0, fields="start 8, end 9"), r"start 8, end 9\) starts at 8 s, but the file ends at 8 s"),
        (Part(100.0, None), "starts at 100 s"),
        (Part(7.0, 8.2), r"ends at 8\.2 s, but the file ends at 8 s"),
        (Part(2.0, 2.00001), "has no sample"),
    ],
)
def test_a_part_that_the_file_does_not_have(tmp_path: Path, part: Part, message: str) -> None:
    for suffix, rate_hz in (("wav", SAMPLE_RATE), ("flac", 44_100)):
        path = recording(tmp_path, suffix, "PCM_16", rate_hz)
        with pytest.raises(AudioError, match=message) as caught:
            load_clip(path, part=part)
        assert str(caught.value).startswith(str(path))


def test_an_end_a_little_after_the_file_is_its_end(tmp_path: Path) -> None:
    for rate_hz in (SAMPLE_RATE, 44_100):
        path = recording(tmp_path, "wav", "PCM_16", rate_hz)
        assert torch.allclose(load_clip(path, part=Part(7.0, 8.08))[0], cut(path, 7.0, None), atol=1e-6)


def test_names_and_lengths() -> None:
    assert str(Part(1234.5678, 1236.0)) == "1234.5678-1236 s"
    assert (str(Part(2.0)), str(Part(channel=1))) == ("2-end s", "channel 1")
    assert Part(0.1, 30.1).length_s(60) == 30.0
    assert Part(2.0, 2.5).length_s(0) == 0.5 and Part(2.0).length_s(3.0) == 1.0 and Part(2.0).length_s(1.0) == 0
    assert Part(1.0, 2.0, fields="a") == Part(1.0, 2.0, fields="b")
    with pytest.raises(PartError):
        Part(1.0).window(16_000, 16_000)


def test_parts_of_a_file_that_holds_more_than_its_header_says(tmp_path: Path) -> None:
    path = recording(tmp_path, "wav", "PCM_16", 44_100)
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = (44_100 * 2).to_bytes(4, "little")  # one second of eight
    path.write_bytes(content)
    for start_s, end_s in PLACES:
        part, expected = load_clip(path, part=Part(start_s, end_s))[0], cut(path, start_s, end_s)
        assert len(part) == len(expected) > 0
        assert (part - expected).abs().max() < 1e-6, (start_s, end_s)


@pytest.mark.parametrize(("suffix", "subtype"), [("ogg", "VORBIS"), ("opus", "OPUS")])
def test_parts_of_several_files_in_one(tmp_path: Path, suffix: str, subtype: str) -> None:
    first = recording(tmp_path, suffix, subtype, SAMPLE_RATE, channels=2).read_bytes()
    (tmp_path / "second").mkdir()
    path = recording(tmp_path / "second", suffix, subtype, SAMPLE_RATE, channels=2)
    path.write_bytes(first + path.read_bytes())
    for start_s, end_s in [(2.0, 2.5), (7.5, 8.5), (9.0, 10.0), (15.0, None), (0.0, 16.0)]:
        part = load_clip(path, part=Part(start_s, end_s))[0]
        assert torch.equal(part, cut(path, start_s, end_s)), (start_s, end_s)
    assert load_clip(path, part=Part(9.0, 10.0), max_audio_s=0.5)[1]
    with pytest.raises(AudioError, match="starts at 16 s, but the file ends at 16 s"):
        load_clip(path, part=Part(16.0, 17.0))
    with pytest.raises(AudioError, match="split the file"):
        load_clip(path, part=Part(1.0, 2.0, channel=1))


def test_a_recording_is_checked_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recording(tmp_path, "wav", "PCM_16", SAMPLE_RATE)
    looked: list[str] = []
    inspect = opening._inspect
    monkeypatch.setattr(opening, "_inspect", lambda source, *rest: looked.append(str(source)) or inspect(source, *rest))
    for start_s in range(5):
        load_clip(path, part=Part(float(start_s), start_s + 1.0))
    assert looked == [str(path)]
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(AudioError, match="truncated"):
        load_clip(path, part=Part(1.0, 2.0))

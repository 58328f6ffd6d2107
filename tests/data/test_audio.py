"""data/audio.py: every format, rate and channel count gives the same waveform; every bad clip is named."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from data.audio import EXPAND_SILENCE_SAMPLES, AudioError, load_clip, load_waveform, probe_duration_s
from support.units import SAMPLE_RATE

SECONDS = 1.5


def tone(rate_hz: int, seconds: float = SECONDS, frequency_hz: float = 440.0) -> np.ndarray:
    time_s = np.arange(round(rate_hz * seconds)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate_hz: int = SAMPLE_RATE, **options) -> Path:
    soundfile.write(path, samples, rate_hz, **options)
    return path


FORMATS = {
    "wav": {},
    "flac": {},
    "mp3": {"format": "MP3"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_formats_rates_channels(tmp_path: Path, suffix: str, rate_hz: int, channels: int) -> None:
    if suffix == "opus" and rate_hz == 44_100:
        pytest.skip("Opus has no 44.1 kHz")
    samples = tone(rate_hz)
    if channels == 2:
        samples = np.stack([2 * samples, np.zeros_like(samples)], axis=1)  # one channel alone would be wrong twice
    path = write(tmp_path / f"clip.{suffix}", 0.9 * samples, rate_hz, **FORMATS[suffix])

    waveform = load_waveform(path)

    assert waveform.dtype == torch.float32 and waveform.ndim == 1
    assert abs(len(waveform) - SECONDS * SAMPLE_RATE) <= 2
    inner = slice(12_000, 20_000)  # away from the codecs' edges
    expected = 0.9 * torch.from_numpy(tone(SAMPLE_RATE))
    tolerance = 2e-3 if suffix in ("wav", "flac") else 0.06
    assert (waveform[inner] - expected[inner]).abs().max() < tolerance
    assert torch.equal(load_waveform(path.read_bytes()), waveform)
    assert probe_duration_s(path) == pytest.approx(SECONDS, abs=1e-3)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_wav_subtypes(tmp_path: Path, subtype: str) -> None:
    waveform = load_waveform(write(tmp_path / "clip.wav", tone(SAMPLE_RATE), subtype=subtype))
    coarse = subtype in ("PCM_U8", "ULAW")
    assert (waveform - torch.from_numpy(tone(SAMPLE_RATE))).abs().max() < (0.03 if coarse else 1e-4)


def test_more_than_two_channels_are_averaged(tmp_path: Path) -> None:
    channels = np.stack([tone(SAMPLE_RATE, frequency_hz=f) for f in (200, 300, 400, 500)], axis=1)
    waveform = load_waveform(write(tmp_path / "clip.wav", channels))
    assert (waveform - torch.from_numpy(channels.mean(axis=1))).abs().max() < 1e-4


def test_overshoot_is_clipped(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.wav", 3 * tone(SAMPLE_RATE), subtype="FLOAT")
    assert load_waveform(path).abs().max() == 1.0


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("factor", [2.02, 3, 6, 19])
@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_floats_beyond_full_scale_are_scaled_down(
    tmp_path: Path, subtype: str, factor: float, rate_hz: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "clip.wav", factor * tone(rate_hz), rate_hz, subtype=subtype)
    waveform = load_waveform(path)
    assert (waveform[2000:-2000] - 2 * torch.from_numpy(tone(SAMPLE_RATE))[2000:-2000]).abs().max() < 2e-3
    assert f"its float samples reach {factor / 2:.4g}; it is scaled down" in caplog.text


@pytest.mark.parametrize("suffix", ["ogg", "mp3"])
def test_a_codecs_overshoot_is_clipped_and_more_is_scaled(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    noise = np.clip(np.random.default_rng(0).normal(0, 0.3, 48_000), -0.99, 0.99).astype(np.float32)
    assert load_waveform(write(tmp_path / f"a.{suffix}", noise, **FORMATS[suffix])).abs().max() == 1.0
    assert not caplog.records
    waveform = load_waveform(write(tmp_path / f"b.{suffix}", 3 * tone(SAMPLE_RATE), **FORMATS[suffix]))
    assert (waveform.abs() > 0.98).float().mean() < 0.15
    assert "is scaled down" in caplog.text


def test_aliases_are_filtered_out(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.wav", tone(44_100, frequency_hz=12_000), 44_100)
    assert load_waveform(path)[2000:-2000].abs().max() < 1e-3


def test_expand_appends_after_silence(tmp_path: Path) -> None:
    first = write(tmp_path / "a.wav", tone(SAMPLE_RATE, 0.5))
    second = write(tmp_path / "b.flac", tone(8_000, 0.25), 8_000)
    alone = [load_waveform(first), load_waveform(second)]

    joined = load_waveform(first, expand=[second, first])

    silence = torch.zeros(EXPAND_SILENCE_SAMPLES)
    assert EXPAND_SILENCE_SAMPLES == 1600
    assert torch.equal(joined, torch.cat([alone[0], silence, alone[1], silence, alone[0]]))
    with pytest.raises(AudioError, match=r"gone\.wav: no such file"):
        load_waveform(first, expand=[tmp_path / "gone.wav"])


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_max_audio_cuts_and_says_so(tmp_path: Path, rate_hz: int, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.wav", tone(rate_hz), rate_hz)
    whole = load_waveform(path)

    waveform, capped = load_clip(path, max_audio_s=0.5)

    assert capped and len(waveform) == 8000
    assert (waveform - whole[:8000]).abs().max() < 1e-6  # the filter saw what follows the cut
    assert not load_clip(path, max_audio_s=SECONDS)[1]
    assert len(load_clip(path, expand=[path], max_audio_s=1.7)[0]) == 27_200
    assert not caplog.records
    load_waveform(path, max_audio_s=0.5)
    assert "cut to max_audio_s = 0.5 s" in caplog.text


@pytest.mark.parametrize("samples", [1, 800])
def test_very_short_clips_load(tmp_path: Path, samples: int) -> None:
    assert len(load_waveform(write(tmp_path / "a.wav", tone(SAMPLE_RATE)[:samples]))) == samples


# Bad input: every one is an AudioError that names the clip.


def check_named(path: Path, match: str) -> None:
    with pytest.raises(AudioError, match=match) as caught:
        load_waveform(path)
    assert str(path) in str(caught.value)
    assert caught.value.clip == str(path)
    copy = pickle.loads(pickle.dumps(caught.value))  # it crosses from a worker process
    assert str(copy) == str(caught.value) and copy.reason == caught.value.reason


def test_missing(tmp_path: Path) -> None:
    check_named(tmp_path / "gone.wav", "no such file")
    with pytest.raises(AudioError, match="no such file"):
        probe_duration_s(tmp_path / "gone.wav")


def test_folder(tmp_path: Path) -> None:
    check_named(tmp_path, "is a folder")


@pytest.mark.parametrize("suffix", [*FORMATS, "raw"])
def test_empty_and_non_audio(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    path.write_bytes(b"")
    check_named(path, r"empty \(0 bytes\)")
    path.write_text("these are words, not sounds. " * 100)
    check_named(path, "not audio that libsndfile .* reads")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("kept", [0.99, 0.5, 0.1, 0.02])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_truncated(tmp_path: Path, suffix: str, kept: float, as_bytes: bool) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 48_000).astype(np.float32)
    path = write(tmp_path / f"clip.{suffix}", noise, 24_000, **FORMATS[suffix])
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    if as_bytes:
        with pytest.raises(AudioError, match=rf"<{int(len(data) * kept)} bytes>: .*(truncated|not audio)"):
            load_waveform(path.read_bytes())
    else:
        check_named(path, "truncated|not audio")


def test_truncated_between_ogg_pages(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.ogg", tone(SAMPLE_RATE, 10), **FORMATS["ogg"])
    data = path.read_bytes()
    path.write_bytes(data[: data.rfind(b"OggS")])
    check_named(path, "not marked as the end")


def mp3_frames(path: Path) -> list[bytes]:
    """The frames of an mp3 that soundfile wrote: MPEG 1, so each starts with the same twelve bits."""
    from data.mpeg_frames import mpeg_frame

    data, frames = path.read_bytes(), []
    while data:
        length = mpeg_frame(data[:4]).bytes
        frames.append(data[:length])
        data = data[length:]
    return frames


def test_mp3_without_length_header(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = rng.uniform(-0.5, 0.5, 88_200).astype(np.float32) * np.repeat([0.001, 1], 44_100)
    options = {"format": "MP3", "compression_level": 0.5}
    path = write(tmp_path / "a.mp3", samples, 44_100, bitrate_mode="CONSTANT", **options)
    path.write_bytes(b"".join(mp3_frames(path)[1:]))
    assert load_waveform(path).shape[0] == pytest.approx(32_000, abs=2000)
    path.write_bytes(path.read_bytes()[:-50])
    check_named(path, "truncated: its last frame")

    path = write(tmp_path / "b.mp3", samples[::-1].copy(), 44_100, bitrate_mode="VARIABLE", **options)
    path.write_bytes(b"".join(mp3_frames(path)[1:]))
    try:  # libsndfile guesses the length from one frame: too short is refused, never used in part
        assert len(load_waveform(path)) > 30_000
    except AudioError as error:
        assert "variable-rate mp3 without a length header" in str(error)


def test_no_samples(tmp_path: Path) -> None:
    check_named(write(tmp_path / "clip.wav", np.zeros(0, np.float32)), "0 samples")


def test_resampled_to_nothing(tmp_path: Path) -> None:
    try:
        assert len(load_waveform(write(tmp_path / "a.wav", tone(48_000)[:1], 48_000))) >= 1
    except AudioError as error:
        assert "none at 16 kHz" in str(error)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_not_finite(tmp_path: Path, value: float, rate_hz: int) -> None:
    samples = tone(rate_hz)
    samples[[10, 900]] = value
    check_named(write(tmp_path / "clip.wav", samples, rate_hz, subtype="FLOAT"), "2 of .* samples are NaN or infinite")


def test_not_full_scale(tmp_path: Path) -> None:
    check_named(write(tmp_path / "clip.wav", 32_768 * tone(SAMPLE_RATE), subtype="FLOAT"), r"expected \[-1, 1\]")


def test_streamed_wav_of_unknown_length_loads(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.wav", tone(SAMPLE_RATE))
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(data)
    assert len(load_waveform(path)) == SECONDS * SAMPLE_RATE


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("channels", [1, 2])
def test_both_flac_decoders_agree(tmp_path: Path, subtype: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("miniaudio", reason="miniaudio is not installed; libsndfile decodes flac")
    samples = np.random.default_rng(0).uniform(-1, 1, (30_000, channels)).astype(np.float32)
    path = write(tmp_path / "clip.flac", samples, subtype=subtype)
    quick = [load_waveform(path), load_waveform(path.read_bytes())]
    monkeypatch.setattr("data.audio.miniaudio", None)
    assert torch.equal(quick[0], load_waveform(path)) and torch.equal(quick[1], quick[0])


@pytest.mark.parametrize("with_miniaudio", [True, False])
def test_damaged_flac(tmp_path: Path, with_miniaudio: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not with_miniaudio:
        monkeypatch.setattr("data.audio.miniaudio", None)
    path = write(tmp_path / "clip.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 48_000).astype(np.float32))
    data = bytearray(path.read_bytes())
    data[50_000:50_400] = bytes(400)
    path.write_bytes(data)
    check_named(path, "truncated or damaged|header promises")


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_the_first_channel_alone(tmp_path: Path, subtype: str) -> None:
    left, right = np.full(1600, 0.5, np.float32), np.full(1600, 0.25, np.float32)
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([left, right], axis=1), SAMPLE_RATE, subtype=subtype)
    for options, level in (({"first_channel": True}, 0.5), ({}, 0.375)):
        waveform, _ = load_clip(path, **options)
        assert waveform.is_contiguous()
        torch.testing.assert_close(waveform, torch.full((1600,), level), atol=1e-4, rtol=0)
    soundfile.write(path, left, SAMPLE_RATE, subtype=subtype)
    assert torch.equal(load_clip(path, first_channel=True)[0], load_clip(path)[0])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n", "git lfs pull"),
        (b"<html><body>404 Not Found</body></html>", "web page"),
        (b"PK\x03\x04" + b"packed" * 1000, "zip archive"),
        (b"\0\0\0\x20ftypM4A " + bytes(500), "MPEG-4 file .*ffmpeg"),
        (b"#!AMR\n" + b"\x3c" * 100, "AMR audio; convert it"),
        ("{}".encode("utf-16") * 50, "no frames of sound found"),
    ],
)
def test_a_clip_that_is_something_else_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "clip.wav"
    file.write_bytes(content)
    with pytest.raises(AudioError, match=words):
        load_waveform(file)

"""Several channels: their mean, unless it loses more than 6 dB against the loudest one."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from data.audio import load_clip, load_waveform
from data.channels import energy, mix_down
from tests.encoded import NOISE, TONE, encoded

SILENT = np.zeros_like(TONE)
FILES = {
    "16 bits": {},
    "24 bits": {"subtype": "PCM_24"},
    "float": {"subtype": "FLOAT"},
    "flac": {"format": "FLAC"},
    "vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "mp3": {"format": "MP3"},
}


def stereo(left: np.ndarray, right: np.ndarray, kind: str = "16 bits") -> bytes:
    return encoded(np.stack([left, right], axis=1), **FILES[kind])


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("factor", [-1, -0.97, -0.7, -0.3, -0.1])
def test_a_mean_that_cancels(kind: str, factor: float, caplog: pytest.LogCaptureFixture) -> None:
    for channels, loudest in (((TONE, factor * TONE), 1), ((0.9 * factor * TONE, TONE), 2)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            waveform = load_waveform(stereo(*channels, kind))
        assert (waveform[1000:7000] - torch.from_numpy(TONE)[1000:7000]).abs().max() < 0.02
        assert len(caplog.records) == 1
        if factor != -1:
            assert f"channel {loudest} is used alone" in caplog.text


@pytest.mark.parametrize("kind", FILES)
def test_a_mean_that_keeps_the_sound(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    lossy = kind in ("vorbis", "mp3")
    pairs = [(TONE, TONE), (TONE, SILENT), (TONE, 0.3 * TONE), (SILENT, SILENT)]
    for left, right in pairs if lossy else [*pairs, (TONE, NOISE)]:
        waveform = load_waveform(stereo(left, right, kind))
        mean = torch.from_numpy((left + right) / 2)
        assert (waveform[1000:7000] - mean[1000:7000]).abs().max() < (0.02 if lossy else 1e-3)
    assert not caplog.records


def test_more_channels() -> None:
    for channels, loudest in (
        ([SILENT, SILENT, TONE, SILENT, SILENT, SILENT], 2),
        ([NOISE, -NOISE, TONE, -TONE], 2),
        ([TONE, -0.5 * TONE, -0.5 * TONE], 0),
    ):
        mixed, clause = mix_down(np.stack(channels, axis=1))
        assert np.array_equal(mixed, channels[loudest]) and f"channel {loudest + 1} is used alone" in clause
    mixed, clause = mix_down(np.stack([TONE] * 5, axis=1))
    assert np.allclose(mixed, TONE, atol=1e-6) and clause is None


def test_the_decision_is_for_the_whole_clip() -> None:
    """Half a second cancels, the next does not: one channel, or one mean, for both."""
    left = np.concatenate([TONE, TONE])
    for quiet, factor in ((0.1, 1.0), (1.0, 0.01)):
        right = np.concatenate([-quiet * TONE, factor * TONE])
        samples = np.stack([left, right], axis=1)
        mixed, clause = mix_down(samples)
        assert np.array_equal(mixed, left if clause else samples.mean(axis=1))


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(
    ("inverted", "seconds"), [(slice(40_000, None), 5), (slice(16_000, 28_000), 5), (slice(0, 8_000), 2)]
)
def test_a_stretch_that_cancels(kind: str, inverted: slice, seconds: int, caplog: pytest.LogCaptureFixture) -> None:
    left = np.tile(TONE, 2 * seconds)
    right = left.copy()
    right[inverted] *= -1
    with caplog.at_level(logging.WARNING):
        waveform = load_waveform(stereo(left, right, kind))
    assert all(part.std() > 0.25 for part in waveform[4000:-4000].split(4000))
    assert len(caplog.records) == 1 and "used alone" in caplog.text


def test_voices_in_turn_keep_the_mean() -> None:
    """Each of two microphones has another voice, with some of the other's, late and weak: both are heard."""
    silent = np.zeros(16_000, np.float32)
    first, second = np.tile(TONE, 2), np.tile(NOISE, 2)
    left = np.concatenate([first, silent, -0.05 * np.roll(second, 30)])
    right = np.concatenate([0.05 * np.roll(first, 30), silent, second])
    mixed, clause = mix_down(np.stack([left, right], axis=1))
    assert clause is None and np.allclose(mixed, (left + right) / 2)


@pytest.mark.parametrize("offset", [0.3, -0.5])
def test_an_offset_hides_nothing(offset: float) -> None:
    samples = np.stack([TONE + offset, -TONE + offset], axis=1).astype(np.float32)
    mixed, clause = mix_down(samples)
    assert "is silent" in clause and mixed.std() > 0.25
    mixed, clause = mix_down(np.stack([TONE + offset, TONE + offset], axis=1).astype(np.float32))
    assert clause is None and mixed.std() > 0.25


def test_the_first_channel_is_asked_for() -> None:
    remarks = []
    waveform, _ = load_clip(stereo(0.5 * TONE, -TONE), first_channel=True, remarks=remarks)
    assert (waveform - 0.5 * torch.from_numpy(TONE)).abs().max() < 1e-3
    assert not remarks


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_the_mean_is_exactly_the_mean(dtype: type) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, (12_345, 2)) * (32_767 if dtype == np.int16 else 1)
    samples = samples.astype(dtype)
    mixed, _ = mix_down(samples)
    scale = 32_768 if dtype == np.int16 else 1
    assert np.array_equal(mixed, ((samples[:, 0].astype(np.float32) + samples[:, 1]) / (2 * scale)).astype(np.float32))
    assert energy(mixed) == pytest.approx(float((mixed.astype(np.float64) ** 2).sum()), rel=1e-5)

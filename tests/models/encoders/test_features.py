"""Spectra of a batch: each clip's depend neither on other clips nor on samples after its end."""

from __future__ import annotations

import pytest
import torch

from models.encoders.features import (
    FBANK_MEAN,
    FBANK_STD,
    _decibel_filters,
    _kaldi_filters,
    decibel_frames,
    decibel_spectrogram,
    fbank_frames,
    kaldi_fbank,
    log_mel,
    log_mel_frames,
)
from support.units import SAMPLE_RATE

LENGTHS = torch.tensor([400, 801, 2800, 5000, 8000, 16_000, 31_999, 48_000])


@pytest.fixture(scope="module")
def waveforms() -> torch.Tensor:
    """Clips of very different loudness, with garbage after each clip's end."""
    generator = torch.Generator().manual_seed(5)
    loudness = torch.logspace(-3, -0.5, len(LENGTHS))[:, None]
    return loudness * torch.randn(len(LENGTHS), int(LENGTHS.max()), generator=generator)


@pytest.mark.parametrize("full_samples", [None, 2 * SAMPLE_RATE])
@pytest.mark.parametrize("bins", [80, 128])
def test_log_mel_in_a_batch_is_log_mel_alone(waveforms: torch.Tensor, bins: int, full_samples: int | None) -> None:
    features, lengths = log_mel(waveforms, LENGTHS, bins=bins, full_samples=full_samples)
    for row, samples in enumerate(LENGTHS.tolist()):
        alone, one = log_mel(waveforms[row : row + 1, :samples], LENGTHS[[row]], bins=bins, full_samples=full_samples)
        frames = log_mel_frames(samples) if full_samples is None else 200
        assert lengths[row] == one[0] == alone.shape[-1] == frames
        torch.testing.assert_close(features[row, :, :frames], alone[0], atol=1e-5, rtol=0)
        assert not features[row, :, frames:].any()


def test_fbank_in_a_batch_is_fbank_alone(waveforms: torch.Tensor) -> None:
    features = kaldi_fbank(waveforms, LENGTHS)
    for row, samples in enumerate(LENGTHS.tolist()):
        alone = kaldi_fbank(waveforms[row : row + 1, :samples], LENGTHS[[row]])[0]
        assert len(alone) == fbank_frames(samples)
        torch.testing.assert_close(features[row, : len(alone)], alone, atol=1e-5, rtol=0)
        assert not features[row, len(alone) :].any()


def test_decibels_in_a_batch_are_decibels_alone(waveforms: torch.Tensor) -> None:
    features = decibel_spectrogram(waveforms, LENGTHS)
    for row, samples in enumerate(LENGTHS.tolist()):
        alone = decibel_spectrogram(waveforms[row : row + 1, :samples], LENGTHS[[row]])[0]
        assert alone.shape[-1] == decibel_frames(samples)
        torch.testing.assert_close(features[row, :, : alone.shape[-1]], alone, atol=1e-3, rtol=0)
        assert not features[row, :, alone.shape[-1] :].any()


def test_the_floor_is_eight_decades_below_the_clips_own_maximum(waveforms: torch.Tensor) -> None:
    click = torch.zeros(1, 16_000)
    click[0, 0:50] = 1.0
    features, _ = log_mel(click, torch.tensor([16_000]), bins=80)
    assert float(features.max() - features.min()) == pytest.approx(2.0)  # 8 decades / 4


def test_autocast_does_not_lower_the_precision(waveforms: torch.Tensor) -> None:
    expected = log_mel(waveforms, LENGTHS, bins=80)[0], kaldi_fbank(waveforms, LENGTHS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(log_mel(waveforms, LENGTHS, bins=80)[0], expected[0])
        assert torch.equal(kaldi_fbank(waveforms, LENGTHS), expected[1])


def test_fbank_of_less_than_a_frame_is_an_error() -> None:
    with pytest.raises(ValueError, match="399 samples; expected at least 400"):
        kaldi_fbank(torch.zeros(1, 399), torch.tensor([399]))


def test_triangles_are_drawn_as_in_the_library_of_the_released_encoders() -> None:
    """Weights near a triangle's foot, where torchaudio's single precision is 0.5 % (CED) and 0.2 % (BEATs) off."""
    cpu = torch.device("cpu")
    assert _decibel_filters(cpu)[56, 174].item() == pytest.approx(0.00043874300899915397, rel=1e-6)
    kaldi = _kaldi_filters(128, cpu, torch.float64, torch.float32)
    assert kaldi[182, 113].item() == pytest.approx(0.004328907001763582, rel=1e-6)
    exact = _kaldi_filters(128, cpu, torch.float64, torch.float64)
    assert exact[182, 113].item() == pytest.approx(0.004335949027478197, rel=1e-6)


def test_fbank_of_a_clean_tone_in_float64() -> None:
    """A rising tone, most bins of which have only the tone's side lobes; values are torchaudio's."""
    seconds = torch.arange(SAMPLE_RATE, dtype=torch.float64) / SAMPLE_RATE
    tone = 0.5 * torch.sin(2 * torch.pi * (100 * seconds + 3500 * seconds.square()))
    fbank = kaldi_fbank(tone[None], torch.tensor([SAMPLE_RATE]), dtype=torch.float64)[0] * (2 * FBANK_STD) + FBANK_MEAN
    expected = [10.676037648877289, 8.897076259996696, 15.260024515401714, 14.912606299473799]
    assert fbank[10, ::16][:4].tolist() == pytest.approx(expected, abs=2e-5)
    expected = [1.3359558763231243, 3.207298662419603, 5.416010760977104, 12.30760886627826]
    assert fbank[90, ::16][4:].tolist() == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("samples", [400, 401, 559, 560, 719, 720])
def test_fbank_of_a_clip_of_a_frame_or_two(samples: int) -> None:
    clip = torch.randn(1, samples, generator=torch.Generator().manual_seed(samples))
    assert kaldi_fbank(clip, torch.tensor([samples])).shape == (1, fbank_frames(samples), 128)
    assert fbank_frames(samples) == 1 + (samples - 400) // 160

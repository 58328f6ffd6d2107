"""Spectra of a batch: each clip's own, in any company, whatever lies after its end."""

from __future__ import annotations

import pytest
import torch

from models.features import (
    SAMPLE_RATE,
    decibel_frames,
    decibel_spectrogram,
    fbank_frames,
    kaldi_fbank,
    log_mel,
    log_mel_frames,
)

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

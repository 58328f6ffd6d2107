"""What holds for every encoder: padding is neutral, training leaves no layer out, lengths and rates are right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.encoders import ENCODERS, clips_for, load_encoder


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_padding_is_neutral(files: dict[str, Path], name: str) -> None:
    encoder = load_encoder(files, name)
    waveforms, lengths = clips_for(encoder)
    frames, counts = encoder(waveforms, lengths)
    assert frames.shape == (8, int(counts.max()), encoder.dim)
    for row, samples in enumerate(lengths.tolist()):
        alone, count = encoder(waveforms[row : row + 1, :samples], lengths[[row]])
        assert counts[row] == count[0] == alone.shape[1] == encoder.frame_count(samples)
        torch.testing.assert_close(frames[row, : counts[row]], alone[0], atol=1e-5, rtol=0)
        assert not frames[row, counts[row] :].any()


@pytest.mark.parametrize("name", ENCODERS)
def test_training_drops_no_layer_and_reaches_every_weight(files: dict[str, Path], name: str) -> None:
    encoder = load_encoder(files, name).train()
    waveforms, lengths = clips_for(encoder)
    frames, _ = encoder(waveforms[2:4], lengths[2:4])
    torch.testing.assert_close(encoder(waveforms[2:4], lengths[2:4])[0], frames)
    (frames * torch.randn(frames.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    silent = {key for key, value in encoder.named_parameters() if value.requires_grad and value.grad is None}
    assert not silent


@pytest.mark.parametrize("name", ENCODERS)
def test_clips_out_of_range_are_errors(files: dict[str, Path], name: str) -> None:
    encoder = load_encoder(files, name)
    if name == "whisper full":
        assert encoder(torch.zeros(1, 480_001), torch.tensor([480_001]))[0].shape[1] == 1500
        return
    for samples in (encoder.min_samples - 1, encoder.max_samples + 1):
        with pytest.raises(ValueError, match=f"clip 0 of the batch has {samples} samples; expected"):
            encoder(torch.zeros(1, samples), torch.tensor([samples]))


def test_frame_rates_are_those_of_the_frames(files: dict[str, Path]) -> None:
    for name in ("whisper clip", "beats", "ced"):
        encoder = load_encoder(files, name)
        assert encoder.frame_count(20 * 16_000) == pytest.approx(20 * encoder.frame_rate_hz, abs=10)


def test_fingerprints_know_weights_and_settings(files: dict[str, Path]) -> None:
    clip, full = load_encoder(files, "whisper clip"), load_encoder(files, "whisper full")
    assert clip.fingerprint == load_encoder(files, "whisper clip").fingerprint != full.fingerprint
    before = clip.fingerprint
    with torch.no_grad():
        clip.layers[1].fc2.bias[3] += 1e-6
    assert clip.fingerprint != before

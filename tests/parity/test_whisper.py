"""models.encoders.whisper against transformers' encoder and feature extractor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.encoders.features import log_mel
from models.encoders.whisper import WhisperEncoder

FULL = 480_000


@pytest.fixture(scope="module")
def vectors(parity_dir: Path) -> dict[str, torch.Tensor]:
    folder = parity_dir / "whisper_encoder"
    return load_file(folder / "input.safetensors") | load_file(folder / "output.safetensors")


def _clip(vectors: dict[str, torch.Tensor], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    pcm = vectors[f"pcm_{name}"]
    return pcm.float()[None] / 32768, torch.tensor([len(pcm)])


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize(("name", "atol"), [("noise", 1e-4), ("mix", 1e-4), ("chirp", 5e-3)])
def test_full_log_mel(vectors: dict[str, torch.Tensor], name: str, atol: float, bins: int) -> None:
    features, lengths = log_mel(*_clip(vectors, name), bins=bins, full_samples=FULL)
    expected = vectors[f"mel{bins}_{name}"]
    assert features.shape == (1, bins, 3000) and lengths.tolist() == [3000]
    torch.testing.assert_close(features[0, :, : expected.shape[1]], expected, atol=atol, rtol=0)
    tail = features[0, :, expected.shape[1] :]
    torch.testing.assert_close(tail, vectors[f"mel{bins}_{name}_tail"].expand_as(tail), atol=atol, rtol=0)


def test_log_mel_at_real_length_is_the_beginning_of_the_full_one(vectors: dict[str, torch.Tensor]) -> None:
    features, lengths = log_mel(*_clip(vectors, "noise"), bins=80)
    assert lengths.tolist() == [130] and features.shape[-1] == 130
    torch.testing.assert_close(features[0], vectors["mel80_noise"][:, :130], atol=1e-4, rtol=0)


@torch.no_grad()
def test_encoder(parity_dir: Path, vectors: dict[str, torch.Tensor]) -> None:
    encoder = WhisperEncoder.from_pretrained(parity_dir / "whisper_encoder" / "hf", window="full")
    features = vectors["mel_half"].float()
    frames, lengths = encoder.encode_features(features, torch.tensor([3000, 3000]))
    assert lengths.tolist() == [1500, 1500]
    torch.testing.assert_close(frames, vectors["last_hidden_state"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_full_window_is_the_library_from_waveform_to_frames(parity_dir: Path, vectors: dict[str, torch.Tensor]) -> None:
    from transformers import WhisperFeatureExtractor, WhisperModel

    folder = parity_dir / "whisper_encoder" / "hf"
    waveforms, lengths = _clip(vectors, "mix")
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    features = extractor(waveforms[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    expected = WhisperModel.from_pretrained(folder).eval().encoder(features).last_hidden_state
    frames, _ = WhisperEncoder.from_pretrained(folder, window="full")(waveforms, lengths)
    torch.testing.assert_close(frames, expected, atol=1e-4, rtol=0)

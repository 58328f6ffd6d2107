"""models.encoders.whisper against transformers' encoder and feature extractor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.encoders.features import HOP, log_mel
from models.encoders.whisper import WhisperEncoder
from tests.vectors import cases, matches, tensor_names

FULL = 480_000


def _spectrograms(folder: Path) -> list[tuple[str, str]]:
    """(bins, clip) of every spectrogram."""
    found = matches(r"mel(\d+)_(.+)", tensor_names(folder / "output.safetensors"))
    return [(bins, name) for bins, name in found if not name.endswith("_tail")]


def _clips(folder: Path) -> list[str]:
    return matches("pcm_(.+)", tensor_names(folder / "input.safetensors"))


@pytest.fixture(scope="module")
def vectors(parity_dir: Path) -> dict[str, torch.Tensor]:
    folder = parity_dir / "whisper_encoder"
    return load_file(folder / "input.safetensors") | load_file(folder / "output.safetensors")


def _clip(vectors: dict[str, torch.Tensor], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    pcm = vectors[f"pcm_{name}"]
    return pcm.float()[None] / 32768, torch.tensor([len(pcm)])


def _atol(name: str) -> float:
    return 5e-3 if "chirp" in name else 1e-4  # quiet bins of a clean tone are rounding of the float32 FFT


@cases(("bins", "name"), "whisper_encoder", _spectrograms)
def test_full_log_mel(vectors: dict[str, torch.Tensor], bins: str, name: str) -> None:
    features, lengths = log_mel(*_clip(vectors, name), bins=int(bins), full_samples=FULL)
    expected = vectors[f"mel{bins}_{name}"]
    assert features.shape == (1, int(bins), FULL // HOP) and lengths.tolist() == [FULL // HOP]
    torch.testing.assert_close(features[0, :, : expected.shape[1]], expected, atol=_atol(name), rtol=0)
    tail = features[0, :, expected.shape[1] :]
    torch.testing.assert_close(tail, vectors[f"mel{bins}_{name}_tail"].expand_as(tail), atol=_atol(name), rtol=0)


@cases(("bins", "name"), "whisper_encoder", _spectrograms)
def test_log_mel_at_real_length_is_the_beginning_of_the_full_one(
    vectors: dict[str, torch.Tensor], bins: str, name: str
) -> None:
    waveforms, samples = _clip(vectors, name)
    features, lengths = log_mel(waveforms, samples, bins=int(bins))
    count = -(-int(samples) // HOP)
    assert lengths.tolist() == [count] and features.shape[-1] == count
    same = min(count, FULL // HOP - 2)  # at 30 s the full one is reflected, where silence follows the other
    expected = vectors[f"mel{bins}_{name}"][:, :same]
    torch.testing.assert_close(features[0, :, :same], expected, atol=_atol(name), rtol=0)


@torch.no_grad()
def test_encoder(parity_dir: Path, vectors: dict[str, torch.Tensor]) -> None:
    encoder = WhisperEncoder.from_pretrained(parity_dir / "whisper_encoder" / "hf", window="full")
    features, expected = vectors["mel_half"].float(), vectors["last_hidden_state"]
    frames, lengths = encoder.encode_features(features, torch.full((len(features),), features.shape[-1]))
    assert lengths.tolist() == [expected.shape[1]] * len(expected)
    torch.testing.assert_close(frames, expected, atol=1e-4, rtol=0)


@cases("name", "whisper_encoder", _clips)
@torch.no_grad()
def test_full_window_is_the_library_from_waveform_to_frames(
    parity_dir: Path, vectors: dict[str, torch.Tensor], name: str
) -> None:
    from transformers import WhisperFeatureExtractor, WhisperModel

    folder = parity_dir / "whisper_encoder" / "hf"
    waveforms, lengths = _clip(vectors, name)
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    features = extractor(waveforms[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    expected = WhisperModel.from_pretrained(folder).eval().encoder(features).last_hidden_state
    frames, _ = WhisperEncoder.from_pretrained(folder, window="full")(waveforms, lengths)
    torch.testing.assert_close(frames, expected, atol=1e-4, rtol=0)

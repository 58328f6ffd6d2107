"""models.encoders.ced against the public implementation, and against a published system's use of it (`n7`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.encoders.ced import CED
from models.encoders.features import decibel_spectrogram
from models.released_rules import encode_released

HEADS = 3  # a bare state dict does not say


@pytest.fixture(scope="module")
def vectors(parity_dir: Path) -> dict[str, torch.Tensor]:
    vectors = load_file(parity_dir / "ced" / "input.safetensors") | load_file(parity_dir / "ced" / "output.safetensors")
    vectors["waveforms"] = vectors["pcm"].float() / 32768
    vectors["lengths"] = torch.full((len(vectors["pcm"]),), vectors["pcm"].shape[1])
    return vectors


def _load(parity_dir: Path, **options: object) -> CED:
    return CED.from_checkpoint(parity_dir / "ced" / "ced_10s.pt", num_heads=HEADS, **options)


def _classifier(parity_dir: Path) -> torch.nn.Module:
    """The classifier of the file, which the encoder leaves out: of the mean of a clip's tokens."""
    weights = torch.load(parity_dir / "ced" / "ced_10s.pt", weights_only=True)
    classes, width = weights["outputlayer.1.weight"].shape
    head = torch.nn.Sequential(torch.nn.LayerNorm(width), torch.nn.Linear(width, classes))
    prefix = "outputlayer."
    head.load_state_dict({name.removeprefix(prefix): value for name, value in weights.items() if prefix in name})
    return head


def _close(ours: torch.Tensor, expected: torch.Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(ours, expected, atol=atol, rtol=0)


def _time_major(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2)


def test_spectrogram(vectors: dict[str, torch.Tensor]) -> None:
    waveforms, lengths = vectors["waveforms"], vectors["lengths"]
    _close(decibel_spectrogram(waveforms, lengths, batch_floor=True), vectors["rm_spec_db"], atol=1e-3)
    alone = vectors["rm_spec_db_row1_alone"]
    _close(decibel_spectrogram(waveforms[1:], lengths[1:]), alone, atol=1e-3)
    _close(decibel_spectrogram(waveforms, lengths)[1:], alone, atol=1e-3)


@torch.no_grad()
def test_tokens_and_probabilities(parity_dir: Path, vectors: dict[str, torch.Tensor]) -> None:
    frames, lengths = encode_released(_load(parity_dir), vectors["waveforms"], vectors["lengths"])
    assert lengths.tolist() == [60, 60]
    _close(frames, _time_major(vectors["rm_tokens"]))
    _close(_classifier(parity_dir)(frames.mean(dim=1)).sigmoid(), vectors["rm_probs"])


@torch.no_grad()
def test_probabilities_of_pieces(parity_dir: Path, vectors: dict[str, torch.Tensor]) -> None:
    span = 112
    model, classifier, waveforms = _load(parity_dir, target_length=span), _classifier(parity_dir), vectors["waveforms"]

    def probabilities(piece: torch.Tensor) -> torch.Tensor:
        steps = torch.full((len(piece),), piece.shape[-1] // 16)
        return classifier(model.encode_spectrogram(piece, steps).mean(dim=1)).sigmoid()

    # The released classifier cuts longer spectrograms in pieces, fills the last with zeros, and takes the mean.
    spectrogram = model.normalise(decibel_spectrogram(waveforms, vectors["lengths"], batch_floor=True))
    filled = torch.nn.functional.pad(spectrogram, (0, -spectrogram.shape[-1] % span))
    pieces = [probabilities(piece) for piece in filled.split(span, dim=-1)]
    _close(torch.stack(pieces).mean(dim=0), vectors["rm_chunked_probs"])
    # It loses the last piece of a clip of just two spans, so that the first stands alone.
    spectrogram = decibel_spectrogram(waveforms[:, :35_680], torch.full((2,), 35_680), batch_floor=True)
    _close(probabilities(model.normalise(spectrogram[..., :span])), vectors["rm_chunked_probs_exact_multiple"])


@torch.no_grad()
def test_as_second_encoder_of_a_published_system(parity_dir: Path, vectors: dict[str, torch.Tensor]) -> None:
    model = _load(parity_dir, target_length=3001, rescale=True, frequency_major=True)
    _close(model.time_pos_embed, vectors["n7_time_pos_embed"])
    frames, _ = encode_released(model, vectors["waveforms"], vectors["lengths"])
    _close(frames, vectors["n7_tokens"])

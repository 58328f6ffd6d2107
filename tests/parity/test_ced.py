"""models.encoders.ced against the public implementation, and against a published system's use of it (`n7`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.encoders.ced import CED
from models.encoders.features import decibel_spectrogram
from models.released_rules import encode_released
from tests.vectors import cases, matches, settings, tensor_names


@pytest.fixture(scope="module")
def facts(parity_dir: Path) -> dict:
    return settings(parity_dir / "ced")


@pytest.fixture(scope="module")
def file(parity_dir: Path) -> Path:
    (file,) = (parity_dir / "ced").glob("*.pt")
    return file


@pytest.fixture(scope="module")
def vectors(parity_dir: Path) -> dict[str, torch.Tensor]:
    vectors = load_file(parity_dir / "ced" / "input.safetensors") | load_file(parity_dir / "ced" / "output.safetensors")
    vectors["waveforms"] = vectors["pcm"].float() / 32768
    vectors["lengths"] = torch.full((len(vectors["pcm"]),), vectors["pcm"].shape[1])
    return vectors


def _load(file: Path, facts: dict, **options: object) -> CED:
    """A bare state dict does not say how many heads it has."""
    return CED.from_checkpoint(file, num_heads=facts["model"]["num_heads"], **options)


def _close(ours: torch.Tensor, expected: torch.Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(ours, expected, atol=atol, rtol=0)


def _time_major(tokens: torch.Tensor, bins: int) -> torch.Tensor:
    return tokens.unflatten(1, (bins, -1)).transpose(1, 2).flatten(1, 2)


def _probabilities(model: CED, file: Path, spectrogram: torch.Tensor, patch: int) -> list[torch.Tensor]:
    """The file's classifier, which our encoder leaves out, on each piece of a spectrogram; the last is filled up."""
    weights = torch.load(file, weights_only=True)
    layer = torch.nn.Sequential(
        torch.nn.LayerNorm(len(weights["outputlayer.0.bias"])),
        torch.nn.Linear(*reversed(weights["outputlayer.1.weight"].shape)),
    )
    layer.load_state_dict({name[12:]: value for name, value in weights.items() if name.startswith("outputlayer.")})
    pieces = list(model.normalise(spectrogram).split(model.config.target_length, dim=-1))
    if len(pieces) > 1:
        pieces[-1] = torch.nn.functional.pad(pieces[-1], (0, pieces[0].shape[-1] - pieces[-1].shape[-1]))
    steps = torch.full((len(spectrogram),), pieces[0].shape[-1] // patch)
    return [layer(model.encode_spectrogram(piece, steps).mean(dim=1)).sigmoid() for piece in pieces]


def test_spectrogram(vectors: dict[str, torch.Tensor]) -> None:
    whole = decibel_spectrogram(vectors["waveforms"], vectors["lengths"], batch_floor=True)
    _close(whole, vectors["rm_spec_db"], atol=1e-3)


@cases(
    "row",
    "ced",
    lambda folder: matches(r"rm_spec_db_row(\d+)_alone", tensor_names(folder / "output.safetensors")),
)
def test_spectrogram_of_a_row(vectors: dict[str, torch.Tensor], row: str) -> None:
    rows = slice(int(row), int(row) + 1)
    waveforms, lengths, alone = vectors["waveforms"], vectors["lengths"], vectors[f"rm_spec_db_row{row}_alone"]
    _close(decibel_spectrogram(waveforms[rows], lengths[rows]), alone, atol=1e-3)
    _close(decibel_spectrogram(waveforms, lengths)[rows], alone, atol=1e-3)


@torch.no_grad()
def test_tokens_and_probabilities(file: Path, facts: dict, vectors: dict[str, torch.Tensor]) -> None:
    model, patch = _load(file, facts), facts["model"]["patch_size"]
    frames, lengths = encode_released(model, vectors["waveforms"], vectors["lengths"])
    expected = _time_major(vectors["rm_tokens"], vectors["rm_spec_db"].shape[1] // patch)
    assert lengths.tolist() == [expected.shape[1]] * len(expected)
    _close(frames, expected)
    spectrogram = decibel_spectrogram(vectors["waveforms"], vectors["lengths"], batch_floor=True)
    (probabilities,) = _probabilities(model, file, spectrogram, patch)
    _close(probabilities, vectors["rm_probs"])


@torch.no_grad()
def test_probabilities_of_pieces(file: Path, facts: dict, vectors: dict[str, torch.Tensor]) -> None:
    patch, pieces = facts["model"]["patch_size"], facts["chunked"]
    model, waveforms = _load(file, facts, target_length=pieces["target_length"]), vectors["waveforms"]
    spectrogram = decibel_spectrogram(waveforms, vectors["lengths"], batch_floor=True)
    probabilities = torch.stack(_probabilities(model, file, spectrogram, patch))
    _close(probabilities.mean(dim=0), vectors["rm_chunked_probs"])
    # The released code loses the last piece of a clip of whole spans; we do not.
    exact = waveforms[:, : pieces["exact_case_samples"]]
    spectrogram = decibel_spectrogram(exact, torch.full((len(exact),), exact.shape[1]), batch_floor=True)
    spectrogram = spectrogram[..., : pieces["exact_case_frames"] - pieces["target_length"]]
    probabilities = torch.stack(_probabilities(model, file, spectrogram, patch))
    _close(probabilities.mean(dim=0), vectors["rm_chunked_probs_exact_multiple"])


@torch.no_grad()
def test_as_second_encoder_of_a_published_system(file: Path, facts: dict, vectors: dict[str, torch.Tensor]) -> None:
    model = _load(file, facts, target_length=facts["n7_target_length"], rescale=True, frequency_major=True)
    _close(model.time_pos_embed, vectors["n7_time_pos_embed"])
    frames, _ = encode_released(model, vectors["waveforms"], vectors["lengths"])
    _close(frames, vectors["n7_tokens"])

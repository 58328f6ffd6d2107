"""models.encoders.beats against the public implementation, pre-trained and fine-tuned, padding mask or none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.encoders.beats import BEATs
from models.encoders.features import kaldi_fbank
from models.frames import length_mask, zero_after
from models.released_rules import encode_released, reduce_padding
from tests.vectors import cases


@pytest.fixture(scope="module")
def vectors(parity_dir: Path) -> dict[str, torch.Tensor]:
    folder = parity_dir / "beats"
    vectors = load_file(folder / "input.safetensors") | load_file(folder / "output.safetensors")
    vectors["waveforms"] = vectors["pcm"].double() / 32768
    vectors["lengths"] = (~vectors["padding_mask"]).sum(dim=1)
    return vectors


def _load(parity_dir: Path, file: str) -> BEATs:
    return BEATs.from_checkpoint(parity_dir / "beats" / file, fbank_dtype=torch.float64)


def _close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def _files(folder: Path) -> list[str]:
    return [file.name for file in folder.glob("*.pt")]


@cases("file", "beats", _files)
@torch.no_grad()
def test_features(parity_dir: Path, vectors: dict[str, torch.Tensor], file: str) -> None:
    model, waveforms, lengths = _load(parity_dir, file), vectors["waveforms"], vectors["lengths"]
    prefix = "ft_" if "finetuned" in file else ""
    frames, frame_lengths = encode_released(model, waveforms, lengths)
    _close(frames, vectors[f"{prefix}features"])
    assert torch.equal(~length_mask(frame_lengths, frames.shape[1]), vectors["token_mask"])
    whole = torch.full_like(lengths, waveforms.shape[1])
    _close(encode_released(model, waveforms, whole)[0], vectors[f"{prefix}features_nomask"])
    _close(model(waveforms, whole)[0], vectors[f"{prefix}features_nomask"])


@torch.no_grad()
def test_patches_and_masks(parity_dir: Path, vectors: dict[str, torch.Tensor]) -> None:
    model, waveforms = _load(parity_dir, "beats.pt"), vectors["waveforms"]
    whole = torch.full((len(waveforms),), waveforms.shape[1])
    fbank = kaldi_fbank(waveforms, whole, dtype=torch.float64)
    _close(model.embed_patches(fbank), vectors["dbg_patch_tokens"])
    frame_mask = reduce_padding(vectors["padding_mask"], fbank.shape[1])
    assert torch.equal(frame_mask, vectors["frame_mask"])
    assert torch.equal(reduce_padding(frame_mask, vectors["token_mask"].shape[1]), vectors["token_mask"])


@torch.no_grad()
def test_neutral_padding_in_a_batch_is_the_released_answer_alone(
    parity_dir: Path, vectors: dict[str, torch.Tensor]
) -> None:
    frames, frame_lengths = _load(parity_dir, "beats.pt")(vectors["waveforms"], vectors["lengths"])
    for row, expected in zip(vectors["alone_row"].tolist(), vectors["features_alone"], strict=True):
        assert frame_lengths[row] == len(expected)
        _close(frames[row, : len(expected)], expected)


@torch.no_grad()
def test_class_probabilities(parity_dir: Path, vectors: dict[str, torch.Tensor]) -> None:
    """The fine-tuned file's classifier, which our encoder leaves out, on our frames."""
    model, lengths = _load(parity_dir, "beats_finetuned.pt"), vectors["lengths"]
    weights = torch.load(parity_dir / "beats" / "beats_finetuned.pt", weights_only=True)["model"]

    def probabilities(frames: torch.Tensor, frame_lengths: torch.Tensor) -> torch.Tensor:
        logits = torch.nn.functional.linear(frames, weights["predictor.weight"], weights["predictor.bias"])
        return torch.sigmoid(zero_after(logits, frame_lengths).sum(dim=1) / frame_lengths[:, None])

    _close(probabilities(*encode_released(model, vectors["waveforms"], lengths)), vectors["ft_probs"])
    whole = torch.full_like(lengths, vectors["waveforms"].shape[1])
    _close(probabilities(*model(vectors["waveforms"], whole)), vectors["ft_probs_nomask"])


@cases("file", "beats", _files)
def test_files_round_trip(parity_dir: Path, tmp_path: Path, file: str) -> None:
    released = torch.load(parity_dir / "beats" / file, weights_only=True)
    _load(parity_dir, file).save_checkpoint(tmp_path / file)
    ours = torch.load(tmp_path / file, weights_only=True)
    assert ours["cfg"].items() <= {**released["cfg"], "finetuned_model": False}.items()
    encoder = {name: value for name, value in released["model"].items() if not name.startswith("predictor.")}
    assert ours["model"].keys() == encoder.keys()
    assert all(torch.equal(value, encoder[name]) for name, value in ours["model"].items())

"""Whisper folders: forms that load, and errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.encoders.whisper import WhisperEncoder
from tests import tiny
from tests.encoders import clips_for, load_encoder


@pytest.mark.parametrize("form", ["half", "generation model", "bare encoder"])
@torch.no_grad()
def test_whisper_folders_of_every_form(files: dict[str, Path], tmp_path: Path, form: str) -> None:
    weights = load_file(files["whisper"] / "model.safetensors")
    if form == "half":
        weights = {name: value.half() for name, value in weights.items()}
    elif form == "generation model":
        weights = {f"model.{name}": value for name, value in weights.items()} | {"proj_out.weight": torch.zeros(64, 32)}
    else:
        weights = {name[8:]: value for name, value in weights.items() if name.startswith("encoder.")}
    for file in files["whisper"].glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "model.safetensors")
    encoder, original = WhisperEncoder.from_pretrained(tmp_path), load_encoder(files, "whisper clip")
    assert encoder.conv1.weight.dtype == torch.float32
    waveforms, lengths = clips_for(encoder)
    tolerance = 0.05 if form == "half" else 0
    torch.testing.assert_close(encoder(waveforms, lengths)[0], original(waveforms, lengths)[0], atol=tolerance, rtol=0)


def test_a_whisper_folder_without_encoder_weights_is_an_error(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot load 'no/such folder'"):
        WhisperEncoder.from_pretrained("no/such folder")
    for file in files["whisper"].glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(files["whisper"] / "model.safetensors")
    del weights["encoder.layers.1.fc1.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 weights of the encoder: layers\.1\.fc1\.weight"):
        WhisperEncoder.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="window is 'half'"):
        WhisperEncoder.from_pretrained(files["whisper"], window="half")


def test_whisper_loads_in_half_precision_and_follows_its_dtype(files: dict[str, Path]) -> None:
    encoder = WhisperEncoder.from_pretrained(files["whisper"], dtype=torch.bfloat16)
    waveforms, lengths = clips_for(encoder)
    assert encoder(waveforms, lengths)[0].dtype == torch.bfloat16


def test_whisper_weights_in_another_shape_are_named(tmp_path: Path) -> None:
    folder = tiny.write_whisper(tmp_path / "whisper")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("encoder.layers.0.fc1.bias"))
    save_file(weights | {name: torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"another shape, 1 weights of the encoder: .*layers\.0\.fc1\.bias"):
        WhisperEncoder.from_pretrained(folder)
    with pytest.raises(ValueError, match="a model of type 'llama'; expected 'whisper'"):
        WhisperEncoder.from_pretrained(tiny.write_llm(tmp_path / "llm"))

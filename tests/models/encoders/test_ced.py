"""CED files and folders: names, batch norm, spans, errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.encoders.ced import CED
from tests.encoders import clips_for, load_encoder


@torch.no_grad()
def test_ced_folders_name_their_weights_otherwise(files: dict[str, Path], tmp_path: Path) -> None:
    weights = torch.load(files["ced"], weights_only=True)
    hub = {
        name if name.startswith("outputlayer.") else f"encoder.{name.replace('init_bn.1.', 'init_bn.')}": value
        for name, value in weights.items()
    }
    save_file(hub, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"num_heads": 2, "target_length": 1012}')
    encoder, original = CED.from_checkpoint(tmp_path), load_encoder(files, "ced")
    waveforms, lengths = clips_for(encoder)
    assert torch.equal(encoder(waveforms, lengths)[0], original(waveforms, lengths)[0])


def test_ced_keeps_its_batch_norm_as_it_is(files: dict[str, Path]) -> None:
    encoder = CED.from_checkpoint(files["ced"], num_heads=2, dtype=torch.bfloat16)
    assert encoder.init_bn["1"].weight.dtype == torch.float32
    waveforms, lengths = clips_for(encoder)
    before = encoder.init_bn["1"].running_mean.clone()
    assert encoder.train()(waveforms, lengths)[0].dtype == torch.bfloat16
    assert torch.equal(encoder.init_bn["1"].running_mean, before)


@torch.no_grad()
def test_a_bare_ced_file_spans_what_the_released_ones_do(files: dict[str, Path]) -> None:
    """63 positions are of 1,012 frames: the last four fill no patch, but a clip of so many is still one piece."""
    encoder = CED.from_checkpoint(files["ced"], num_heads=2)
    assert encoder.config.target_length == 1012 and encoder.max_samples == 161_760
    waveforms = torch.randn(1, 161_760, generator=torch.Generator().manual_seed(3))
    _, lengths = encoder(waveforms, torch.tensor([161_760]))
    assert lengths.tolist() == [252]
    assert CED.from_checkpoint(files["ced"], num_heads=2, target_length=112).max_samples == 17_760


def test_broken_ced_files_are_errors(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "ced.pt"
    with pytest.raises(ValueError, match=r"cannot read '.*ced\.pt' as a \.pt file, a folder .* or a hub name"):
        CED.from_checkpoint(path)
    torch.save({"weights": 1}, path)
    with pytest.raises(ValueError, match=r"it has 'weights', a int; expected tensors under their names"):
        CED.from_checkpoint(path)
    torch.save([1], path)
    with pytest.raises(ValueError, match=r"it holds a list; expected a state dict"):
        CED.from_checkpoint(path)
    torch.save({"weights": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="is no CED; expected time_pos_embed"):
        CED.from_checkpoint(path)
    weights = torch.load(files["ced"], weights_only=True)
    del weights["norm.bias"]
    torch.save(weights, path)
    with pytest.raises(ValueError, match=r"missing norm\.bias"):
        CED.from_checkpoint(path)

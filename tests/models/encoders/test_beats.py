"""BEATs files: switches, precision, classifier, errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.encoders.beats import BEATs
from models.encoders.beats_network import BEATsConfig
from tests import tiny
from tests.encoders import clips_for, load_encoder


@torch.no_grad()
def test_beats_stays_in_float32_under_autocast(files: dict[str, Path]) -> None:
    encoder = load_encoder(files, "beats")
    waveforms, lengths = clips_for(encoder)
    expected = encoder(waveforms, lengths)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(waveforms, lengths)[0], expected)


@pytest.mark.parametrize(
    "switches",
    [
        {"layer_norm_first": True, "deep_norm": False},
        {"gru_rel_pos": False},
        {"relative_position_embedding": False},
        {"conv_pos": 31, "conv_bias": True, "embed_dim": 32, "activation_fn": "relu"},
    ],
)
@torch.no_grad()
def test_beats_switches_keep_padding_neutral(switches: dict[str, object], tmp_path: Path) -> None:
    sizes = {"embed_dim": 16, "encoder_layers": 2, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 64}
    config = BEATsConfig(**{**sizes, "encoder_attention_heads": 2, "conv_pos_groups": 4, **switches})
    torch.manual_seed(0)
    encoder = BEATs(config).eval()
    waveforms, lengths = clips_for(encoder)
    frames, counts = encoder(waveforms, lengths)
    alone, _ = encoder(waveforms[2:3, : lengths[2]], lengths[2:3])
    torch.testing.assert_close(frames[2, : counts[2]], alone[0], atol=1e-5, rtol=0)
    encoder.save_checkpoint(tmp_path / "beats.pt")
    assert torch.equal(BEATs.from_checkpoint(tmp_path / "beats.pt")(waveforms, lengths)[0], frames)


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code in the file ran",))


def test_broken_beats_files_are_errors(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "beats.pt"

    def refused(match: str) -> None:
        with pytest.raises(ValueError, match=match) as caught:
            BEATs.from_checkpoint(path)
        assert "beats.pt" in str(caught.value)

    refused("cannot read")
    path.write_bytes(files["beats"].read_bytes()[:5000])
    refused("cannot read")
    torch.save({"cfg": {}, "model": _Harmful()}, path)
    refused("cannot read")
    assert "ran" not in capsys.readouterr().out
    torch.save({"state_dict": {}}, path)
    refused(r"holds the keys \['state_dict'\]; expected")
    file = torch.load(files["beats"], weights_only=True)
    torch.save({**file, "model": {"a": [1.0]}}, path)
    refused(r"expected \{'cfg': dict, 'model': \{name: tensor\}\}")
    torch.save({**file, "cfg": file["cfg"] | {"encoder_layers": "x"}}, path)
    refused("cfg has encoder_layers 'x'; expected a positive int")
    file["model"]["extra"] = file["model"].pop("layer_norm.bias")
    file["model"]["layer_norm.weight"] = torch.zeros(3)
    torch.save(file, path)
    refused(r"missing layer_norm\.bias; unexpected extra; layer_norm\.weight is \(3,\), expected \(16,\)")
    file["cfg"]["activation_fn"] = "swish"
    torch.save(file, path)
    with pytest.raises(ValueError, match="activation_fn 'swish'; expected one of relu"):
        BEATs.from_checkpoint(path)


@torch.no_grad()
def test_beats_classifier_is_left_out(files: dict[str, Path], tmp_path: Path) -> None:
    encoder = BEATs.from_checkpoint(tiny.write_beats(tmp_path / "finetuned.pt", classes=5))
    waveforms, lengths = clips_for(encoder)
    assert torch.equal(encoder(waveforms, lengths)[0], BEATs.from_checkpoint(files["beats"])(waveforms, lengths)[0])

"""Whisper, BEATs and CED: padding is neutral, files load or say what does not fit, training leaves no layer out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.encoders.base import AudioEncoder
from models.encoders.beats import BEATs
from models.encoders.beats_network import BEATsConfig
from models.encoders.ced import CED, CEDConfig
from models.encoders.whisper import WhisperEncoder
from tests import tiny

ENCODERS = ["whisper clip", "whisper full", "beats", "ced", "ced frequency major"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    ced = CED(CEDConfig(embed_dim=32, depth=2, num_heads=2))
    ced.init_bn["1"].running_mean.fill_(-20.0)
    ced.init_bn["1"].running_var.fill_(400.0)
    torch.save(ced.state_dict() | {"outputlayer.1.bias": torch.zeros(5)}, folder / "ced.pt")  # a classifier
    return {
        "whisper": tiny.write_whisper(folder / "whisper"),
        "beats": tiny.write_beats(folder / "beats.pt"),
        "ced": folder / "ced.pt",
    }


def _load(files: dict[str, Path], name: str) -> AudioEncoder:
    if name == "beats":
        return BEATs.from_checkpoint(files["beats"])
    if name.startswith("ced"):
        return CED.from_checkpoint(files["ced"], num_heads=2, frequency_major="frequency" in name)
    return WhisperEncoder.from_pretrained(files["whisper"], window=name.split()[1])


def _clips(encoder: AudioEncoder) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight clips, the shortest possible one first, garbage after each one's end."""
    lengths = torch.tensor([encoder.min_samples, 3_000, 5_441, 8_000, 12_345, 16_000, 31_999, 48_000])
    return 0.1 * torch.randn(8, 48_000, generator=torch.Generator().manual_seed(1)), lengths


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_padding_is_neutral(files: dict[str, Path], name: str) -> None:
    encoder = _load(files, name)
    waveforms, lengths = _clips(encoder)
    frames, counts = encoder(waveforms, lengths)
    assert frames.shape == (8, int(counts.max()), encoder.dim)
    for row, samples in enumerate(lengths.tolist()):
        alone, count = encoder(waveforms[row : row + 1, :samples], lengths[[row]])
        assert counts[row] == count[0] == alone.shape[1] == encoder.frame_count(samples)
        torch.testing.assert_close(frames[row, : counts[row]], alone[0], atol=1e-5, rtol=0)
        assert not frames[row, counts[row] :].any()


@pytest.mark.parametrize("name", ENCODERS)
def test_training_drops_no_layer_and_reaches_every_weight(files: dict[str, Path], name: str) -> None:
    encoder = _load(files, name).train()
    waveforms, lengths = _clips(encoder)
    frames, _ = encoder(waveforms[2:4], lengths[2:4])
    torch.testing.assert_close(encoder(waveforms[2:4], lengths[2:4])[0], frames)
    (frames * torch.randn(frames.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    silent = {key for key, value in encoder.named_parameters() if value.requires_grad and value.grad is None}
    assert not silent


@pytest.mark.parametrize("name", ENCODERS)
def test_clips_out_of_range_are_errors(files: dict[str, Path], name: str) -> None:
    encoder = _load(files, name)
    if name == "whisper full":
        assert encoder(torch.zeros(1, 480_001), torch.tensor([480_001]))[0].shape[1] == 1500
        return
    for samples in (encoder.min_samples - 1, encoder.max_samples + 1):
        with pytest.raises(ValueError, match=f"clip 0 of the batch has {samples} samples; expected"):
            encoder(torch.zeros(1, samples), torch.tensor([samples]))


def test_frame_rates_are_those_of_the_frames(files: dict[str, Path]) -> None:
    for name in ("whisper clip", "beats", "ced"):
        encoder = _load(files, name)
        assert encoder.frame_count(20 * 16_000) == pytest.approx(20 * encoder.frame_rate_hz, abs=10)


def test_fingerprints_know_weights_and_settings(files: dict[str, Path]) -> None:
    clip, full = _load(files, "whisper clip"), _load(files, "whisper full")
    assert clip.fingerprint == _load(files, "whisper clip").fingerprint != full.fingerprint
    before = clip.fingerprint
    with torch.no_grad():
        clip.layers[1].fc2.bias[3] += 1e-6
    assert clip.fingerprint != before


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
    encoder, original = WhisperEncoder.from_pretrained(tmp_path), _load(files, "whisper clip")
    assert encoder.conv1.weight.dtype == torch.float32
    waveforms, lengths = _clips(encoder)
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
    waveforms, lengths = _clips(encoder)
    assert encoder(waveforms, lengths)[0].dtype == torch.bfloat16


@torch.no_grad()
def test_beats_stays_in_float32_under_autocast(files: dict[str, Path]) -> None:
    encoder = _load(files, "beats")
    waveforms, lengths = _clips(encoder)
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
    waveforms, lengths = _clips(encoder)
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
    waveforms, lengths = _clips(encoder)
    assert torch.equal(encoder(waveforms, lengths)[0], _load(files, "beats")(waveforms, lengths)[0])


@torch.no_grad()
def test_ced_folders_name_their_weights_otherwise(files: dict[str, Path], tmp_path: Path) -> None:
    weights = torch.load(files["ced"], weights_only=True)
    hub = {
        name if name.startswith("outputlayer.") else f"encoder.{name.replace('init_bn.1.', 'init_bn.')}": value
        for name, value in weights.items()
    }
    save_file(hub, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"num_heads": 2, "target_length": 1012}')
    encoder, original = CED.from_checkpoint(tmp_path), _load(files, "ced")
    waveforms, lengths = _clips(encoder)
    assert torch.equal(encoder(waveforms, lengths)[0], original(waveforms, lengths)[0])


def test_ced_keeps_its_batch_norm_as_it_is(files: dict[str, Path]) -> None:
    encoder = CED.from_checkpoint(files["ced"], num_heads=2, dtype=torch.bfloat16)
    assert encoder.init_bn["1"].weight.dtype == torch.float32
    waveforms, lengths = _clips(encoder)
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


def test_whisper_weights_in_another_shape_are_named(tmp_path: Path) -> None:
    folder = tiny.write_whisper(tmp_path / "whisper")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("encoder.layers.0.fc1.bias"))
    save_file(weights | {name: torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"another shape, 1 weights of the encoder: .*layers\.0\.fc1\.bias"):
        WhisperEncoder.from_pretrained(folder)
    with pytest.raises(ValueError, match="lacks, or has in another shape"):  # another model's folder
        WhisperEncoder.from_pretrained(tiny.write_llm(tmp_path / "llm"))

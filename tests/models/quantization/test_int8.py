"""Encoders in 8 bits and with fewer layers: their frames, sizes and names, and what they may not do."""

import dataclasses

import pytest
import torch
from torch import nn

from configs.schema import load_config
from models import build_model
from models.encoders.beats import BEATs
from models.encoders.stack import EncoderStack
from models.encoders.whisper import WhisperEncoder
from models.quantization import int8
from models.quantization.int8 import Int8Linear, round_linears
from models.sizes import part_sizes
from tests import tiny

CPU = torch.device("cpu")
SHORT = [12_000, 16_000]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return tiny.write_project(tmp_path_factory.mktemp("project"))


def model_config(project, *options):
    return load_config(project.config, ["model.allow_slow_kernels=true", *options]).model


def clips():
    waveforms = 0.1 * torch.randn(2, max(SHORT), generator=torch.Generator().manual_seed(0))
    return waveforms, torch.tensor(SHORT)


@pytest.mark.parametrize("kernel", ["integers", "dequantize"])
def test_a_layer_is_near_the_unrounded_one(kernel):
    torch.manual_seed(0)
    linear = nn.Linear(96, 64)
    inputs = torch.randn(2, 5, 96)
    layer = Int8Linear.of(linear)
    layer.kernel = kernel
    exact = linear(inputs)
    outputs = layer(inputs)
    assert layer.weight.dtype == torch.int8 and layer.weight.abs().max() == 127
    assert 0 < (outputs - exact).norm() < 0.02 * exact.norm()
    assert torch.equal(layer(torch.zeros(1, 96)), linear.bias[None])
    torch.testing.assert_close(layer(inputs.bfloat16()).float(), outputs, atol=0.05, rtol=0.05)
    # A row's outputs do not depend on the other rows.
    torch.testing.assert_close(layer(inputs[:1, :1]), outputs[:1, :1], atol=1e-6, rtol=1e-6)


def test_a_gradient_is_that_of_the_rounded_weights():
    layer = Int8Linear.of(nn.Linear(32, 16))
    layer.kernel = "integers"
    inputs = torch.randn(3, 32, requires_grad=True)
    layer(inputs).sum().backward()
    expected = (layer.weight * layer.scales[:, None]).sum(dim=0).expand(3, -1)
    torch.testing.assert_close(inputs.grad, expected)


@pytest.mark.parametrize("name", ["whisper", "beats"])
def test_frames_stay_near_and_weights_take_a_byte(project, name):
    exact = EncoderStack.from_config(model_config(project)).encoders[name]
    rounded = EncoderStack.from_config(model_config(project, "model.encoder_quantization=int8")).encoders[name]
    layers = {key for key, module in rounded.named_modules() if isinstance(module, Int8Linear)}
    linears = {key for key, module in exact.named_modules() if type(module) is nn.Linear}
    assert layers == {key for key in linears if not key.endswith("grep_linear")} and layers
    with torch.no_grad():
        ours, lengths = rounded(*clips())
        theirs, expected = exact(*clips())
    assert torch.equal(lengths, expected)
    assert 0 < (ours - theirs).norm() < 0.05 * theirs.norm()
    assert rounded.fingerprint != exact.fingerprint


def test_whisper_is_rounded_as_it_would_be_after_loading(project):
    """Rounded one weight at a time while loading, or all after loading: the same values."""
    path = model_config(project).whisper_path
    loaded = WhisperEncoder.from_pretrained(path, int8=True)
    later = WhisperEncoder.from_pretrained(path)
    round_linears(later)
    assert sum(isinstance(module, Int8Linear) for module in later.modules()) == 12
    for (name, one), (other_name, other) in zip(
        sorted(loaded.state_dict().items()), sorted(later.state_dict().items()), strict=True
    ):
        assert name == other_name and torch.equal(one, other), name
    half = WhisperEncoder.from_pretrained(path, dtype=torch.float16, int8=True)
    assert {tensor.dtype for tensor in half.parameters()} == {torch.float16, torch.int8}


def test_half_precision_makes_no_second_copy_in_float32(project, monkeypatch):
    """Weights go to float16 one at a time: the largest float32 tensor alive while loading is one weight."""
    path = model_config(project).whisper_path
    sizes = []
    plain = torch.Tensor.to

    def seen(tensor, *arguments, **options):
        if tensor.dtype == torch.float32:
            sizes.append(tensor.numel())
        return plain(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "to", seen)
    encoder = WhisperEncoder.from_pretrained(path, dtype=torch.float16)
    monkeypatch.undo()
    assert {tensor.dtype for tensor in encoder.parameters()} == {torch.float16}
    assert max(sizes, default=0) <= max(tensor.numel() for tensor in encoder.parameters())


@pytest.mark.parametrize("name", ["whisper", "beats"])
def test_upper_layers_are_left_out(project, name, capfd):
    whole = EncoderStack.from_config(model_config(project)).encoders[name]
    lower = EncoderStack.from_config(model_config(project, f"model.{name}_layers=1")).encoders[name]
    assert "UNEXPECTED" not in capfd.readouterr().err  # transformers' list of every weight that was left out
    names = set(whole.state_dict()) - set(lower.state_dict())
    assert names and all("layers.1." in key for key in names)
    assert lower.fingerprint != whole.fingerprint
    with torch.no_grad():
        ours, _ = lower(*clips())
        layers = whole.layers if name == "whisper" else whole.encoder.layers
        del layers[1]
        theirs, _ = whole(*clips())
    torch.testing.assert_close(ours, theirs)
    with pytest.raises(ValueError, match=rf"model.{name}_path: .*9 layers are to be kept, but there are 2"):
        EncoderStack.from_config(model_config(project, f"model.{name}_layers=9"))


def test_a_shortened_or_rounded_beats_is_not_written_as_released(project, tmp_path):
    path = model_config(project).beats_path
    for options in ({"layers": 1}, {"int8": True}):
        with pytest.raises(ValueError, match="released form has all layers"):
            BEATs.from_checkpoint(path, **options).save_checkpoint(tmp_path / "beats.pt")


@pytest.mark.parametrize(
    "options",
    [
        ["model.whisper_layers=1", "model.beats_layers=1"],
        ["model.encoder_quantization=int8", "model.whisper_layers=1"],
    ],
)
def test_the_plan_follows(project, options):
    """Parameters, trainable ones and bytes of every part, without reading a weight."""
    config = model_config(project, *options)
    model, planned = build_model(config), build_model(config, "cpu", weights=False)
    assert part_sizes(model) == part_sizes(planned)
    whole = part_sizes(build_model(model_config(project), "cpu", weights=False))
    assert part_sizes(planned)[0].bytes < whole[0].bytes
    assert model.generate(*clips(), ["<Speech><SpeechHere></Speech> Say."] * 2, max_new_tokens=3, num_beams=1)


def test_kernels_are_named_and_slow_ones_refused(project, monkeypatch):
    config = model_config(project, "model.encoder_quantization=int8")
    lines = EncoderStack.from_config(config).kernels(CPU)
    assert lines[0].startswith("whisper, weights: int8: ") and "12 layers" in lines[0]
    assert EncoderStack.from_config(model_config(project)).kernels(CPU)[0].endswith("none: torch linear, float32, cpu")
    monkeypatch.setattr(int8, "fastest", lambda device: "dequantize")
    assert "unpacked, then torch matmul" in EncoderStack.from_config(config).kernels(CPU)[0]
    with pytest.raises(ValueError, match="allow_slow_kernels"):
        EncoderStack.from_config(dataclasses.replace(config, allow_slow_kernels=False))


def test_rounded_encoders_are_not_trained(project):
    with pytest.raises(ValueError, match=r"encoder_quantization is 'int8', but model.freeze_whisper is false"):
        model_config(project, "model.encoder_quantization=int8", "model.freeze_whisper=false")

"""Frozen layers through oneDNN: the same values and gradients, weights untouched, everything else as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from configs.schema import load_config
from models import build_model
from models.runtime import onednn_linear
from tests.tiny import TinyProject

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this PyTorch has no oneDNN linear"
)


@pytest.fixture
def small_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_linear, "LEAST_WEIGHTS", 1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (2, 5, 24)])
def test_values_and_gradients(small_layers: None, shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(24, 40, bias=bias).requires_grad_(False)
    quick = nn.Sequential(nn.Linear(24, 40, bias=bias).requires_grad_(False))
    quick[0].load_state_dict(plain.state_dict())
    assert onednn_linear.use_onednn(quick) == 1 and isinstance(quick[0], nn.Linear)
    results = []
    for layer in (plain, quick):
        x = torch.linspace(-1, 1, int(torch.tensor(shape).prod())).view(shape).requires_grad_()
        y = layer(x)
        (gradient,) = torch.autograd.grad((y * y).sum(), x)
        results.append((y.detach(), gradient))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(quick(x), results[0][0], rtol=1e-5, atol=1e-6)
        assert quick(x[:0]).shape == (0, *results[0][0].shape[1:]) if len(shape) > 1 else True
    assert quick[0].weight.grad is None


def test_a_weight_that_trains_keeps_its_gradient(small_layers: None) -> None:
    layer = nn.Linear(8, 8)
    assert onednn_linear.use_onednn(layer) == 1
    layer(torch.ones(2, 8)).sum().backward()
    assert torch.equal(layer.weight.grad, torch.full((8, 8), 2.0))


def test_quantised_weights_that_say_float32_keep_their_own_product(small_layers: None) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(64, 64)).requires_grad_(False)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert model[0].weight.dtype == torch.float32 and onednn_linear.use_onednn(model) == 0
    assert model(torch.ones(1, 64)).shape == (1, 64)


def test_other_types_are_left_to_pytorch(small_layers: None) -> None:
    half = nn.Linear(8, 8, dtype=torch.bfloat16)
    assert onednn_linear.use_onednn(half) == 0 and type(half) is nn.Linear
    layer = nn.Linear(8, 8).requires_grad_(False)
    onednn_linear.use_onednn(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.ones(1, 8)).dtype == torch.bfloat16
    assert layer.double()(torch.ones(1, 8, dtype=torch.float64)).dtype == torch.float64


def test_small_layers_are_left_alone() -> None:
    assert onednn_linear.use_onednn(nn.Linear(8, 8)) == 0


@pytest.mark.parametrize("pays", [True, False])
def test_a_model_says_which_kernel_runs_and_answers_alike(
    shared_tiny_project: TinyProject, small_layers: None, monkeypatch: pytest.MonkeyPatch, pays: bool
) -> None:
    config = load_config(shared_tiny_project.config).model
    monkeypatch.setattr(onednn_linear, "pays", lambda: False)
    plain = build_model(config)
    monkeypatch.setattr(onednn_linear, "pays", lambda: pays)
    model = build_model(config)
    model.load_state_dict(plain.state_dict())
    layers = [layer for layer in model.modules() if isinstance(layer, onednn_linear.OneDnnLinear)]
    assert bool(layers) == pays
    assert model.llm.kernel == f"none: {'oneDNN' if pays else 'torch'} linear, float32, cpu"
    clip = torch.sin(torch.arange(12_000) / 9)[None]
    prompts, lengths = ["<Speech><SpeechHere></Speech> Write down what is said."], torch.tensor([12_000])
    options = {"num_beams": 1, "max_new_tokens": 6, "return_details": True}
    (expected,), (got,) = (net.generate(clip, lengths, prompts, **options) for net in (plain, model))
    assert got.tokens == expected.tokens
    assert got.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    model.train()
    model(clip, lengths, prompts, ["one"]).loss.backward()
    assert all(parameter.grad is not None for parameter in model.llm.lora_parameters())

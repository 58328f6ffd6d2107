"""The AutoGPTQ format bit by bit, the kernels over it, and the rounding that fills it."""

import dataclasses

import pytest
import torch

from models.quantization.gptq import GPTQLinear, GPTQSettings, StoredGPTQ, best_kernel, cpu_block, pack, unpack
from models.quantization.gptq_folder import runnable
from models.quantization.gptq_solver import find_range, output_error, round_to_nearest, solve
from tests.quantized import dequantized_weight

CPU = torch.device("cpu")
INPUTS, OUTPUTS = 192, 128


@pytest.fixture(scope="module")
def layer():
    """A weight and inputs that hang together, as those of a network do."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.1 * torch.randn(OUTPUTS, INPUTS, generator=generator)
    inputs = torch.randn(400, INPUTS, generator=generator) @ torch.randn(INPUTS, INPUTS, generator=generator)
    return weight, inputs, inputs.T @ inputs


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packing_is_undone(bits):
    values = torch.randint(0, 2**bits, (64, 5), generator=torch.Generator().manual_seed(bits))
    words = pack(values, bits)
    assert words.dtype == torch.int32 and words.shape == (64 * bits // 32, 5)
    assert torch.equal(unpack(words, bits).long(), values)


def test_words_are_those_of_autogptq():
    """Consecutive inputs from the low bits up; symmetric zero points of format v1 are 0x77777777, of v2 0x88888888."""
    assert pack(torch.arange(8)[:, None], 4).item() == 0x76543210
    stored = round_to_nearest(torch.randn(8, 32), GPTQSettings(group_size=32)).stored(GPTQSettings(group_size=32))
    assert stored.qzeros.tolist() == [[0x77777777]]
    v2 = GPTQSettings(group_size=32, format="gptq_v2")
    words = round_to_nearest(torch.randn(8, 32), v2).stored(v2).qzeros
    assert words.tolist() == [[0x88888888 - 2**32]]


def test_zero_points_are_right_under_a_wrong_label():
    """Some writers put v1 zero points under the label of v2; of symmetric ones the numbers themselves say which."""
    v1, v2 = GPTQSettings(group_size=32), GPTQSettings(group_size=32, format="gptq_v2")
    rounded = round_to_nearest(torch.randn(8, 32), v1)
    expected = dequantized_weight(GPTQLinear(rounded.stored(v1)))
    mislabelled = rounded.stored(v1)
    mislabelled.settings = v2
    assert torch.equal(dequantized_weight(GPTQLinear(mislabelled)), expected)
    assert torch.equal(dequantized_weight(GPTQLinear(rounded.stored(v2))), expected)


@pytest.mark.parametrize("kernel", ["dequantize", "packed"])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("group_size", [32, 64, -1])
def test_a_layer_multiplies_with_what_was_rounded(layer, kernel, act_order, sym, group_size):
    weight, inputs, hessian = layer
    settings = GPTQSettings(group_size=group_size, sym=sym, desc_act=act_order)
    if kernel == "packed" and best_kernel(settings, INPUTS, OUTPUTS, CPU) != "packed":
        pytest.skip("PyTorch's 4-bit product does not take such a layer here")
    rounded = solve(weight, hessian, settings)
    stored = rounded.stored(settings, bias=torch.arange(float(OUTPUTS)))
    linear = GPTQLinear(stored, kernel=kernel)
    assert torch.equal(dequantized_weight(linear), rounded.weight)
    again = linear.stored()
    for name, tensor in stored.state_dict().items():
        assert torch.equal(getattr(again, name), tensor), name

    sample = inputs[:5].clone().requires_grad_()
    outputs = linear(sample)
    outputs.sum().backward()
    exact = inputs[:5] @ rounded.weight.T + linear.bias
    tolerance = 1e-5 if kernel == "dequantize" else 1e-2  # bfloat16
    assert (outputs - exact).norm() < tolerance * exact.norm()
    torch.testing.assert_close(sample.grad, rounded.weight.sum(0).expand(5, -1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_beats_rounding_to_the_nearest(layer, act_order):
    weight, _, hessian = layer
    settings = GPTQSettings(group_size=64, desc_act=act_order)
    solved = output_error(weight, solve(weight, hessian, settings).weight, hessian)
    nearest = output_error(weight, round_to_nearest(weight, settings).weight, hessian)
    assert solved < 0.8 * nearest < 0.8


def test_output_error_is_that_of_the_outputs(layer):
    weight, inputs, hessian = layer
    rounded = round_to_nearest(weight, GPTQSettings(group_size=64)).weight
    outputs = inputs @ weight.T
    measured = (inputs @ rounded.T - outputs).norm() / outputs.norm()
    assert output_error(weight, rounded, hessian) == pytest.approx(measured.item(), rel=1e-3)


def test_inputs_that_are_always_zero_and_few_tokens_do_no_harm(layer):
    weight, inputs, _ = layer
    few = inputs[:7].clone()
    few[:, 3] = 0
    rounded = solve(weight, few.T @ few, GPTQSettings(group_size=64))
    assert torch.isfinite(rounded.weight).all()
    assert (rounded.weight - weight)[:, 3].abs().max() < 0.05
    with pytest.raises(ValueError, match="not finite"):
        solve(weight, torch.full((INPUTS, INPUTS), torch.nan), GPTQSettings())


@pytest.mark.parametrize("sym", [True, False])
def test_ranges_hold_for_every_kernel(sym):
    """Scales that bfloat16 and float16 hold, zero points that format v1 holds; also of weights that are all alike."""
    group = torch.cat([torch.randn(6, 32), torch.rand(2, 32) + 1, torch.zeros(1, 32)])
    scales, zeros = find_range(group, GPTQSettings(sym=sym))
    assert torch.equal(scales.bfloat16().float(), scales) and torch.equal(scales.half().float(), scales)
    assert zeros.min() >= 1 and zeros.max() <= 15
    settings = GPTQSettings(group_size=32, sym=sym)
    rounded = round_to_nearest(group, settings)
    assert (rounded.weight[-1] == 0).all()
    with pytest.raises(ValueError, match="cannot hold 0"):
        StoredGPTQ.of(
            rounded.integers[:8], torch.zeros(1, 8, dtype=torch.int32), rounded.scales[:, :8], rounded.g_idx, settings
        )


def test_settings_are_read_from_every_writer():
    autogptq = {"bits": 4, "group_size": 64, "desc_act": True, "sym": False, "checkpoint_format": "gptq_v2"}
    assert GPTQSettings.from_config(autogptq) == GPTQSettings(group_size=64, desc_act=True, sym=False, format="gptq_v2")
    assert GPTQSettings.from_config({"bits": 8, "format": "gptq", "damp_percent": 0.1}).bits == 8
    settings = GPTQSettings(group_size=32, desc_act=True)
    assert GPTQSettings.from_config(settings.to_config()) == settings
    with pytest.raises(ValueError, match="3 bits"):
        GPTQSettings(bits=3)
    with pytest.raises(ValueError, match="marlin"):
        GPTQSettings.from_config({"bits": 4, "checkpoint_format": "marlin"})


def test_the_kernel_is_chosen_by_the_layer(layer):
    settings = GPTQSettings(group_size=64)
    fast = "packed" if cpu_block() else "dequantize"
    assert best_kernel(settings, INPUTS, OUTPUTS, CPU) == fast
    for other in ({"bits": 8}, {"group_size": -1}, {"group_size": 16}):
        assert best_kernel(dataclasses.replace(settings, **other), INPUTS, OUTPUTS, CPU) == "dequantize"
    assert best_kernel(settings, INPUTS, 24, CPU) == "dequantize"
    assert best_kernel(settings, INPUTS, OUTPUTS, torch.device("cuda")) == "dequantize"
    narrow = round_to_nearest(layer[0][:24], settings).stored(settings)
    with pytest.raises(ValueError, match="packed does not take"):
        runnable(narrow, "packed")


def test_groups_that_are_not_even_are_refused():
    settings = GPTQSettings(group_size=32)
    stored = round_to_nearest(torch.randn(8, 64), settings).stored(settings)
    stored.g_idx[0] = 1
    with pytest.raises(ValueError, match="g_idx"):
        GPTQLinear(stored)

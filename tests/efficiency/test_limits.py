"""Roofline limits: bytes and FLOPs follow from the shapes, peak rates are measured."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.gptq_weights import rounded
from configs.schema import load_config
from efficiency import limits, timing
from models import SALMONN, build_model
from models.quantization.gptq import GPTQLinear, GPTQSettings, cpu_block
from models.quantization.int8 import Int8Linear
from models.runtime import onednn_linear
from models.runtime.spans import span
from tests.tiny import TinyProject

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(shared_tiny_project: TinyProject) -> SALMONN:
    return build_model(load_config(shared_tiny_project.config).model)


def test_rates_are_measured_for_every_type_once() -> None:
    rates = limits.measure_peak_rates(
        CPU, [torch.float32, torch.bfloat16, torch.float32], budget_s=0.01, buffer_bytes=1 << 20, matrix_side=64
    )
    assert set(rates.matrix_flops_per_s) == {"float32", "bfloat16"}
    assert rates.bandwidth_bytes_per_s > 1e8 and min(rates.matrix_flops_per_s.values()) > 1e6
    assert rates.empty_kernel_s is None


def test_the_limit_is_the_slower_of_reading_and_computing() -> None:
    rates = limits.PeakRates(bandwidth_bytes_per_s=100.0, matrix_flops_per_s={"float32": 1000.0}, empty_kernel_s=0.5)
    read = limits.RooflineLimit.of(6.0, rates, read=200, flops=1000, dtype=torch.float32)
    assert (read.limit_s, read.ratio) == (2.0, 3.0)
    computed = limits.RooflineLimit.of(6.0, rates, read=200, flops=4000, dtype=torch.float32)
    assert (computed.limit_s, computed.ratio) == (4.0, 1.5)
    assert limits.RooflineLimit.of(6.0, rates, read=200, kernels=7).launch_floor_s == 3.5


def test_flops_are_counted_where_they_are_done() -> None:
    linear, second = nn.Linear(8, 16), nn.Linear(4, 2)
    with torch.no_grad(), limits.counted_flops() as counts:
        with span("outer"):
            linear(torch.ones(3, 8))
            with span("inner"):
                second(torch.ones(5, 4))
            linear(torch.ones(1, 8))
        heads = torch.ones(1, 4, 10, 16)
        nn.functional.scaled_dot_product_attention(heads, heads, heads)
    assert counts == {"outer": 2 * 4 * 8 * 16, "inner": 2 * 5 * 4 * 2, "other": 2 * 4 * 10 * 10 * (16 + 16)}


def test_flops_of_the_other_library_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_linear, "LEAST_WEIGHTS", 1)
    linear = nn.Linear(8, 16).requires_grad_(False)
    assert onednn_linear.use_onednn(linear) == 1
    with torch.no_grad(), limits.FlopCounter() as counter:
        linear(torch.ones(2, 3, 8))
    assert counter.total == 2 * 6 * 8 * 16


def test_flops_of_integers_count_too_at_a_rate_of_their_own() -> None:
    layer = Int8Linear.of(nn.Linear(32, 48))
    layer.kernel = "integers"
    with torch.no_grad(), limits.FlopCounter() as counter:
        layer(torch.ones(2, 20, 32))
    assert counter.total == 2 * 40 * 32 * 48
    assert limits._compute_type(layer) == torch.int8
    rates = limits.measure_peak_rates(CPU, [torch.int8], budget_s=0.01, buffer_bytes=1 << 20, matrix_side=64)
    assert rates.matrix_flops_per_s["int8"] > 1e6
    layer.kernel = "dequantize"
    assert limits._compute_type(layer) == torch.float32


@pytest.mark.skipif(not cpu_block(), reason="PyTorch has no fast 4-bit product for this processor")
def test_flops_of_4_bit_products_count_too() -> None:
    layer = GPTQLinear(rounded(nn.Linear(128, 64), GPTQSettings(group_size=64)), kernel="packed")
    with torch.no_grad(), limits.FlopCounter() as counter:
        layer(torch.ones(3, 128))
    assert counter.total == 2 * 3 * 128 * 64


def test_a_step_reads_the_weights_and_the_cache(model: SALMONN) -> None:
    config = model.llm.config
    table = config.vocab_size * config.hidden_size * 4
    weights = sum(tensor.nbytes for tensor in (*model.llm.parameters(), *model.llm.buffers()))
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert limits.decode_bytes(model, 10) == weights - table + 10 * cache
    model.llm.merge_lora()
    try:
        lora = sum(p.nbytes for p in model.llm.lora_parameters())
        assert limits.decode_bytes(model, 10) == weights - lora - table + 10 * cache
    finally:
        for layer in model.llm.lora_layers():
            layer.unmerge()


def test_work_of_the_first_token(model: SALMONN) -> None:
    work = timing.TimedClip(
        waveform=timing.synthetic_clip(0.8), prompt="<Speech><SpeechHere></Speech> Write.", decode_steps=4
    )
    counted = limits.count_work(model, lambda: timing.first_token(model, work), work.decode_steps)
    assert set(counted.flops) == {"encoder.whisper", "encoder.beats", "connector", "prefill"} == set(counted.dtypes)
    assert min(counted.flops.values()) > 0 and counted.kernels is None
    with model.without_cuda_graphs(), limits.counted_flops() as flops:
        timing.first_token(model, work)
    assert flops["encoder.whisper"] == counted.flops["encoder.whisper"]  # its features' FLOPs are not among them
    assert flops["features.whisper"] > 0 and flops["assemble"] == flops["other"] == 0
    layers = model.llm.config.num_hidden_layers
    tokens = counted.flops["prefill"] / (2 * counted.read["prefill"] / 4)  # each weight is used once a token
    assert layers == 2 and 3 < tokens < 60
    assert counted.read["decode"] > counted.read["prefill"]

"""Quantised weights: the table's checks, gradients through them, and what stays unquantised."""

from dataclasses import replace

import pytest
import torch

from configs.schema import ModelConfig
from models import quantize
from models.llm import LanguageModel
from tests import tiny

pytest.importorskip("bitsandbytes", reason="quantised weights need bitsandbytes")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_llm(tmp_path_factory.mktemp("llm") / "llm", width=64)


@pytest.fixture
def config(folder):
    return ModelConfig(llama_path=str(folder), lora_rank=4, lora_alpha=8, lora_dropout=0.0, allow_slow_kernels=True)


def logits_of(llm, rows=2):
    ids = torch.randint(5, 300, (rows, 12), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(12).expand(rows, -1)
    return llm.logits(llm(llm.embed(ids), torch.ones_like(ids, dtype=torch.bool), positions))


@pytest.mark.parametrize("backend", ["none", "nf4", "int8"])
def test_lora_learns_through_the_weights_after_an_evaluation_pass(config, backend):
    llm = LanguageModel.from_config(replace(config, quantization=backend))
    with torch.no_grad():
        for name, parameter in llm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
        llm.eval()
        before = logits_of(llm)
        logits_of(llm, rows=1)  # a single row takes another kernel
    llm.train()
    logits_of(llm).logsumexp(-1).sum().backward()
    gradients = {name: p.grad.abs().sum().item() for name, p in llm.named_parameters() if "lora_" in name}
    assert all(value > 0 for value in gradients.values()), gradients
    with torch.no_grad():
        torch.testing.assert_close(logits_of(llm.eval()), before)


def test_gradients_match_those_of_the_dequantised_weights(config):
    """Not only non-zero: the gradient through nf4 layers is the one through the numbers they stand for."""
    import bitsandbytes.functional as bnb

    llm = LanguageModel.from_config(replace(config, quantization="nf4"))
    plain = LanguageModel.from_config(config)
    quantised = dict(llm.model.named_modules())
    with torch.no_grad():
        for name, module in plain.model.named_modules():
            weight = getattr(quantised[name], "weight", None)
            if getattr(weight, "quant_state", None) is not None and not hasattr(module, "base_layer"):
                module.weight.copy_(bnb.dequantize_4bit(weight.data, weight.quant_state))
        for (_, own), (_, other) in zip(
            sorted(p for p in llm.named_parameters() if "lora_" in p[0]),
            sorted(p for p in plain.named_parameters() if "lora_" in p[0]),
            strict=True,
        ):
            other.copy_(own.normal_(0, 0.1))
    for model in (llm, plain):
        with torch.no_grad():
            logits_of(model.eval())
        logits_of(model.train()).logsumexp(-1).sum().backward()
    torch.testing.assert_close(logits_of(llm), logits_of(plain), atol=1e-4, rtol=1e-4)
    for own, other in zip(llm.lora_parameters(), plain.lora_parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("backend", "bytes_a_weight"), [("nf4", 0.5), ("int8", 1)])
def test_head_and_embeddings_stay_unquantised(config, backend, bytes_a_weight):
    llm = LanguageModel.from_config(replace(config, quantization=backend))
    layers = quantize.quantized_layers(llm.model)
    assert len(layers) == 2 * 7
    assert not any("lm_head" in name or "embed" in name for name in layers)
    assert llm.model.get_output_embeddings().weight.dtype == torch.float32
    assert llm.model.get_input_embeddings().weight.dtype == torch.float32
    name, layer = next((n, layer) for n, layer in layers.items() if n.endswith("gate_proj"))
    assert layer.weight.numel() * layer.weight.element_size() == 64 * 128 * bytes_a_weight, name
    assert llm.kernel.startswith(f"{backend}: bitsandbytes") and "14 layers" in llm.kernel


def test_fingerprint_follows_the_numbers(config, folder, tmp_path):
    nf4 = replace(config, quantization="nf4")
    one, same = (quantize.weights_fingerprint(LanguageModel.from_config(nf4)) for _ in range(2))
    other_folder = tiny.write_llm(tmp_path / "other", width=64, seed=1)
    other = quantize.weights_fingerprint(LanguageModel.from_config(replace(nf4, llama_path=str(other_folder))))
    int8 = quantize.weights_fingerprint(LanguageModel.from_config(replace(config, quantization="int8")))
    assert one == same
    assert len({one, other, int8}) == 3


def test_evaluation_does_not_repack_the_weights(config):
    llm = LanguageModel.from_config(replace(config, quantization="nf4")).eval()
    before = quantize.weights_fingerprint(llm)
    with torch.no_grad():
        logits_of(llm)
    assert quantize.weights_fingerprint(llm) == before


def test_quantised_lora_is_not_merged(config):
    llm = LanguageModel.from_config(replace(config, quantization="nf4"))
    assert not llm.merge_lora()
    assert not any(layer.merged for layer in llm.lora_layers())


@pytest.mark.parametrize("backend", ["nf4", "int8"])
def test_a_kernel_slower_than_none_must_be_allowed(config, backend):
    with pytest.raises(ValueError, match="allow_slow_kernels"):
        LanguageModel.from_config(replace(config, quantization=backend, allow_slow_kernels=False))


def test_the_table_is_checked(config):
    def resolve(stored=None, device=CPU, dtype=torch.float32, **changes):
        return quantize.resolve_backend(
            replace(config, **changes), stored, device=device, dtype=dtype, trainable=True
        ).name

    assert resolve() == "none"
    assert resolve(quantization="nf4") == "nf4"
    assert resolve("nf4") == resolve("nf4", quantization="nf4") == "nf4"
    with pytest.raises(ValueError, match="already quantised"):
        resolve("nf4", quantization="int8")
    with pytest.raises(ValueError, match="known"):
        resolve("some_new_method")
    with pytest.raises(ValueError, match="not on mps"):
        resolve(quantization="nf4", device=torch.device("mps"))
    with pytest.raises(ValueError, match="float64"):
        resolve(quantization="nf4", dtype=torch.float64)


def test_a_folder_of_quantised_weights_is_recognised_and_loaded(config, tmp_path):
    source = LanguageModel.from_config(replace(config, quantization="nf4", lora=False)).eval()
    folder = tmp_path / "nf4"
    source.model.save_pretrained(folder)
    loaded = LanguageModel.from_config(replace(config, llama_path=str(folder), lora=False)).eval()
    assert loaded.backend.name == "nf4"
    assert quantize.weights_fingerprint(loaded) == quantize.weights_fingerprint(source)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(loaded), logits_of(source))

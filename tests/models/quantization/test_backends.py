"""Quantised weights: the table's checks, gradients through them, and what stays unquantised."""

import importlib.util
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from configs.sections import ModelConfig
from models.language.llm import LanguageModel
from models.quantization import backends, layers
from models.quantization.gptq import GPTQSettings, cpu_block
from models.quantization.gptq_folder import save_folder
from models.quantization.gptq_solver import round_to_nearest
from tests import tiny
from tests.quantized import dequantized_weight, weights_fingerprint

pytest.importorskip("bitsandbytes", reason="quantised weights need bitsandbytes")
CPU = torch.device("cpu")
needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao, an extra")
TRAINED = ["none", "nf4", "int8", "gptq", "gptq packed", pytest.param("torchao_int8", marks=needs_torchao)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_llm(tmp_path_factory.mktemp("llm") / "llm", width=64)


@pytest.fixture
def config(folder):
    return ModelConfig(llama_path=str(folder), lora_rank=4, lora_alpha=8, lora_dropout=0.0, allow_slow_kernels=True)


@pytest.fixture(scope="module")
def gptq_folder(folder, tmp_path_factory):
    """The model of `folder` with every weight rounded to the nearest of 16, groups of 32."""
    settings = GPTQSettings(group_size=32)
    network = LanguageModel.from_config(ModelConfig(llama_path=str(folder), lora=False)).model
    for name, module in [*network.named_modules()]:
        if isinstance(module, nn.Linear) and module is not network.get_output_embeddings():
            network.set_submodule(name, round_to_nearest(module.weight, settings).stored(settings))
    target = tmp_path_factory.mktemp("gptq") / "llm"
    save_folder(network, target, settings)
    return target


def with_backend(config, backend, gptq_folder):
    """`config` with the back-end named; of `gptq` also the kernel."""
    if not backend.startswith("gptq"):
        return replace(config, quantization=backend)
    kernel = "auto" if backend.endswith("packed") else "dequantize"
    return replace(config, llama_path=str(gptq_folder), quantization="gptq", gptq_kernel=kernel)


def logits_of(llm, rows=2):
    ids = torch.randint(5, 300, (rows, 12), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(12).expand(rows, -1)
    return llm.logits(llm(llm.embed(ids), torch.ones_like(ids, dtype=torch.bool), positions))


@pytest.mark.parametrize("backend", TRAINED)
def test_lora_learns_through_the_weights_after_an_evaluation_pass(config, gptq_folder, backend):
    llm = LanguageModel.from_config(with_backend(config, backend, gptq_folder))
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


@pytest.mark.parametrize("backend", ["nf4", "gptq", pytest.param("torchao_int8", marks=needs_torchao)])
def test_gradients_match_those_of_the_dequantised_weights(config, gptq_folder, backend):
    """Not only non-zero: the gradient through the layers is the one through the dequantised weights."""
    llm = LanguageModel.from_config(with_backend(config, backend, gptq_folder))
    plain = LanguageModel.from_config(config)
    quantised = layers.quantized_layers(llm.model)
    assert len(quantised) == 14
    with torch.no_grad():
        for name, module in plain.model.named_modules():
            if name.removesuffix(".base_layer") in quantised and isinstance(module, nn.Linear):
                module.weight.copy_(dequantized_weight(quantised[name.removesuffix(".base_layer")]))
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


@pytest.mark.parametrize(
    ("backend", "bytes_a_weight"),
    [
        ("nf4", 0.5),
        ("int8", 1),
        ("gptq", 0.5),
        ("gptq packed", 0.5),
        pytest.param("torchao_int8", 1, marks=needs_torchao),
    ],
)
def test_head_and_embeddings_stay_unquantised(config, gptq_folder, backend, bytes_a_weight):
    llm = LanguageModel.from_config(with_backend(config, backend, gptq_folder))
    quantised = layers.quantized_layers(llm.model)
    assert len(quantised) == 2 * 7
    assert not any("lm_head" in name or "embed" in name for name in quantised)
    assert llm.model.get_output_embeddings().weight.dtype == torch.float32
    assert llm.model.get_input_embeddings().weight.dtype == torch.float32
    name, layer = next((n, layer) for n, layer in quantised.items() if n.endswith("gate_proj"))
    beside = 8 * 128 if backend.startswith("torchao") else 0  # its tensor holds scales and zero points of the rows
    assert 0 <= layers.stored_bytes(layer.weight) - 64 * 128 * bytes_a_weight <= beside, name
    package = {"n": "bitsandbytes", "i": "bitsandbytes", "t": "torchao Int8Tensor"}.get(backend[0], "")
    assert llm.kernel.startswith(f"{backend.split()[0]}: {package}") and "14 layers" in llm.kernel


def test_fingerprint_follows_the_numbers(config, folder, tmp_path):
    nf4 = replace(config, quantization="nf4")
    one, same = (weights_fingerprint(LanguageModel.from_config(nf4)) for _ in range(2))
    other_folder = tiny.write_llm(tmp_path / "other", width=64, seed=1)
    other = weights_fingerprint(LanguageModel.from_config(replace(nf4, llama_path=str(other_folder))))
    int8 = weights_fingerprint(LanguageModel.from_config(replace(config, quantization="int8")))
    assert one == same
    assert len({one, other, int8}) == 3


def test_evaluation_does_not_repack_the_weights(config):
    llm = LanguageModel.from_config(replace(config, quantization="nf4")).eval()
    before = weights_fingerprint(llm)
    with torch.no_grad():
        logits_of(llm)
    assert weights_fingerprint(llm) == before


def test_quantised_lora_is_not_merged(config):
    llm = LanguageModel.from_config(replace(config, quantization="nf4"))
    assert not llm.merge_lora()
    assert not any(layer.merged for layer in llm.lora_layers())


@pytest.mark.parametrize("backend", ["nf4", "int8", pytest.param("torchao_int8", marks=needs_torchao)])
def test_a_kernel_slower_than_none_must_be_allowed(config, backend):
    with pytest.raises(ValueError, match="allow_slow_kernels"):
        LanguageModel.from_config(replace(config, quantization=backend, allow_slow_kernels=False))


def test_the_table_is_checked(config):
    def resolve(stored=None, device=CPU, dtype=torch.float32, **changes):
        return backends.resolve_backend(
            replace(config, **changes), stored, device=device, dtype=dtype, trainable=True
        ).name

    assert resolve() == "none"
    assert resolve(quantization="nf4") == "nf4"
    assert resolve("nf4") == resolve("nf4", quantization="nf4") == "nf4"
    assert resolve("gptq") == resolve("gptq", quantization="gptq") == "gptq"
    with pytest.raises(ValueError, match=r"unquantised weights; make a GPTQ folder.*tools/quantize.py"):
        resolve(quantization="gptq")
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
    assert weights_fingerprint(loaded) == weights_fingerprint(source)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(loaded), logits_of(source))


@pytest.mark.parametrize("kind", ["nf4", "int8", "gptq"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_a_folder_of_another_type_computes_in_the_one_asked_for(config, gptq_folder, tmp_path, kind, dtype):
    """A ready 4-bit folder names bfloat16 in its config.json, which a V100 does not have."""
    made = replace(with_backend(config, kind, gptq_folder), lora=False, dtype="bfloat16")
    source = LanguageModel.from_config(made)
    save = (
        partial(save_folder, settings=GPTQSettings(group_size=32))
        if kind == "gptq"
        else type(source.model).save_pretrained
    )
    save(source.model, tmp_path / "folder")
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["dtype"] == "bfloat16"
    asked = replace(made, llama_path=str(tmp_path / "folder"), quantization="none", dtype=dtype)
    llm = LanguageModel.from_config(asked).eval()
    wanted = getattr(torch, dtype)
    assert llm.dtype == wanted and f"compute {dtype}" in llm.kernel
    layers = [module for module in llm.model.modules() if type(module).__name__ == "Linear4bit"]
    assert len(layers) == (14 if kind == "nf4" else 0)
    assert all(module.compute_dtype == module.weight.quant_state.dtype == wanted for module in layers)
    with torch.no_grad():
        assert logits_of(llm).isfinite().all()
        if kind == "nf4" and dtype == "bfloat16":
            torch.testing.assert_close(logits_of(llm), logits_of(source.eval()))


def test_the_layers_of_a_gptq_folder_name_their_kernels(config, gptq_folder):
    """Two of seven layers are too narrow for PyTorch's product; a model that has one is not silently slow."""
    plain = LanguageModel.from_config(with_backend(config, "gptq", gptq_folder))
    assert plain.kernel == "gptq: 4 bits unpacked, then torch matmul, compute float32, cpu, 14 layers"
    if cpu_block():
        packed = LanguageModel.from_config(with_backend(config, "gptq packed", gptq_folder))
        assert "PyTorch's 4-bit product in bfloat16 (10: down_proj, gate_proj" in packed.kernel
        assert "unpacked, then torch matmul (4: k_proj, v_proj)" in packed.kernel
    strict = replace(with_backend(config, "gptq packed", gptq_folder), allow_slow_kernels=False)
    with pytest.raises(ValueError, match="allow_slow_kernels"):
        LanguageModel.from_config(strict)


def test_gptq_folder_is_read_back_and_written_again_with_equal_outputs(config, gptq_folder, tmp_path):
    first = LanguageModel.from_config(replace(with_backend(config, "gptq", gptq_folder), lora=False)).eval()
    save_folder(first.model, tmp_path / "again", GPTQSettings(group_size=32))
    again = with_backend(config, "gptq", tmp_path / "again")
    second = LanguageModel.from_config(replace(again, lora=False)).eval()
    with torch.no_grad():
        assert torch.equal(logits_of(first), logits_of(second))  # the one that was saved still runs
    assert weights_fingerprint(first) == weights_fingerprint(second)


def test_kernels_of_gptqmodel_are_asked_for_where_they_are(config, gptq_folder):
    with pytest.raises(ValueError, match=r"model.gptq_kernel: gptqmodel .*(needs the packages|is for CUDA)"):
        LanguageModel.from_config(replace(with_backend(config, "gptq", gptq_folder), gptq_kernel="gptqmodel"))


@needs_torchao
def test_torchao_weights_are_saved_and_loaded(config, tmp_path):
    source = LanguageModel.from_config(replace(config, quantization="torchao_int8", lora=False)).eval()
    source.model.save_pretrained(tmp_path / "int8")
    loaded = LanguageModel.from_config(replace(config, llama_path=str(tmp_path / "int8"), lora=False)).eval()
    assert loaded.backend.name == "torchao_int8"
    assert weights_fingerprint(loaded) == weights_fingerprint(source)
    with torch.no_grad():
        assert torch.equal(logits_of(loaded), logits_of(source))


def test_torchao_int4_says_where_it_runs(config):
    if importlib.util.find_spec("torchao"):
        with pytest.raises(ValueError, match="runs on cuda, not on cpu"):
            LanguageModel.from_config(replace(config, quantization="torchao_int4"))
    with pytest.raises(ValueError, match=r"torchao_int4' cannot be trained through.*none, nf4, int8, gptq"):
        backends.require_trainable(backends.BACKENDS["torchao_int4"])


def test_the_documented_table_is_the_one_that_is_checked():
    page = Path(__file__).resolve().parents[3] / "docs" / "quantisation.md"
    first = page.read_text(encoding="utf-8").partition("\n|")[2].partition("\n\n")[0]
    lines = [line.strip("|").split("|") for line in first.splitlines() if line.startswith("| `")]
    rows = {name.strip(" `"): [cell.strip() for cell in cells] for name, *cells in lines}
    assert set(rows) == set(backends.BACKENDS) and len(rows) == len(lines)
    for name, (bits, devices, capability, dtypes, trains, merges, package) in rows.items():
        backend = backends.BACKENDS[name]
        assert bits.startswith(str(backend.bits) if backend.bits else "16 or 32"), name
        assert devices.lower().split(", ") == list(backend.devices), name
        assert capability == (str(backend.min_sm / 10) if backend.min_sm else "any"), name
        assert dtypes.split(", ") == [str(dtype).removeprefix("torch.") for dtype in backend.dtypes], name
        assert (trains, merges) == tuple("yes" if able else "no" for able in (backend.trainable, backend.mergeable))
        assert package.startswith(backend.package or ("none" if name == "gptq" else "")), name

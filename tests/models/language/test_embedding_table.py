"""The embedding table of a language model alone: equal to the whole model's, and nothing else is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from configs.sections import ModelConfig
from models.language.llm import LanguageModel
from models.quantization.gptq import GPTQSettings
from models.quantization.gptq_folder import save_folder
from models.quantization.gptq_solver import round_to_nearest
from support.command_line import UserError
from tests import tiny

IDS = torch.tensor([[5, 9, 300], [0, 399, 17]])
WIDTH, ROWS = 32, 400


def parameters_of(table: LanguageModel) -> int:
    return sum(parameter.numel() for parameter in table.parameters())


def check(config: ModelConfig, whole: LanguageModel) -> LanguageModel:
    table = LanguageModel.table_from_config(config)
    assert table.is_table and not whole.is_table
    assert torch.equal(table.embed(IDS), whole.embed(IDS))
    assert (table.dtype, table.hidden_size, table.vocab_size) == (whole.dtype, whole.hidden_size, whole.vocab_size)
    assert parameters_of(table) <= ROWS * WIDTH + WIDTH  # and the last norm, of no size
    assert not any(parameter.requires_grad for parameter in table.parameters())
    return table


@pytest.mark.parametrize("family", tiny.LLM_FAMILIES)
def test_it_is_the_whole_models(tmp_path, family):
    """Gemma's scale too; its heads are tied, the others' are not."""
    folder = tiny.write_llm(tmp_path / "llm", family=family)
    config = ModelConfig(llama_path=str(folder))
    table = check(config, LanguageModel.from_config(config))
    if family.startswith("gemma"):
        stored = table.model.get_input_embeddings().weight
        assert not torch.equal(table.embed(IDS), stored[IDS])
    assert table.kernel == "embedding table alone, float32"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.write_llm(tmp_path_factory.mktemp("table") / "llm")


@pytest.mark.parametrize("kind", ["sharded", "pytorch", "pytorch sharded", "tied", "bfloat16"])
def test_every_form_of_files(folder, tmp_path, kind):
    network = AutoModelForCausalLM.from_pretrained(folder)
    target = tmp_path / "llm"
    if kind == "tied":
        network.config.tie_word_embeddings = True
        network.tie_weights()
    if kind.startswith("pytorch"):
        network.config.save_pretrained(target)
        write_pytorch(network.state_dict(), target, 3 if kind.endswith("sharded") else 1)
    else:
        (network.bfloat16() if kind == "bfloat16" else network).save_pretrained(
            target, max_shard_size="40KB" if kind == "sharded" else "5GB"
        )
    assert (len(list(target.glob("*.safetensors"))) > 1) == (kind == "sharded")
    config = ModelConfig(llama_path=str(target), lora=False, dtype="bfloat16" if kind == "bfloat16" else "auto")
    check(config, LanguageModel.from_config(config))


def write_pytorch(state: dict[str, torch.Tensor], target: Path, shards: int) -> None:
    if shards == 1:
        torch.save(state, target / "pytorch_model.bin")
        return
    names = list(state)
    weight_map = {}
    for index in range(shards):
        file = f"pytorch_model-{index + 1:05d}-of-{shards:05d}.bin"
        part = {name: state[name].clone() for name in names[index::shards]}
        torch.save(part, target / file)
        weight_map |= dict.fromkeys(part, file)
    (target / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_of_a_quantised_folder(folder, tmp_path):
    """Its embeddings are not quantised, and no kernel for the layers is needed."""
    network = AutoModelForCausalLM.from_pretrained(folder)
    gptq = GPTQSettings(group_size=32)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Linear) and module is not network.get_output_embeddings():
            network.set_submodule(name, round_to_nearest(module.weight, gptq).stored(gptq))
    save_folder(network, tmp_path / "gptq", gptq)
    plain = LanguageModel.from_config(ModelConfig(llama_path=str(folder), lora=False))
    for quantization in ("gptq", "none"):
        table = LanguageModel.table_from_config(
            ModelConfig(llama_path=str(tmp_path / "gptq"), quantization=quantization, dtype="float32")
        )
        assert torch.equal(table.embed(IDS), plain.embed(IDS))
        assert parameters_of(table) <= ROWS * WIDTH + WIDTH


def test_a_quantisation_that_is_asked_for_has_no_effect(folder):
    config = ModelConfig(llama_path=str(folder), quantization="nf4")
    check(config, LanguageModel.from_config(replace(config, quantization="none")))


def test_without_weights(folder):
    """At full size on the meta device, from what is known of the architecture."""
    config = ModelConfig(llama_path="meta-llama/Llama-3.2-3B-Instruct")
    table = LanguageModel.table_from_config(config, weights=False)
    assert table.device.type == "meta" and table.is_table
    assert parameters_of(table) == 128_256 * 3072 + 3072


def test_errors_name_the_key(tmp_path):
    with pytest.raises(UserError, match=r"model\.llama_path is not set"):
        LanguageModel.table_from_config(ModelConfig())
    with pytest.raises(UserError, match=r"^model\.llama_path: .*nowhere"):
        LanguageModel.table_from_config(ModelConfig(llama_path=str(tmp_path / "nowhere")))
    broken = tiny.write_llm(tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"^model\.llama_path: cannot load the weights"):
        LanguageModel.table_from_config(ModelConfig(llama_path=str(broken)))

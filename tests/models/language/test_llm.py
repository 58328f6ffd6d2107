"""The language model: what is frozen, LoRA, compute types, and families beyond those checked one by one."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from configs.sections import ModelConfig
from models.language.llm import LanguageModel, compute_dtype
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_llm(tmp_path_factory.mktemp("llm") / "llm")


@pytest.fixture
def config(folder):
    return ModelConfig(llama_path=str(folder), lora_rank=4, lora_alpha=8)


def batch(rows=2, length=12, seed=0):
    ids = torch.randint(5, 300, (rows, length), generator=torch.Generator().manual_seed(seed))
    return ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(length).expand(rows, -1)


def logits_of(llm, ids, mask, positions):
    return llm.logits(llm(llm.embed(ids), mask, positions))


def test_only_lora_trains_and_only_its_dropout_wakes(config):
    llm = LanguageModel.from_config(config)
    trained = [name for name, parameter in llm.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * 2  # layers, modules, A and B
    assert all("lora_" in name for name in trained)
    assert {id(parameter) for parameter in llm.lora_parameters()} == {
        id(parameter) for parameter in llm.parameters() if parameter.requires_grad
    }
    llm.train()
    awake = {name for name, module in llm.named_modules() if module.training and name}
    assert awake and all("lora_dropout" in name for name in awake)
    llm.eval()
    assert not any(module.training for module in llm.modules())


def test_fresh_lora_changes_nothing_and_learns(config):
    with_lora = LanguageModel.from_config(config).eval()
    plain = LanguageModel.from_config(replace(config, lora=False)).eval()
    assert not list(plain.lora_parameters())
    inputs = batch()
    torch.testing.assert_close(logits_of(with_lora, *inputs), logits_of(plain, *inputs))
    with_lora.train()
    logits_of(with_lora, *inputs).logsumexp(-1).sum().backward()
    assert all(p.grad.abs().sum() > 0 for n, p in with_lora.named_parameters() if "lora_B" in n)


def test_merged_lora_gives_the_same_and_can_be_taken_out(config):
    llm = LanguageModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in llm.lora_parameters():
            parameter.normal_(0, 0.1)
        before = logits_of(llm, *batch())
        assert llm.merge_lora()
        torch.testing.assert_close(logits_of(llm, *batch()), before, atol=1e-4, rtol=0)
        for layer in llm.lora_layers():
            layer.unmerge()
        torch.testing.assert_close(logits_of(llm, *batch()), before, atol=1e-4, rtol=0)


def test_unknown_target_module_is_named(config):
    with pytest.raises(ValueError, match=r"query_proj.*q_proj"):
        LanguageModel.from_config(replace(config, lora_target_modules=("q_proj", "query_proj")))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_are_loaded_in_the_compute_type_and_lora_is_float32(config, dtype):
    llm = LanguageModel.from_config(replace(config, dtype=dtype))
    wanted = getattr(torch, dtype)
    assert llm.dtype == wanted
    for name, parameter in llm.named_parameters():
        assert parameter.dtype == (torch.float32 if "lora_" in name else wanted), name
    inputs = batch()
    with torch.no_grad():
        logits = logits_of(llm, *inputs)
    assert logits.dtype == torch.float32 and logits.isfinite().all()


def test_automatic_compute_type():
    cpu = torch.device("cpu")
    assert compute_dtype("auto", cpu, "llama") == torch.float32
    assert compute_dtype("bfloat16", cpu) == torch.bfloat16
    assert compute_dtype("auto", torch.device("cuda"), "qwen2") == torch.float16


def test_holes_in_the_mask_are_not_seen(config):
    """Masked tokens in the middle of a row, as some older checkpoints' prompts have them."""
    llm = LanguageModel.from_config(config).eval()
    ids, mask, positions = batch(rows=1)
    mask = mask.clone()
    mask[0, 4:7] = False
    with torch.no_grad():
        other = ids.clone()
        other[0, 4:7] = 7
        keep = mask[0]
        torch.testing.assert_close(
            logits_of(llm, ids, mask, positions)[0, keep], logits_of(llm, other, mask, positions)[0, keep]
        )


SCALED = {
    "mistral": {"sliding_window": 6},
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5},
    "cohere": {"logit_scale": 0.25},
    "phi3": {"pad_token_id": 0, "original_max_position_embeddings": 128, "sliding_window": None},
    "olmo2": {},
    "smollm3": {"pad_token_id": 0},
}


@pytest.mark.parametrize("family", SCALED)
def test_other_families_agree_with_the_library(family):
    config = AutoConfig.for_model(
        family,
        vocab_size=120,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        **SCALED[family],
    )
    torch.manual_seed(0)
    llm = LanguageModel(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    ids, mask, positions = batch(rows=1, length=20)
    ids = ids % 120
    with torch.no_grad():
        expected = llm.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
        torch.testing.assert_close(logits_of(llm, ids, mask, positions), expected, atol=1e-5, rtol=1e-4)


def test_a_family_that_scales_in_an_unknown_way_is_refused(monkeypatch):
    config = AutoConfig.for_model(
        "granite", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, logits_scaling=4.0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    monkeypatch.setattr(LanguageModel, "logits", lambda self, hidden: self.model.get_output_embeddings()(hidden))
    with pytest.raises(ValueError, match="granite"):
        LanguageModel(model)


def test_missing_folder_and_missing_weights_are_clear_errors(config, folder, tmp_path):
    with pytest.raises(ValueError, match=r"llama_path.*nowhere.*no such folder"):
        LanguageModel.from_config(replace(config, llama_path=str(tmp_path / "nowhere")))
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    broken.mkdir()
    for source in folder.iterdir():
        if source.suffix == ".json":
            (broken / source.name).write_bytes(source.read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight is missing"):
        LanguageModel.from_config(replace(config, llama_path=str(broken)))
    misshapen = torch.zeros(3, 3)
    save_file(
        weights | {"model.layers.1.mlp.up_proj.weight": misshapen},
        broken / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ValueError, match=r"llama_path.*layers\.1\.mlp\.up_proj\.weight is \[3, 3\], expected"):
        LanguageModel.from_config(replace(config, llama_path=str(broken)))
    with pytest.raises(ValueError, match=r"llama_path: .*'owner/nowhere': no such folder here, and the hub cannot be"):
        LanguageModel.from_config(replace(config, llama_path="owner/nowhere"))


def test_gemma_is_not_cast_down_by_autocast(tmp_path):
    """It overflows in float16; the CPU's autocast, to bfloat16, stands for CUDA's here."""
    tiny.write_llm(tmp_path / "gemma", family="gemma3_text")
    llm = LanguageModel.from_config(ModelConfig(llama_path=str(tmp_path / "gemma"))).eval()
    inputs = batch()
    with torch.no_grad():
        expected = logits_of(llm, *inputs)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(logits_of(llm, *inputs), expected)

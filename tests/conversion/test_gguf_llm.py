"""GGUF language models against the models they were written from, and against transformers' own reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from configs.sections import ModelConfig
from conversion.formats import convert
from models.language.llm import LanguageModel
from models.language.text import TextProcessor
from support.command_line import UserError
from tests import tiny
from tests.gguf_files import TEMPLATE, write_gguf

IDS = torch.tensor([[1, 40, 41, 42, 43, 200, 201, 5, 6, 7, 300, 301]])


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_llm(tmp_path_factory.mktemp("llm") / "llama")


def converted(source: Path, **options: object) -> tuple[Path, list[str]]:
    said: list[str] = []
    folder = convert(source, source.parent / f"{source.stem}-folder", report=said.append, **options)
    return folder, said


def logits(folder: Path, **options: object) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)(IDS).logits


@pytest.mark.parametrize("family", tiny.LLM_FAMILIES)
def test_an_unquantised_file_gives_the_model_back(tmp_path: Path, family: str):
    original = tiny.write_llm(tmp_path / "original", family=family, layers=6 if family == "gemma3_text" else 2)
    folder, _ = converted(write_gguf(tmp_path / "model.gguf", original))
    assert torch.allclose(logits(folder), logits(original), rtol=1e-5, atol=1e-5)
    config = AutoModelForCausalLM.from_pretrained(folder).config
    assert config.model_type == family and config.tie_word_embeddings == family.startswith("gemma")


@pytest.mark.parametrize("quantization", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_files_are_dequantised_as_transformers_does_it(tmp_path: Path, llm: Path, quantization: str):
    source = write_gguf(tmp_path / "model.gguf", llm, quantization=quantization)
    folder, said = converted(source)
    theirs = logits(tmp_path, gguf_file=source.name)
    assert torch.allclose(logits(folder), theirs, rtol=1e-5, atol=1e-5)
    assert quantization in said[0] and "llama" in said[0] and "a chat template" in said[0] and "license: mit" in said[0]
    stored = AutoModelForCausalLM.from_pretrained(folder).dtype
    assert stored == {"F16": torch.float16, "BF16": torch.bfloat16}.get(quantization, torch.float32)


def test_a_smaller_type_is_written_when_asked_for(tmp_path: Path, llm: Path):
    source = write_gguf(tmp_path / "model.gguf", llm, quantization="Q4_1")
    folder, _ = converted(source, dtype="float16")
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float16
    assert torch.allclose(logits(folder), logits(tmp_path, gguf_file=source.name), rtol=1e-2, atol=1e-2)


def test_the_folder_is_one_that_smolt_reads(tmp_path: Path, llm: Path):
    folder, _ = converted(write_gguf(tmp_path / "model.gguf", llm, quantization="Q8_0"))
    config = ModelConfig(llama_path=str(folder), lora=False)
    assert LanguageModel.from_config(config).config.vocab_size == 400
    text = TextProcessor.from_config(config)
    assert text.eos_ids == {2} and text.bos_ids == (1,)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == 2
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == TEMPLATE
    assert (tokenizer.pad_token, tokenizer.unk_token, tokenizer.model_max_length) == ("<pad>", "<unk>", 1024)


def test_several_ends_are_all_declared(tmp_path: Path, llm: Path):
    folder, _ = converted(write_gguf(tmp_path / "model.gguf", llm, tokenizer={"eot_token_id": 9}))
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [2, 9]


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_s_frequencies_are_recognised(tmp_path: Path, llm: Path, factor: float):
    theta, size = 500_000.0, 8
    rope = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192, "rope_theta": theta}
    wavelengths = 2 * np.pi * theta ** (np.arange(0, size, 2) / size)
    divisors = []
    for wavelength in wavelengths:  # llama.cpp's converter, line by line
        if wavelength < 8192 / 4:
            divisors.append(1)
        elif wavelength > 8192:
            divisors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    source = write_gguf(
        tmp_path / "model.gguf",
        llm,
        metadata={"rope.freq_base": theta, "context_length": 131_072},
        extra={"rope_freqs.weight": np.array(divisors, dtype=np.float32)},
    )
    folder, _ = converted(source)
    assert AutoModelForCausalLM.from_pretrained(folder).config.rope_parameters == rope
    other = write_gguf(tmp_path / "o.gguf", llm, extra={"rope_freqs.weight": np.full(4, 3, dtype=np.float32)})
    with pytest.raises(UserError, match="none of Llama 3's frequencies"):
        converted(other)


def test_scaled_positions_are_kept_or_refused(tmp_path: Path, llm: Path):
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    folder, _ = converted(write_gguf(tmp_path / "model.gguf", llm, metadata=linear))
    rope = AutoModelForCausalLM.from_pretrained(folder).config.rope_parameters
    assert (rope["rope_type"], rope["factor"]) == ("linear", 4.0)
    with pytest.raises(UserError, match="'longrope'; expected none, linear, yarn"):
        converted(write_gguf(tmp_path / "other.gguf", llm, metadata={"rope.scaling.type": "longrope"}))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"without": "blk.1.ffn_up.weight"}, r"lacks 1 tensors: blk\.1\.ffn_up\.weight; expected a whole llama model"),
        (
            {"extra": {"blk.0.more.weight": np.zeros(32, np.float32)}},
            r"without a place in the model, 1 tensors: blk\.0",
        ),
        ({"metadata": {"feed_forward_length": 96}}, r"blk\.0\.ffn_\w+\.weight is \[.*\], expected \[.*96"),
        ({"metadata": {"feed_forward_length": [64, 96]}}, r"feed_forward_length is \[64, 96\]; expected one whole"),
        ({"metadata": {"context_length": None}}, r"has no llama\.context_length"),
        ({"metadata": {"block_count": 10**9}}, "states 1000000000 layers"),
        ({"metadata": {"attention.head_count": 0}}, "with 0 heads"),
        ({"tokenizer": {"tokens": None, "merges": None}}, r"has no tokenizer\.ggml\.tokens"),
        ({"tokenizer": {"pre": "poro-chat"}}, "splits text in the way 'poro-chat'"),
        ({"tokenizer": {"model": "bert"}}, "tokenizer of kind 'bert'"),
        ({"tokenizer": {"merges": ["Ġzz zz"]}}, "its tokenizer cannot be built"),
        ({"tokenizer": {"merges": ["zzz"]}}, "its tokenizer cannot be built"),
        ({"metadata": {"rope.freq_base": float("nan")}}, r"rope\.freq_base is nan; expected a number above 0"),
        ({"metadata": {"attention.head_count_kv": [2, 4]}}, r"head_count_kv is \[2, 4\]; expected one whole number"),
    ],
)
def test_files_that_make_no_model_are_refused(tmp_path: Path, llm: Path, changes: dict, problem: str | None):
    source = write_gguf(tmp_path / "model.gguf", llm, **changes)
    with pytest.raises(UserError, match=problem) as error:
        converted(source)
    assert str(source) in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]


def test_another_architecture_is_named(tmp_path: Path, llm: Path):
    source = write_gguf(tmp_path / "model.gguf", llm)
    source.write_bytes(source.read_bytes().replace(b"llama", b"phi33"))
    with pytest.raises(UserError, match="architecture 'phi33'; expected a language model of llama, qwen2"):
        converted(source)


@pytest.mark.parametrize("kept", [3, 8, 100, 5_000, 0.5, 0.999])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, llm: Path, kept: float):
    source = write_gguf(tmp_path / "model.gguf", llm)
    whole = source.read_bytes()
    source.write_bytes(whole[: int(kept if kept >= 1 else kept * len(whole))])
    with pytest.raises(UserError, match=r"model\.gguf"):
        converted(source)
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]


def test_values_that_are_not_finite_are_refused(tmp_path: Path, llm: Path):
    source = write_gguf(tmp_path / "model.gguf", llm)
    content = bytearray(source.read_bytes())
    content[-400:-396] = np.float32("nan").tobytes()
    source.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.gguf"):
        converted(source)


def test_a_gguf_file_given_as_weights_is_told_how_to_become_a_folder(tmp_path: Path, llm: Path):
    folder = tiny.write_llm(tmp_path / "other")
    write_gguf(folder / "model.safetensors", llm)
    with pytest.raises(UserError, match=r"is a GGUF file.*python -m tools\.convert"):
        LanguageModel.from_config(ModelConfig(llama_path=str(folder)))

"""Captured decode steps give what single steps give. Capturing itself needs CUDA; all that is around it does not."""

import copy
import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models import step_graphs
from models.decoding import GenerateOptions, KeyValueCache, decode_step, generate, prefill
from models.llm import LanguageModel
from models.pool import decode_each, split
from models.step_graphs import StepGraphs
from models.text import TextProcessor
from tests import tiny
from tests.models.test_decoding import ENDS, prompts, row_of

LENGTHS = (17, 3, 26, 9, 12)


def loaded(folder, family, device="cpu"):
    tiny.write_llm(folder, family=family)
    llm = LanguageModel(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)).eval()
    return llm, TextProcessor(AutoTokenizer.from_pretrained(folder), extra_eos_ids=ENDS)


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def model(request, tmp_path_factory):
    return loaded(tmp_path_factory.mktemp(request.param) / "llm", request.param)


@pytest.fixture
def recorded(model, monkeypatch):
    """Steps go through a `StepGraphs` that repeats each step as it was captured, line by line; what it captured."""
    captured = []

    def capture(body, changed):
        captured.append([tensor.shape[0] for tensor in changed])
        return body

    monkeypatch.setattr(model[0], "graphs", StepGraphs(capture))
    return captured


def texts_of(llm, text, beams):
    options = GenerateOptions(max_new_tokens=80, num_beams=beams, min_length=50 if beams == 1 else 0)
    return [result.tokens for result in generate(llm, prompts(llm, LENGTHS), text, options)]


@pytest.mark.parametrize("beams", [1, 2])
def test_tokens_are_those_of_single_steps(model, recorded, beams, monkeypatch):
    llm, text = model
    got = texts_of(llm, text, beams)
    again = texts_of(llm, text, beams)
    captures = len(recorded)
    assert captures >= 1 and recorded[0] == [len(LENGTHS) * beams] * 2
    monkeypatch.setattr(llm, "graphs", None)
    assert got == again == texts_of(llm, text, beams)


def test_a_pool_goes_on_in_the_same_graphs(model, recorded, monkeypatch):
    llm, text = model
    options = GenerateOptions(max_new_tokens=12, num_beams=1, min_length=0)
    rows = split(prompts(llm, LENGTHS))
    got = {number: result.tokens for number, result in decode_each(llm, text, options, rows, at_once=3)}
    monkeypatch.setattr(llm, "graphs", None)
    assert got == {row: generate(llm, rows[row], text, options)[0].tokens for row in range(len(LENGTHS))}


@torch.no_grad()
def test_two_caches_in_use_do_not_share_memory(model, recorded):
    llm, _ = model
    ids = torch.tensor([120])
    logits = []
    caches = [KeyValueCache(1, 40, llm.device) for _ in range(2)]
    for row, cache in enumerate(caches):
        prefill(llm, row_of(prompts(llm, LENGTHS), row), cache)
    for cache in (*caches, *caches):
        logits.append(decode_step(llm, ids, cache))
    llm.graphs = None
    for row in range(2):
        cache = KeyValueCache(1, 40, llm.device)
        prefill(llm, row_of(prompts(llm, LENGTHS), row), cache)
        for step in range(2):
            torch.testing.assert_close(logits[row + 2 * step], decode_step(llm, ids, cache), atol=1e-5, rtol=0)
    assert len(recorded) == 1  # the second cache found the place taken


def test_a_step_that_cannot_be_captured_is_run_singly(model, monkeypatch, caplog):
    llm, text = model
    expected = texts_of(llm, text, 1)

    def refuse(body, changed):
        body()
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(llm, "graphs", StepGraphs(refuse))
    with caplog.at_level(logging.WARNING):
        assert texts_of(llm, text, 1) == texts_of(llm, text, 1) == expected
    assert [record.message for record in caplog.records] == [
        "decode steps run without CUDA graphs: operation not permitted when stream is capturing"
    ]


def test_changed_weights_are_captured_anew(model, recorded):
    llm, text = model
    for _ in range(2):
        texts_of(llm, text, 1)
    before = len(recorded)
    llm.model.lm_head.weight.data = llm.model.lm_head.weight.data.clone()
    texts_of(llm, text, 1)
    assert len(recorded) > before


def test_the_switch_needs_cuda_and_copies_start_without_graphs(model):
    llm, _ = model
    with pytest.raises(ValueError, match="CUDA devices only"):
        step_graphs.enable(llm)
    llm.graphs = StepGraphs(lambda body, changed: body)
    assert copy.deepcopy(llm.graphs)._places == {}
    step_graphs.disable(llm)
    assert llm.graphs is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
@pytest.mark.parametrize("beams", [1, 2])
def test_graphs_on_the_device_give_the_tokens_of_single_steps(tmp_path, beams):
    llm, text = loaded(tmp_path / "llm", "llama", "cuda")
    on_device = prompts(llm, LENGTHS)
    on_device = type(on_device)(on_device.embeds, on_device.mask.cuda(), on_device.positions.cuda())
    options = GenerateOptions(max_new_tokens=40, num_beams=beams, min_length=0)
    expected = [result.tokens for result in generate(llm, on_device, text, options)]
    step_graphs.enable(llm)
    for _ in range(2):
        assert [result.tokens for result in generate(llm, on_device, text, options)] == expected
    assert llm.graphs._works

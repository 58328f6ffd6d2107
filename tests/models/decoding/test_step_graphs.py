"""Captured decode steps give what single steps give. Capturing itself needs CUDA; all that is around it does not."""

import copy
import dataclasses
import logging
import pickle

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.decoding.continuous_batching import decode_each, split
from models.decoding.engine import DecodeEngine
from models.decoding.generation import generate
from models.decoding.kv_cache import KeyValueCache
from models.decoding.scores import GenerateOptions
from models.decoding.step_graphs import StepGraphs
from models.language.llm import LanguageModel
from tests import tiny
from tests.decoding import ENDS, prompts, row_of
from tests.parts import text_processor

LENGTHS = (17, 3, 26, 9, 12)


def loaded(folder, family, device="cpu"):
    tiny.write_llm(folder, family=family)
    llm = LanguageModel(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)).eval()
    return DecodeEngine(llm), text_processor(AutoTokenizer.from_pretrained(folder), extra_eos_ids=ENDS)


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def model(request, tmp_path_factory):
    return loaded(tmp_path_factory.mktemp(request.param) / "llm", request.param)


@pytest.fixture
def recorded(model, monkeypatch):
    """Steps go through a `StepGraphs` that repeats each step as it was captured, line by line; what it captured."""
    captured = []

    def capture(body, changed, device):
        captured.append([tensor.shape[0] for tensor in changed])  # a step's two, none for a prompt
        return body

    monkeypatch.setattr(model[0], "_graphs", StepGraphs(capture))
    return captured


def texts_of(engine, text, beams):
    options = GenerateOptions(max_new_tokens=80, num_beams=beams, min_length=50 if beams == 1 else 0)
    return [result.tokens for result in generate(engine, prompts(engine.llm, LENGTHS), text, options)]


@pytest.mark.parametrize("beams", [1, 2])
def test_tokens_are_those_of_single_steps(model, recorded, beams, monkeypatch):
    engine, text = model
    got = [texts_of(engine, text, beams) for _ in range(4)]
    assert recorded[0] == [len(LENGTHS) * beams] * 2
    assert recorded.count([]) == (beams == 1)  # beams go on in other memory than their prompts
    monkeypatch.setattr(engine, "_graphs", None)
    expected = texts_of(engine, text, beams)
    assert got == [expected] * 4


def test_continuous_batching_goes_on_in_the_same_graphs(model, recorded, monkeypatch):
    engine, text = model
    options = GenerateOptions(max_new_tokens=12, num_beams=1, min_length=0)
    rows = split(prompts(engine.llm, LENGTHS))
    got = {number: result.tokens for number, result in decode_each(engine, text, options, rows, at_once=3)}
    monkeypatch.setattr(engine, "_graphs", None)
    assert got == {row: generate(engine, rows[row], text, options)[0].tokens for row in range(len(LENGTHS))}


@pytest.mark.parametrize("beams", [1, 3])
def test_prompts_of_every_width_that_begin_with_known_text(model, recorded, monkeypatch, beams):
    engine, text = model
    texts = ((1, 120, 130, 140), tuple(range(200, 222)))  # the second is longer than Gemma's window

    def prompted(lengths):
        assembled = prompts(engine.llm, lengths, seed=sum(lengths))
        embeds = assembled.embeds.clone()
        rows = [texts[row % 2] for row in range(len(lengths))]
        with torch.no_grad():
            for row, ids in enumerate(rows):
                embeds[row, : len(ids)] = engine.llm.embed(torch.tensor(ids))
        return dataclasses.replace(assembled, embeds=embeds, prefixes=tuple(rows))

    options = GenerateOptions(max_new_tokens=6, num_beams=beams, min_length=0)
    batches = [prompted(lengths) for lengths in ((25, 31, 40), (40, 23, 26), (40, 23, 37), (58, 75, 25))] * 3
    got = [[result.tokens for result in generate(engine, batch, text, options)] for batch in batches]
    assert beams > 1 or recorded.count([]) == 2  # of two widths
    assert engine.prefixes.hits > 0
    monkeypatch.setattr(engine, "_graphs", None)
    plain = [dataclasses.replace(batch, prefixes=None) for batch in batches]
    assert got == [[result.tokens for result in generate(engine, batch, text, options)] for batch in plain]


@torch.no_grad()
def test_nothing_of_an_earlier_generation_stays_in_its_buffers(model, recorded, monkeypatch):
    engine, text = model
    options = GenerateOptions(max_new_tokens=8, num_beams=1, min_length=0)
    broken = prompts(engine.llm, (60, 60))
    broken.embeds[:] = torch.nan
    fine = prompts(engine.llm, (20, 9))
    expected = None
    for batch in (fine, broken, fine, broken, fine):
        results = [result.tokens for result in generate(engine, batch, text, options)]
        expected = expected or results
        assert batch is broken or results == expected
    rows = [*split(broken), *split(fine)]
    pooled = dict(decode_each(engine, text, options, rows, at_once=1))
    assert [pooled[2].tokens, pooled[3].tokens] == expected
    assert recorded.count([]) > 0


@torch.no_grad()
def test_two_caches_in_use_do_not_share_memory(model, recorded, monkeypatch):
    engine, _ = model
    ids = torch.tensor([120])
    logits = []
    caches = [KeyValueCache(1, 40, engine.llm.device) for _ in range(2)]
    for row, cache in enumerate(caches):
        engine.prefill(row_of(prompts(engine.llm, LENGTHS), row), cache)
    for cache in (*caches, *caches):
        logits.append(engine.step(ids, cache))
    monkeypatch.setattr(engine, "_graphs", None)
    for row in range(2):
        cache = KeyValueCache(1, 40, engine.llm.device)
        engine.prefill(row_of(prompts(engine.llm, LENGTHS), row), cache)
        for step in range(2):
            torch.testing.assert_close(logits[row + 2 * step], engine.step(ids, cache), atol=1e-5, rtol=0)
    assert len(recorded) == 1  # the second cache found the buffers in use


def test_a_step_that_cannot_be_captured_is_run_singly(model, monkeypatch, caplog):
    engine, text = model
    expected = texts_of(engine, text, 1)

    def refuse(body, changed, device):
        body()
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(engine, "_graphs", StepGraphs(refuse))
    with caplog.at_level(logging.WARNING):
        assert texts_of(engine, text, 1) == texts_of(engine, text, 1) == expected
    assert [record.message for record in caplog.records] == [
        "decoding: runs without CUDA graphs: operation not permitted when stream is capturing"
    ]


def test_a_prompt_that_cannot_be_captured_is_run_singly(model, monkeypatch, caplog):
    engine, text = model
    expected = texts_of(engine, text, 1)

    def refuse_prompts(body, changed, device):
        if not changed:
            raise RuntimeError("not permitted")
        return body

    monkeypatch.setattr(engine, "_graphs", StepGraphs(refuse_prompts))
    with caplog.at_level(logging.WARNING):
        assert [texts_of(engine, text, 1) for _ in range(4)] == [expected] * 4
    assert [record.message for record in caplog.records] == ["decoding: runs without CUDA graphs: not permitted"]


def test_changed_weights_are_captured_anew(model, recorded):
    engine, text = model
    for _ in range(2):
        texts_of(engine, text, 1)
    before = len(recorded)
    engine.llm.model.lm_head.weight.data = engine.llm.model.lm_head.weight.data.clone()
    texts_of(engine, text, 1)
    assert len(recorded) > before


def test_copies_start_without_graphs_and_training_frees_them(model, recorded):
    engine, text = model
    texts_of(engine, text, 1)
    assert engine.graphs._buffers
    for copied in (copy.deepcopy(engine), pickle.loads(pickle.dumps(copy.deepcopy(engine)))):
        assert copied.llm is not engine.llm and copied.graphs is None
    engine.llm.train()
    assert engine.graphs is None
    texts_of(engine, text, 1)
    engine.llm.eval()
    assert engine.graphs is None  # this is no CUDA device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
@pytest.mark.parametrize("beams", [1, 2])
def test_graphs_on_the_device_give_the_tokens_of_single_steps(tmp_path, beams):
    engine, text = loaded(tmp_path / "llm", "llama", "cuda")
    on_device = prompts(engine.llm, LENGTHS)
    on_device = type(on_device)(on_device.embeds, on_device.mask.cuda(), on_device.positions.cuda())
    options = GenerateOptions(max_new_tokens=40, num_beams=beams, min_length=0)
    engine.captures = False
    expected = [result.tokens for result in generate(engine, on_device, text, options)]
    engine.captures = True
    for _ in range(4):
        assert [result.tokens for result in generate(engine, on_device, text, options)] == expected
    assert engine.graphs._works and engine.graphs._buffers

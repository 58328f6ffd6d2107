"""Captured decode steps give what single steps give. Capturing itself needs CUDA; all that is around it does not."""

import copy
import dataclasses
import logging
import pickle

import pytest
import torch

from models.decoding.continuous_batching import decode_each, split
from models.decoding.engine import DecodeEngine
from models.decoding.generation import generate
from models.decoding.kv_cache import KeyValueCache
from models.decoding.scores import GenerateOptions
from models.language.text import TextProcessor
from tests.decoding import ENDS, engine_of, prompts, row_of

LENGTHS = (17, 3, 26, 9, 12)


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def model(request, tmp_path_factory):
    """An engine without graphs, and a text processor."""
    engine, tokenizer = engine_of(tmp_path_factory.mktemp(request.param) / "llm", request.param)
    return engine, TextProcessor(tokenizer, extra_eos_ids=ENDS)


@pytest.fixture
def captured():
    """What `graphs` has captured: rows of each tensor that changes, a step's two, none for a prompt."""
    return []


@pytest.fixture
def graphs(model, captured):
    """An engine whose captures run the same lines again."""

    def capture(body, changed, device):
        captured.append([tensor.shape[0] for tensor in changed])
        return body

    return DecodeEngine(model[0].llm, capture)


def tokens_of(engine, assembled, text, options):
    return [result.tokens for result in generate(engine, assembled, text, options)]


def texts_of(engine, text, beams):
    options = GenerateOptions(max_new_tokens=80, num_beams=beams, min_length=50 if beams == 1 else 0)
    return tokens_of(engine, prompts(engine.llm, LENGTHS), text, options)


@pytest.mark.parametrize("beams", [1, 2])
def test_tokens_are_those_of_single_steps(model, graphs, captured, beams):
    engine, text = model
    got = [texts_of(graphs, text, beams) for _ in range(4)]
    assert captured[0] == [len(LENGTHS) * beams] * 2
    assert captured.count([]) == (beams == 1)  # beams continue in other memory than their prompts
    assert got == [texts_of(engine, text, beams)] * 4


def test_continuous_batching_uses_the_same_graphs(model, graphs):
    engine, text = model
    options = GenerateOptions(max_new_tokens=12, num_beams=1, min_length=0)
    rows = split(prompts(engine.llm, LENGTHS))
    got = {number: result.tokens for number, result in decode_each(graphs, text, options, rows, slots=3)}
    assert got == {row: generate(engine, rows[row], text, options)[0].tokens for row in range(len(LENGTHS))}


@pytest.mark.parametrize("beams", [1, 3])
def test_prompts_of_every_width_with_a_cached_prefix(model, graphs, captured, beams):
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
    got = [tokens_of(graphs, batch, text, options) for batch in batches]
    assert beams > 1 or captured.count([]) == 2  # of two widths
    assert graphs.prefixes.hits > 0
    plain = [dataclasses.replace(batch, prefixes=None) for batch in batches]
    assert got == [tokens_of(engine, batch, text, options) for batch in plain]


@torch.no_grad()
def test_nothing_of_an_earlier_generation_stays_in_the_buffers(model, graphs, captured):
    llm, text = model[0].llm, model[1]
    options = GenerateOptions(max_new_tokens=8, num_beams=1, min_length=0)
    broken = prompts(llm, (60, 60))
    broken.embeds[:] = torch.nan
    fine = prompts(llm, (20, 9))
    expected = None
    for batch in (fine, broken, fine, broken, fine):
        results = tokens_of(graphs, batch, text, options)
        expected = expected or results
        assert batch is broken or results == expected
    rows = [*split(broken), *split(fine)]
    each = dict(decode_each(graphs, text, options, rows, slots=1))
    assert [each[2].tokens, each[3].tokens] == expected
    assert captured.count([]) > 0


@torch.no_grad()
def test_two_caches_in_use_do_not_share_memory(model, graphs, captured):
    engine = model[0]
    rows = [row_of(prompts(engine.llm, LENGTHS), row) for row in range(2)]
    ids = torch.tensor([120])
    logits = []
    caches = [KeyValueCache(1, 40, engine.llm.device) for _ in rows]
    for row, cache in zip(rows, caches, strict=True):
        graphs.prefill(row, cache)
    for cache in (*caches, *caches):
        logits.append(graphs.step(ids, cache))
    for number, row in enumerate(rows):
        cache = KeyValueCache(1, 40, engine.llm.device)
        engine.prefill(row, cache)
        for step in range(2):
            torch.testing.assert_close(logits[number + 2 * step], engine.step(ids, cache), atol=1e-5, rtol=0)
    assert len(captured) == 1  # the buffers were in use by the first cache


def test_a_step_that_cannot_be_captured_is_run_kernel_by_kernel(model, caplog):
    engine, text = model
    expected = texts_of(engine, text, 1)

    def refuse(body, changed, device):
        body()
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    graphs = DecodeEngine(engine.llm, refuse)
    with caplog.at_level(logging.WARNING):
        assert texts_of(graphs, text, 1) == texts_of(graphs, text, 1) == expected
    assert [record.message for record in caplog.records] == [
        "decoding: runs without CUDA graphs: operation not permitted when stream is capturing"
    ]


def test_a_prompt_that_cannot_be_captured_is_run_kernel_by_kernel(model, caplog):
    engine, text = model
    expected = texts_of(engine, text, 1)

    def refuse_prompts(body, changed, device):
        if not changed:
            raise RuntimeError("not permitted")
        return body

    graphs = DecodeEngine(engine.llm, refuse_prompts)
    with caplog.at_level(logging.WARNING):
        assert [texts_of(graphs, text, 1) for _ in range(4)] == [expected] * 4
    assert [record.message for record in caplog.records] == ["decoding: runs without CUDA graphs: not permitted"]


def test_changed_weights_are_captured_again(model, graphs, captured):
    head = graphs.llm.model.lm_head.weight
    for _ in range(2):
        texts_of(graphs, model[1], 1)
    before = len(captured)
    head.data = head.data.clone()
    texts_of(graphs, model[1], 1)
    assert len(captured) > before


def test_copies_start_without_graphs_and_training_frees_them(model, graphs):
    texts_of(graphs, model[1], 1)
    for copied in (copy.deepcopy(graphs), pickle.loads(pickle.dumps(copy.deepcopy(graphs)))):
        assert copied.llm is not graphs.llm and copied.graphs is None
    graphs.llm.eval()
    assert graphs.graphs._buffers
    graphs.llm.train()
    assert graphs.graphs is None
    texts_of(graphs, model[1], 1)
    graphs.llm.eval()
    assert graphs.graphs is None  # this is no CUDA device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
@pytest.mark.parametrize("beams", [1, 2])
def test_graphs_on_the_device_give_the_tokens_of_single_steps(tmp_path, beams):
    engine, tokenizer = engine_of(tmp_path / "llm", device="cuda")
    text = TextProcessor(tokenizer, extra_eos_ids=ENDS)
    assembled = prompts(engine.llm, LENGTHS)
    options = GenerateOptions(max_new_tokens=40, num_beams=beams, min_length=0)
    engine.captures = False
    expected = tokens_of(engine, assembled, text, options)
    engine.captures = True
    for _ in range(4):
        assert tokens_of(engine, assembled, text, options) == expected
    assert engine.graphs._works and engine.graphs._buffers

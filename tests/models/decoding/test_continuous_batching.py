"""Continuous batching: the texts of one clip after another, from a batch that is kept full."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.decoding.continuous_batching import ContinuousBatch, decode_each, join, split
from models.decoding.engine import DecodeEngine
from models.decoding.generation import generate
from models.decoding.scores import GenerateOptions
from models.language.llm import LanguageModel
from tests import tiny
from tests.decoding import ENDS, prompts, row_of
from tests.parts import text_processor

LENGTHS = (17, 3, 26, 9, 12, 33, 5)  # a longer one after shorter ones, some beyond Gemma's window of 16


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def llm(request, tmp_path_factory):
    folder = tiny.write_llm(tmp_path_factory.mktemp(request.param) / "llm", family=request.param)
    model = LanguageModel(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)).eval()
    model.tokenizer = AutoTokenizer.from_pretrained(folder)
    return model


def options_of(**options):
    return GenerateOptions(**{"max_new_tokens": 12, "num_beams": 1, "min_length": 0, **options})


SEARCHES = {
    "greedy": {},
    "penalties": {"repetition_penalty": 1.6, "min_length": 4},
    "sampling": {"do_sample": True, "seed": 3, "temperature": 0.8, "top_k": 40},
    "beams": {"num_beams": 3, "length_penalty": -1.0},
    "no pair twice": {"no_repeat_ngram_size": 2},
    "beams, no pair twice": {"num_beams": 2, "no_repeat_ngram_size": 2},
    "beams, penalties": {"num_beams": 2, "repetition_penalty": 1.4, "min_length": 4},
    "beams, sampling": {"num_beams": 2, "do_sample": True, "seed": 5},
}


def ending_early(llm, assembled, options):
    """A text processor for which some of the answers end before the others, whatever a random model says."""
    free = generate(DecodeEngine(llm), assembled, text_processor(llm.tokenizer), options)
    ends = [token for row in (1, 4, 5) for token in free[row].tokens[5:8]]
    if options.num_beams > 1:  # a search is over when it has as many hypotheses
        ends += range(0, llm.vocab_size, 4)
    return text_processor(llm.tokenizer, extra_eos_ids=ends, stop_strings=("on",))


@pytest.mark.parametrize("search", SEARCHES)
def test_texts_are_those_of_one_clip_after_another(llm, search):
    options = options_of(**SEARCHES[search])
    assembled = prompts(llm, LENGTHS)
    text = ending_early(llm, assembled, options)
    alone = [generate(DecodeEngine(llm), row_of(assembled, row), text, options)[0] for row in range(len(LENGTHS))]
    assert len({len(generation.tokens) for generation in alone}) > 1
    for at_once in (1, 3, 8) if options.num_beams == 1 else (3, 8):
        results = dict(decode_each(DecodeEngine(llm), text, options, split(assembled), at_once=at_once))
        for row, expected in enumerate(alone):
            got = results[row]
            assert (got.tokens, got.text, got.stop_reason) == (expected.tokens, expected.text, expected.stop_reason)
            assert got.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


@pytest.mark.parametrize("beams", [1, 2])
def test_a_finished_rows_slot_is_taken_at_once(llm, monkeypatch, beams):
    text = text_processor(llm.tokenizer, extra_eos_ids=ENDS)
    sizes, asked_for = [], []
    step = ContinuousBatch.step
    monkeypatch.setattr(ContinuousBatch, "step", lambda self: sizes.append(len(self)) or step(self))

    def arriving():
        for number, prompt in enumerate(split(prompts(llm, LENGTHS))):
            asked_for.append(number)
            yield prompt

    for done, _ in enumerate(
        decode_each(DecodeEngine(llm), text, options_of(min_length=2, num_beams=beams), arriving(), at_once=3), start=1
    ):
        assert len(asked_for) <= 3 + done  # no prompt is run, or kept, before there is a slot for it
    assert done == len(LENGTHS)
    full = sizes.count(3)
    assert full > 9 and sizes[:full] == [3] * full and sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("search", [{"do_sample": True, "seed": 1}, {"num_beams": 2}], ids=str)
def test_fewer_requests_at_once_where_memory_runs_out(llm, monkeypatch, search):
    text = text_processor(llm.tokenizer, extra_eos_ids=ENDS)
    options = options_of(**search)  # a request starts again from its prompt, with the same draws
    rows = split(prompts(llm, LENGTHS))
    expected = dict(decode_each(DecodeEngine(llm), text, options, rows, at_once=4))
    limit, freed = 2 * options.num_beams, []
    graphs = SimpleNamespace(prefill=lambda *_: None, step=lambda *_: None, clear=lambda: freed.append(None))
    engine = DecodeEngine(llm, graphs=graphs)  # the memory that graphs work in is freed as well
    step = DecodeEngine.step

    def limited(self, ids, cache):
        if len(ids) > limit:
            raise torch.cuda.OutOfMemoryError("too much")
        return step(self, ids, cache)

    monkeypatch.setattr(DecodeEngine, "step", limited)
    got = list(decode_each(engine, text, options, rows, at_once=6))
    assert sorted(number for number, _ in got) == list(range(len(LENGTHS))) and len(freed) == 2
    assert {number: result.tokens for number, result in got} == {n: result.tokens for n, result in expected.items()}
    limit = 0
    with pytest.raises(torch.cuda.OutOfMemoryError):
        list(decode_each(engine, text, options, rows, at_once=4))


def test_one_token_each_and_no_rows(llm):
    text = text_processor(llm.tokenizer)
    rows = split(prompts(llm, LENGTHS))
    results = dict(decode_each(DecodeEngine(llm), text, options_of(max_new_tokens=1), rows, at_once=2))
    assert {len(result.tokens) for result in results.values()} == {1} and len(results) == len(rows)
    assert list(decode_each(DecodeEngine(llm), text, options_of(), [], at_once=2)) == []


def test_rows_are_split_and_joined_as_they_were(llm):
    assembled = prompts(llm, LENGTHS)
    again = join(split(assembled))
    assert torch.equal(again.mask, assembled.mask) and again.prefixes is None
    assert torch.equal(again.embeds[again.mask], assembled.embeds[assembled.mask])
    assert torch.equal(again.positions[again.mask], assembled.positions[assembled.mask])


def test_a_batch_without_slots_is_refused(llm):
    with pytest.raises(ValueError, match="slots=0"):
        ContinuousBatch(DecodeEngine(llm), text_processor(llm.tokenizer), options_of(), 0)

"""Decoding: the library's own hypotheses, the same alone and in a batch; stops, penalties, streaming, the cache."""

import re
from itertools import accumulate, pairwise

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from models.decoding.engine import DecodeEngine
from models.decoding.generation import _settled, generate, stream
from models.decoding.hypothesis import hits_stop_string
from models.decoding.kv_cache import KeyValueCache
from models.decoding.scores import GenerateOptions, process_scores
from models.decoding.steps import decode_step, prefill
from models.language.llm import LanguageModel
from models.language.sequence import Assembled
from models.language.text import TextProcessor
from tests import tiny
from tests.decoding import ENDS, LENGTHS, prompts, row_of
from tests.parts import text_processor

NEW_TOKENS = 20


@pytest.fixture(scope="module", params=tiny.LLM_FAMILIES)
def family(request, tmp_path_factory):
    folder = tiny.write_llm(tmp_path_factory.mktemp(request.param) / "llm", family=request.param)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llm = LanguageModel(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    return llm, text_processor(AutoTokenizer.from_pretrained(folder), end_sym="</s>", extra_eos_ids=ENDS)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tiny.write_llm(tmp_path_factory.mktemp("llama") / "llm")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llm = LanguageModel(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    return llm, AutoTokenizer.from_pretrained(folder)


def of_library(llm, assembled, row, **options):
    """Token ids that transformers' `generate` gives for one row alone."""
    alone = row_of(assembled, row)
    ids = llm.model.generate(
        inputs_embeds=alone.embeds,
        attention_mask=alone.mask.long(),
        eos_token_id=sorted(ENDS),
        pad_token_id=3,
        bos_token_id=1,
        top_k=0,
        **{"do_sample": False, "max_new_tokens": NEW_TOKENS, **options},
    )[0].tolist()
    end = next((index for index, token in enumerate(ids) if token in ENDS), len(ids) - 1)
    return ids[: end + 1]


SEARCHES = {
    "greedy": {"num_beams": 1},
    "beams": {"num_beams": 4},
}
VARIANTS = {
    "beams, long": {"num_beams": 4, "length_penalty": 2.0},
    "beams, short": {"num_beams": 3, "length_penalty": -1.0},
    "greedy, penalty": {"num_beams": 1, "repetition_penalty": 1.7},
    "beams, penalty": {"num_beams": 2, "repetition_penalty": 1.7},
    "greedy, no token twice": {"num_beams": 1, "no_repeat_ngram_size": 1},
    "greedy, no pair twice": {"num_beams": 1, "no_repeat_ngram_size": 2},
    "greedy, penalty, no triple twice": {"num_beams": 1, "repetition_penalty": 0.8, "no_repeat_ngram_size": 3},
    "beams, no pair twice": {"num_beams": 3, "no_repeat_ngram_size": 2},
    "beams, penalty, no token twice": {"num_beams": 2, "repetition_penalty": 1.7, "no_repeat_ngram_size": 1},
}


def assert_same_as_library(llm, text, search):
    assembled = prompts(llm)
    options = GenerateOptions(max_new_tokens=NEW_TOKENS, min_length=0, **search)
    batch = generate(DecodeEngine(llm), assembled, text, options)
    for row in range(len(LENGTHS)):
        expected = of_library(llm, assembled, row, **search)
        assert batch[row].tokens == expected, row
        (alone,) = generate(DecodeEngine(llm), row_of(assembled, row), text, options)
        assert (alone.tokens, alone.text, alone.stop_reason) == (expected, batch[row].text, batch[row].stop_reason)


@pytest.mark.parametrize("search", SEARCHES)
def test_tokens_are_those_of_the_library_alone_and_in_a_batch(family, search):
    assert_same_as_library(*family, SEARCHES[search])


@pytest.mark.parametrize("search", VARIANTS)
def test_penalties_are_those_of_the_library(llama, search):
    llm, tokenizer = llama
    assert_same_as_library(llm, text_processor(tokenizer, extra_eos_ids=ENDS), VARIANTS[search])


@pytest.mark.parametrize("search", SEARCHES)
def test_least_length_forbids_an_early_end(llama, search):
    llm, tokenizer = llama
    text = text_processor(tokenizer, extra_eos_ids=ENDS)
    assembled = prompts(llm, seed=4)
    options = GenerateOptions(max_new_tokens=NEW_TOKENS, min_length=12, **SEARCHES[search])
    for row, generation in enumerate(generate(DecodeEngine(llm), assembled, text, options)):
        assert generation.tokens == of_library(llm, assembled, row, min_new_tokens=12, **SEARCHES[search])
        assert len(generation.tokens) > 12


@pytest.mark.parametrize("search", SEARCHES)
def test_all_rules_together_are_those_of_the_library(family, search):
    llm, text = family
    assembled = prompts(llm, (12, 33), seed=2)
    rules = {"repetition_penalty": 1.4, "max_new_tokens": 12, **SEARCHES[search]}
    free = generate(DecodeEngine(llm), assembled, text, GenerateOptions(min_length=0, **rules))[1]
    letters = re.findall("[a-z]{1,2}", text.decode_raw(free.tokens[len(free.tokens) // 2 :]))
    stop = letters[0] if letters else "e"
    stopping = text_processor(text.tokenizer, extra_eos_ids=ENDS, stop_strings=(stop,))
    batch = generate(DecodeEngine(llm), assembled, stopping, GenerateOptions(min_length=3, **rules))
    for row, generation in enumerate(batch):
        expected = of_library(
            llm, assembled, row, min_new_tokens=3, stop_strings=[stop], tokenizer=text.tokenizer, **rules
        )
        assert generation.tokens == expected, (row, stop)
        (alone,) = generate(DecodeEngine(llm), row_of(assembled, row), stopping, GenerateOptions(min_length=3, **rules))
        assert alone.tokens == expected, (row, stop)


def watched(monkeypatch):
    """Shapes of what the language model and its head are given: `[B, L]` and `[B]`, call by call."""
    bodies, heads = [], []
    forward, logits = LanguageModel.forward, LanguageModel.logits
    monkeypatch.setattr(
        LanguageModel, "forward", lambda self, x, *rest: bodies.append(tuple(x.shape[:-1])) or forward(self, x, *rest)
    )
    monkeypatch.setattr(LanguageModel, "logits", lambda self, x: heads.append(tuple(x.shape[:-1])) or logits(self, x))
    return bodies, heads


def test_the_prompt_is_run_once_a_clip_and_its_head_for_the_last_position(llama, monkeypatch):
    llm, tokenizer = llama
    bodies, heads = watched(monkeypatch)
    rows, longest = len(LENGTHS), max(LENGTHS)
    for beams in (1, 3):
        bodies.clear(), heads.clear()
        generate(
            DecodeEngine(llm),
            prompts(llm),
            text_processor(tokenizer),
            GenerateOptions(max_new_tokens=2, num_beams=beams),
        )
        assert bodies == [(rows, longest), (rows * beams, 1)]
        assert heads == [(rows,), (rows * beams,)]


@pytest.mark.parametrize("beams", [1, 2])
def test_rows_that_have_ended_leave_the_batch(llama, monkeypatch, beams):
    llm, tokenizer = llama
    options = GenerateOptions(max_new_tokens=NEW_TOKENS, min_length=0, num_beams=beams)
    text = text_processor(tokenizer, extra_eos_ids=range(0, tokenizer.vocab_size, 5))  # each step ends a fifth of them
    bodies, _ = watched(monkeypatch)
    results = generate(DecodeEngine(llm), prompts(llm), text, options)
    sizes = [rows // beams for rows, _ in bodies[1:]]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < len(LENGTHS)
    if beams == 1:  # copying the cache pays once half of it is idle
        ends = [len(result.tokens) for result in results]
        assert all(size < 2 * sum(end > step for end in ends) for step, size in enumerate(sizes, start=1))


def test_prefill_and_steps_give_the_logits_of_the_full_pass(family):
    llm, _ = family
    assembled = prompts(llm)
    more = torch.randint(100, 300, (20, len(LENGTHS)), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        cache = KeyValueCache(len(LENGTHS), max(LENGTHS) + len(more), llm.device)
        stepped = [prefill(llm, assembled, cache), *(decode_step(llm, ids, cache) for ids in more)]
        for row, length in enumerate(LENGTHS):
            alone = row_of(assembled, row)
            embeds = torch.cat([alone.embeds, llm.embed(more[:, row])[None]], dim=1)
            positions = torch.arange(embeds.shape[1])[None]
            full = llm.logits(llm(embeds, torch.ones_like(positions, dtype=torch.bool), positions))[0, length - 1 :]
            got = torch.stack([logits[row] for logits in stepped])
            torch.testing.assert_close(got, full, atol=1e-4, rtol=0)


def test_training_pass_ignores_neighbours_and_padding(family):
    llm, _ = family
    assembled = prompts(llm)
    with torch.no_grad():
        batch = llm.logits(llm(assembled.embeds, assembled.mask, assembled.positions))
        for row, length in enumerate(LENGTHS):
            alone = row_of(assembled, row)
            single = llm.logits(llm(alone.embeds, alone.mask, alone.positions))[0]
            torch.testing.assert_close(batch[row, :length], single, atol=1e-4, rtol=0)
            ids_pass = llm.model(inputs_embeds=alone.embeds, attention_mask=alone.mask.long(), use_cache=False).logits
            torch.testing.assert_close(single, ids_pass[0].float(), atol=1e-4, rtol=0)


def test_log_probabilities_are_the_models_own(llama):
    llm, tokenizer = llama
    text = text_processor(tokenizer, extra_eos_ids=ENDS)
    assembled = prompts(llm)
    for beams in (1, 4):
        options = GenerateOptions(max_new_tokens=8, num_beams=beams, repetition_penalty=1.3)
        for row, generation in enumerate(generate(DecodeEngine(llm), assembled, text, options)):
            alone = row_of(assembled, row)
            ids = torch.tensor(generation.tokens)
            with torch.no_grad():
                embeds = torch.cat([alone.embeds, llm.embed(ids)[None]], dim=1)
                positions = torch.arange(embeds.shape[1])[None]
                logits = llm.logits(llm(embeds, torch.ones_like(positions, dtype=torch.bool), positions))[0]
            expected = logits[alone.embeds.shape[1] - 1 : -1].log_softmax(-1).gather(1, ids[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(generation.logprobs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("beams", [1, 3])
def test_stop_string_ends_a_row_and_is_not_shown(llama, beams):
    llm, tokenizer = llama
    free = text_processor(tokenizer)
    assembled = prompts(llm)
    options = GenerateOptions(max_new_tokens=NEW_TOKENS, num_beams=beams, length_penalty=-3.0)
    whole = generate(DecodeEngine(llm), assembled, free, options)[1].text
    stop = whole[len(whole) // 2 :][:3]
    text = text_processor(tokenizer, stop_strings=(stop,))
    results = generate(DecodeEngine(llm), assembled, text, options)
    stopped = [result for result in results if result.stop_reason == "stop_string"]
    assert stopped
    assert all(stop not in result.text for result in results)
    assert all(stop in text.decode_raw(result.tokens) for result in stopped)
    assert all(stop not in text.decode_raw(result.tokens[:-1]) for result in stopped)
    if beams == 1:
        assert results[1].text == whole[: whole.index(stop)].strip()


def test_stop_strings_are_found_wherever_tokens_are_split(llama, monkeypatch):
    _, tokenizer = llama
    text = text_processor(tokenizer, stop_strings=("o#é",))
    for written in ("one two#é", "o#é", "é#o", "two o#", "o#éa"):
        tokens = tokenizer.encode(written, add_special_tokens=False)
        assert any(hits_stop_string(tokens[:end], text) for end in range(len(tokens) + 1)) == ("o#é" in written)
    text = text_processor(tokenizer, stop_strings=("##",))
    monkeypatch.setattr(TextProcessor, "decode_raw", lambda *_: pytest.fail("no # in these tokens"))
    assert not hits_stop_string([], text)
    assert not hits_stop_string(tokenizer.encode("one two", add_special_tokens=False), text)


def test_sampling_follows_its_seed(llama):
    llm, tokenizer = llama
    text = text_processor(tokenizer)
    assembled = prompts(llm)

    def sample(seed, **options):
        settings = GenerateOptions(max_new_tokens=12, do_sample=True, seed=seed, **{"num_beams": 1, **options})
        return [result.tokens for result in generate(DecodeEngine(llm), assembled, text, settings)]

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert sample(1, num_beams=3) == sample(1, num_beams=3)
    greedy = [
        result.tokens
        for result in generate(DecodeEngine(llm), assembled, text, GenerateOptions(max_new_tokens=12, num_beams=1))
    ]
    assert sample(5, top_k=1) == greedy
    assert sample(5, top_p=1e-6) == greedy
    assert sample(5, temperature=1e-4) == greedy


@pytest.mark.parametrize("beams", [1, 3])
def test_what_a_row_samples_does_not_depend_on_its_batch(llama, beams):
    llm, tokenizer = llama
    text = text_processor(tokenizer, extra_eos_ids=frozenset(range(0, 300, 10)))
    options = GenerateOptions(max_new_tokens=12, do_sample=True, seed=7, num_beams=beams, temperature=0.7)
    lengths = (12, 5, 33, 12, 7, 20)
    assembled = prompts(llm, lengths)
    together = [result.tokens for result in generate(DecodeEngine(llm), assembled, text, options)]
    assert len({len(tokens) for tokens in together}) > 1  # rows leave the batch while others go on
    alone = [
        generate(DecodeEngine(llm), row_of(assembled, row), text, options)[0].tokens for row in range(len(lengths))
    ]
    assert together == alone


def test_sampling_filters_are_those_of_the_library(llama):
    from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)) * 3
    options = GenerateOptions(do_sample=True, temperature=0.7, top_k=20, top_p=0.8, min_length=0)
    expected = scores
    for warper in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(20), TopPLogitsWarper(0.8)):
        expected = warper(None, expected)
    history = torch.empty(4, 0, dtype=torch.long)
    torch.testing.assert_close(process_scores(scores, history, frozenset(), options), expected)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_repeats_are_forbidden_as_in_the_library(size):
    from transformers.generation import NoRepeatNGramLogitsProcessor

    generator = torch.Generator().manual_seed(size)
    for length in (0, 1, 2, size, 30):
        history = torch.randint(0, 4, (3, length), generator=generator)
        scores = torch.randn(3, 50, generator=generator)
        got = process_scores(scores, history, frozenset(), GenerateOptions(no_repeat_ngram_size=size, min_length=0))
        torch.testing.assert_close(got, NoRepeatNGramLogitsProcessor(size)(history, scores))


def test_streamed_pieces_join_to_the_generated_text(llama):
    llm, tokenizer = llama
    assembled = prompts(llm)
    options = GenerateOptions(max_new_tokens=NEW_TOKENS, num_beams=1)
    free = generate(DecodeEngine(llm), row_of(assembled, 1), text_processor(tokenizer), options)[0].text
    for stops in ((), (free[10:14],)):
        text = text_processor(tokenizer, extra_eos_ids=ENDS, stop_strings=stops)
        for row in range(len(LENGTHS)):
            pieces = list(stream(DecodeEngine(llm), row_of(assembled, row), text, options))
            (whole,) = generate(DecodeEngine(llm), row_of(assembled, row), text, options)
            assert "".join(pieces) == whole.text
            assert all(piece for piece in pieces)
            shown = [_settled(text, whole.tokens[:count]) for count in range(1, len(whole.tokens) + 1)]
            assert list(accumulate(pieces)) == [*dict.fromkeys(part for part in [*shown, whole.text] if part)]


def test_streaming_never_shows_half_a_character_or_a_stop_string():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    tokenizer.add_special_tokens(["<eos>"])
    text = text_processor(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>"), end_sym="</s>")
    assert text.stop_strings == ("</s>",)
    tokens = text.tokenizer.encode("wörter 鮭 < ok</s>")  # a token is a byte here
    shown = [_settled(text, tokens[: index + 1]) for index in range(len(tokens))]
    assert shown[-1] == "wörter 鮭 < ok"
    assert not any("\ufffd" in piece or "</" in piece for piece in shown)
    assert all(later.startswith(earlier) for earlier, later in pairwise(shown))
    bracket = next(index for index in range(len(tokens)) if text.decode_raw(tokens[: index + 1]).endswith("<"))
    assert shown[bracket] == "wörter 鮭"  # what follows may make it a stop string
    assert shown[bracket + 1] == "wörter 鮭 <"


def test_streaming_beams_is_refused(llama):
    llm, tokenizer = llama
    with pytest.raises(ValueError, match="num_beams=1"):
        next(stream(DecodeEngine(llm), prompts(llm), text_processor(tokenizer), GenerateOptions(num_beams=4)))


def test_one_new_token_and_no_rows(llama):
    llm, tokenizer = llama
    text = text_processor(tokenizer)
    for beams in (1, 4):
        (result,) = generate(
            DecodeEngine(llm), prompts(llm, (5,)), text, GenerateOptions(max_new_tokens=1, num_beams=beams)
        )
        assert len(result.tokens) == 1
        empty = Assembled(
            torch.empty(0, 0, 32), torch.empty(0, 0, dtype=torch.bool), torch.empty(0, 0, dtype=torch.long)
        )
        assert generate(DecodeEngine(llm), empty, text, GenerateOptions(num_beams=beams)) == []


@pytest.mark.parametrize("wrong", [{"num_beams": 0}, {"max_new_tokens": 0}, {"temperature": 0.0}, {"top_p": 0.0}])
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GenerateOptions(**wrong, do_sample=True)

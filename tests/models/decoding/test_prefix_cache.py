"""Keys and values of the text before the audio: the same answer with them, and never those of other weights."""

import copy
import dataclasses
import pickle

import pytest
import torch
from transformers import AutoModelForCausalLM

from models.decoding.engine import DecodeEngine
from models.decoding.kv_cache import KeyValueCache
from models.decoding.prefix_cache import PrefixCache
from models.language.llm import LanguageModel
from models.language.sequence import Assembled
from tests import tiny

TEXTS = ((1, 120, 130, 140), tuple(range(200, 222)), (1, 120, 130, 140))  # the second is longer than Gemma's window
LENGTHS = (9, 31, 25)


def with_lora(folder) -> DecodeEngine:
    llm = LanguageModel(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    llm.add_lora(rank=2, alpha=4, dropout=0.0, target_modules=("q_proj", "k_proj", "v_proj"))
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in llm.lora_parameters():
            parameter.normal_(0, 0.2, generator=noise)
    return DecodeEngine(llm.eval())


@pytest.fixture(scope="module", params=["qwen2", "gemma3_text"])
def family(request, tmp_path_factory):
    return with_lora(tiny.write_llm(tmp_path_factory.mktemp(request.param) / "llm", family=request.param))


@pytest.fixture
def engine(tmp_path_factory):
    return with_lora(tiny.write_llm(tmp_path_factory.mktemp("llama") / "llm", layers=1))


def prompted(engine, texts=TEXTS, lengths=LENGTHS):
    """Prompts that begin with `texts` and go on with something of each row's own."""
    noise = torch.Generator().manual_seed(0)
    positions = torch.arange(max(lengths)).expand(len(texts), -1)
    with torch.no_grad():
        embeds = torch.randn(len(texts), max(lengths), engine.llm.hidden_size, generator=noise)
        for row, text in enumerate(texts):
            embeds[row, : len(text)] = engine.llm.embed(torch.tensor(text))
    return Assembled(embeds, positions < torch.tensor(lengths)[:, None], positions, prefixes=tuple(texts))


@torch.no_grad()
def run(engine, assembled, steps=3):
    """Logits of the prefill and of some steps after it, `[1 + steps, B, V]`."""
    cache = KeyValueCache(len(assembled), assembled.embeds.shape[1] + steps, engine.llm.device)
    logits = [engine.prefill(assembled, cache)]
    for step in range(steps):
        logits.append(engine.step(torch.full((len(assembled),), 100 + step), cache))
    return torch.stack(logits)


def assert_close(got, expected, tolerance):
    torch.testing.assert_close(got, expected, atol=tolerance * float(expected.abs().max()), rtol=0)


def without(assembled):
    return dataclasses.replace(assembled, prefixes=None)


def row_of(assembled, row):
    cut = slice(row, row + 1), slice(0, LENGTHS[row])
    tensors = (assembled.embeds[cut], assembled.mask[cut], assembled.positions[cut])
    return Assembled(*tensors, prefixes=assembled.prefixes[row : row + 1])


def test_logits_are_those_of_the_whole_prompt(family):
    assembled = prompted(family)
    expected = run(family, without(assembled))
    assert torch.equal(run(family, assembled), expected)  # the second text is met for the first time
    family.prefixes.hits = 0
    assert_close(run(family, assembled), expected, tolerance=2e-6)
    assert family.prefixes.hits == 3 and len(family.prefixes) == 2
    for row in range(len(TEXTS)):
        alone = row_of(assembled, row)
        assert_close(run(family, alone), run(family, without(alone)), tolerance=2e-6)
    assert family.prefixes.hits == 6


def test_a_text_met_once_costs_nothing_and_met_again_runs_only_what_follows(engine, monkeypatch):
    assembled = row_of(prompted(engine), 1)
    widths = []
    forward = LanguageModel.forward

    def counted(self, embeds, *rest):
        widths.append(embeds.shape[1])
        return forward(self, embeds, *rest)

    monkeypatch.setattr(LanguageModel, "forward", counted)
    for _ in range(3):
        run(engine, assembled, steps=0)
    before, after = len(TEXTS[1]), LENGTHS[1] - len(TEXTS[1])
    assert widths == [before + after, before, after, after]


def changes(llm, tmp_path):
    """Ways in which weights change."""
    layer = next(iter(llm.lora_layers()))
    weight = layer.get_base_layer().weight
    optimizer = torch.optim.AdamW(llm.lora_parameters(), lr=0.1)

    def learn():
        for parameter in llm.lora_parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    def write_past_the_count():
        weight.data = weight.data * 1.5

    def replace_parameter():
        layer.get_base_layer().weight = torch.nn.Parameter(weight.detach() * 0.7, requires_grad=False)

    def load():
        torch.save({name: tensor * 1.1 for name, tensor in llm.state_dict().items()}, tmp_path / "weights.pt")
        llm.load_state_dict(torch.load(tmp_path / "weights.pt"))

    def disable():
        for each in llm.lora_layers():
            each.enable_adapters(False)

    def unmerge():
        for each in llm.lora_layers():
            each.unmerge()

    def rescale():
        layer.scale_layer(3.0)

    return [
        learn, write_past_the_count, llm.merge_lora, unmerge, lambda: layer.merge(), lambda: layer.unmerge(),
        replace_parameter, load, rescale, disable, llm.double, llm.float,
    ]  # fmt: skip


def test_keys_and_values_of_other_weights_are_never_used(engine, tmp_path):
    assembled = prompted(engine)
    for change in changes(engine.llm, tmp_path):
        for _ in range(2):
            run(engine, assembled)
        assert len(engine.prefixes) == 2
        change()
        expected = run(engine, without(assembled))
        assert torch.equal(run(engine, assembled), expected)
        assert len(engine.prefixes) == 0  # one text has been met once since
        assert_close(run(engine, assembled), expected, tolerance=5e-5)  # some changes make scores that differ widely


def test_training_neither_uses_nor_keeps_them(engine):
    assembled = prompted(engine)
    for _ in range(2):
        run(engine, assembled)
    engine.llm.train()
    run(engine, assembled)
    run(engine, assembled)
    assert len(engine.prefixes) == 0
    engine.llm.eval()
    cache = KeyValueCache(len(assembled), assembled.embeds.shape[1], engine.llm.device)
    engine.prefill(assembled, cache)  # with gradients
    assert len(engine.prefixes) == 0 and engine.prefixes.hits == 3


def test_those_used_last_are_kept_within_the_bound(engine):
    def meet(text):
        run(engine, prompted(engine, (text, text), (len(text) + 2,) * 2), steps=0)

    texts = [tuple(range(start, start + 8)) for start in (10, 30, 50)]
    meet(texts[0])
    one = engine.prefixes.nbytes
    engine.prefixes.max_bytes = 2 * one
    meet(texts[1])
    meet(texts[0])
    meet(texts[2])
    assert len(engine.prefixes) == 2 and engine.prefixes.nbytes == 2 * one
    engine.prefixes.hits = 0
    run(engine, prompted(engine, (texts[0],), (12,)), steps=0)
    run(engine, prompted(engine, (texts[1],), (12,)), steps=0)
    assert engine.prefixes.hits == 1
    engine.prefixes.max_bytes = 0
    meet(texts[2])
    assert engine.prefixes.hits == 1


def test_a_copy_starts_empty():
    cache = PrefixCache(max_bytes=7)
    for copied in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert copied.max_bytes == 7 and copied is not cache and len(copied) == 0


def test_weights_that_do_not_count_writes_are_not_trusted(tmp_path):
    folder = tiny.write_llm(tmp_path / "llm", layers=1)
    with torch.inference_mode():
        llm = LanguageModel(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
        engine = DecodeEngine(llm)
        assembled = prompted(engine)
        for parameter in llm.parameters():  # the library makes them outside
            parameter.data = parameter.data.clone()
        llm.model.lm_head.weight = torch.nn.Parameter(llm.model.lm_head.weight.clone(), requires_grad=False)
        for _ in range(3):
            run(engine, assembled, steps=0)
    assert len(engine.prefixes) == 0

"""The language model and decoding against the reference SALMONN: logits and generated ids from its embeddings on."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from models.decoding.engine import DecodeEngine
from models.decoding.generation import generate
from models.decoding.scores import GenerateOptions
from models.language.llm import LanguageModel
from models.language.sequence import Assembled
from models.language.text import TextProcessor
from tests.vectors import cases, generation_prompts, matches, salmonn_config, salmonn_modes


@pytest.fixture(scope="module")
def reference(parity_dir):
    return parity_dir / "salmonn_loss"


@pytest.fixture(scope="module")
def config(reference):
    return replace(salmonn_config(reference), legacy="off", ckpt=None)


@pytest.fixture(scope="module")
def llm(reference, config):
    """The reference's language model with the LoRA of its checkpoint."""
    llm = LanguageModel.from_config(config).eval()
    state = torch.load(reference / "checkpoint_0.pth", map_location="cpu", weights_only=True)["model"]
    lora = {
        re.sub(r"^\w+_model\.base_model\.model\.", "model.", name): tensor
        for name, tensor in state.items()
        if ".lora_" in name
    }
    own = dict(llm.named_parameters())
    assert set(lora) == {name for name in own if ".lora_" in name}
    with torch.no_grad():
        for name, tensor in lora.items():
            own[name].copy_(tensor)
    return llm


@pytest.fixture(scope="module")
def outputs(reference):
    return load_file(reference / "output.safetensors")


@cases("mode", "salmonn_loss", salmonn_modes)
def test_logits_on_the_answers(llm, outputs, mode):
    """Masks with holes too: with several prompts the reference pads between prompt and answer."""
    embeds, labels = outputs[f"{mode}.inputs_embeds"], outputs[f"{mode}.labels"]
    positions = torch.arange(embeds.shape[1]).expand(len(embeds), -1)
    with torch.no_grad():
        hidden = llm(embeds, outputs[f"{mode}.attention_mask"].bool(), positions)
    expected = outputs[f"{mode}.logits_on_answer"][..., : llm.vocab_size]  # the last column is the pad row it adds
    for row in range(len(embeds)):
        answer = (labels[row] != -100).nonzero()[:, 0]
        got = llm.logits(hidden[row, answer - 1])
        count = min(len(got), expected.shape[1])
        torch.testing.assert_close(got[:count], expected[row, :count], atol=1e-3, rtol=1e-4)


def test_greedy_ids_in_one_batch_are_those_of_each_clip_alone(llm, config, reference, outputs):
    """Without the public code's stop id, which `model.legacy` alone has."""
    facts = json.loads((reference / "generate.json").read_text())
    names = sorted(matches(r"generate\.inputs_embeds_row(\d+)", list(outputs)), key=int)
    rows = [outputs[f"generate.inputs_embeds_row{row}"][0] for row in names]
    longest = max(len(row) for row in rows)
    embeds = torch.stack([torch.nn.functional.pad(row, (0, 0, 0, longest - len(row))) for row in rows])
    positions = torch.arange(longest).expand(len(rows), -1)
    mask = positions < torch.tensor([[len(row)] for row in rows])
    options = GenerateOptions(max_new_tokens=facts["max_new_tokens"], num_beams=1)
    results = generate(
        DecodeEngine(llm), Assembled(embeds, mask, positions), TextProcessor.from_config(config), options
    )
    expected = facts["greedy_one_by_one_without_stop_id_2"]
    assert [result.tokens for result in results] == expected
    ended = [tokens[-1] == facts["eos_token_id"] for tokens in expected]
    assert [result.stop_reason == "end" for result in results] == ended


def test_prompts_are_tokenised_as_the_reference_does(llm, config, reference, outputs):
    batch = TextProcessor.from_config(config).batch(generation_prompts(reference))
    for row, (before, after) in enumerate(zip(batch.before, batch.after, strict=True)):
        embeds = outputs[f"generate.inputs_embeds_row{row}"][0]
        with torch.no_grad():
            torch.testing.assert_close(embeds[: len(before)], llm.embed(before), atol=1e-4, rtol=0)
            torch.testing.assert_close(embeds[len(embeds) - len(after) :], llm.embed(after), atol=1e-4, rtol=0)

"""The joined model: padding is neutral, one path for loss and text, training reaches what it should."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models import build_model
from models.decoding.kv_cache import KeyValueCache
from models.decoding.steps import prefill
from models.frames import Frames
from models.sizes import part_sizes
from support.command_line import UserError
from tests.clips import PROMPTS, TEXTS, alone, mixed_clips


def logits_of(model, waveforms, lengths, prompts, texts):
    """Logits at every real position, a list of [L, V]."""
    tokens, mask = model.encode_audio(waveforms, lengths)
    assembled = model.assemble(tokens, mask, model.text.batch(prompts, texts))
    logits = model.llm.logits(model.llm(assembled.embeds, assembled.mask, assembled.positions))
    return [row[kept] for row, kept in zip(logits, assembled.mask, strict=True)]


@torch.no_grad()
def test_a_clip_does_not_hear_its_neighbours(model):
    waveforms, lengths = mixed_clips()
    together = logits_of(model, waveforms, lengths, PROMPTS, TEXTS)
    for row in range(len(lengths)):
        [single] = logits_of(model, *alone(waveforms, lengths, row), PROMPTS[row : row + 1], TEXTS[row : row + 1])
        torch.testing.assert_close(together[row], single, atol=1e-4, rtol=0)


@pytest.mark.parametrize("beams", [1, 3])
def test_batched_text_equals_single_text(model, beams):
    waveforms, lengths = mixed_clips(seed=1)
    options = {"num_beams": beams, "max_new_tokens": 12}
    together = model.generate(waveforms, lengths, PROMPTS, **options)
    single = [
        model.generate(*alone(waveforms, lengths, row), PROMPTS[row : row + 1], **options)[0]
        for row in range(len(lengths))
    ]
    assert together == single
    assert len(set(together)) > 1


@pytest.mark.parametrize(
    "options", [{"num_beams": 1}, {"num_beams": 2}, {"num_beams": 1, "do_sample": True, "seed": 2}]
)
def test_many_clips_get_the_texts_of_one_after_another(model, options):
    waveforms, lengths = mixed_clips(seed=1)
    options |= {"max_new_tokens": 8}
    batches = [(waveforms[rows], lengths[rows], PROMPTS[rows]) for rows in (slice(0, 5), slice(5, 8))]
    results = dict(model.generate_each(batches, at_once=3, **options))
    for row in range(len(lengths)):
        (text,) = model.generate(*alone(waveforms, lengths, row), PROMPTS[row : row + 1], **options)
        assert results[row].text == text


def test_what_memory_does_not_hold_is_heard_in_halves(model, monkeypatch):
    waveforms, lengths = mixed_clips()
    batch = waveforms, lengths, PROMPTS
    expected = {
        beams: dict(model.generate_each([batch], at_once=8, num_beams=beams, max_new_tokens=4)) for beams in (1, 2)
    }
    encode, limit = type(model).encode_audio, 2

    def limited(self, waveforms, *rest):
        if len(waveforms) > limit:
            raise torch.cuda.OutOfMemoryError("too much")
        return encode(self, waveforms, *rest)

    monkeypatch.setattr(type(model), "encode_audio", limited)
    for beams in (1, 2):
        results = dict(model.generate_each([batch], at_once=8, num_beams=beams, max_new_tokens=4))
        assert {row: result.text for row, result in results.items()} == {
            row: result.text for row, result in expected[beams].items()
        }
    limit = 0
    with pytest.raises(torch.cuda.OutOfMemoryError):
        list(model.generate_each([batch], at_once=8, num_beams=1, max_new_tokens=4))


@torch.no_grad()
def test_prefill_sees_what_training_sees(model):
    """The logits that choose the first token are those the loss is taken on: one assembly, one answer."""
    waveforms, lengths = mixed_clips()
    tokens, mask = model.encode_audio(waveforms, lengths)
    prompted = model.assemble(tokens, mask, model.text.batch(PROMPTS))
    answered = model.assemble(tokens, mask, model.text.batch(PROMPTS, TEXTS))
    assert prompted.labels is None
    cache = KeyValueCache(len(prompted), prompted.embeds.shape[1], model.device)
    first = prefill(model.llm, prompted, cache)
    full = model.llm.logits(model.llm(answered.embeds, answered.mask, answered.positions))
    for row, length in enumerate(prompted.mask.sum(dim=1).tolist()):
        torch.testing.assert_close(first[row], full[row, length - 1], atol=1e-4, rtol=0)


def test_loss_is_the_sum_over_targets(model):
    waveforms, lengths = mixed_clips()
    together = model(waveforms, lengths, PROMPTS, TEXTS)
    rows = [
        model(*alone(waveforms, lengths, row), PROMPTS[row : row + 1], TEXTS[row : row + 1])
        for row in range(len(lengths))
    ]
    assert together.target_tokens == sum(row.target_tokens for row in rows)
    torch.testing.assert_close(together.loss_sum, sum(row.loss_sum for row in rows), rtol=1e-5, atol=0)
    torch.testing.assert_close(together.loss * together.target_tokens, together.loss_sum)


def test_frames_at_hand_give_the_same_loss(model):
    waveforms, lengths = mixed_clips()
    frames = model.encode_frames(waveforms, lengths)
    batch = model.text.batch(PROMPTS, TEXTS)
    direct = model(waveforms, lengths, text_batch=batch)
    cached = model(None, None, text_batch=batch, frames=frames)
    assert torch.equal(direct.loss_sum, cached.loss_sum)


def test_gradients_reach_the_adapter_alone(config):
    model = build_model(config).train()
    assert not any(module.training for encoder in model.encoders.encoders.values() for module in encoder.modules())
    waveforms, lengths = mixed_clips()
    model(waveforms, lengths, PROMPTS, TEXTS).loss.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert with_gradient == trainable
    assert all(name.startswith("connector.") or "lora_" in name for name in trainable)


def test_unfrozen_encoders_learn(config):
    model = build_model(replace(config, freeze_whisper=False, freeze_beats=False)).train()
    waveforms, lengths = mixed_clips()
    model(waveforms, lengths, PROMPTS, TEXTS).loss.backward()
    for name in ("whisper", "beats"):
        gradients = [p.grad for p in model.encoders.encoders[name].parameters() if p.requires_grad]
        assert gradients and any(g is not None and g.abs().sum() > 0 for g in gradients), name


def test_stream_gives_the_text_of_generate(model):
    waveforms, lengths = mixed_clips()
    for row in (1, 4):
        waveform, length = alone(waveforms, lengths, row)
        whole = model.generate(waveform, length, [PROMPTS[row]], num_beams=1, max_new_tokens=10)[0]
        assert "".join(model.stream(waveform[0], PROMPTS[row], max_new_tokens=10)).strip() == whole


def test_a_prompt_for_each_clip(model):
    waveforms, lengths = mixed_clips()
    frames = [Frames(stream.frames[:3], stream.lengths[:3]) for stream in model.encode_frames(waveforms, lengths)]
    for prompts in (PROMPTS[:1], PROMPTS[:3], []):
        with pytest.raises(ValueError, match=rf"got {len(prompts)} prompts for 8 clips; expected a prompt for each"):
            model.generate(waveforms, lengths, prompts, max_new_tokens=1)
        with pytest.raises(ValueError, match=rf"got {len(prompts)} prompts for 8 clips"):
            list(model.generate_each([(waveforms, lengths, prompts)], at_once=2, max_new_tokens=1, num_beams=1))
        with pytest.raises(ValueError, match=rf"got {len(prompts)} prompts for 8 clips"):
            model(waveforms, lengths, prompts, prompts)
    with pytest.raises(ValueError, match="got 2 prompts for 3 clips"):
        model.generate(None, None, PROMPTS[:2], frames=frames)
    with pytest.raises(ValueError, match="prompts is one string"):
        model.generate(*alone(waveforms, lengths, 0), PROMPTS[0])


def test_generate_leaves_training_as_it_was(config):
    model = build_model(config).train()
    waveforms, lengths = mixed_clips()
    model.generate(waveforms[:2], lengths[:2], PROMPTS[:2], num_beams=1, max_new_tokens=2)
    assert model.training and model.connector.training


def test_parameter_table_counts_everything(model):
    rows = {row.part: row for row in part_sizes(model)}
    assert set(rows) == {"whisper", "beats", "connector", "llm", "lora", "total"}
    assert rows["total"].parameters == sum(p.numel() for p in model.parameters())
    assert rows["whisper"].trainable == rows["llm"].trainable == 0
    assert rows["lora"].trainable == rows["lora"].parameters > 0


@pytest.mark.parametrize(
    ("shape", "lengths"),
    [((2, 900), [900, 901]), ((2, 900), [0, 900]), ((2, 900), [900]), ((900,), [900]), ((2, 900), [[900, 5]])],
)
def test_clips_and_lengths_that_do_not_fit_are_refused(model, shape, lengths):
    with pytest.raises(ValueError, match=r"waveforms \[.*900\] and lengths \["):
        model.encode_audio(torch.zeros(shape), torch.tensor(lengths))


def test_samples_and_lengths_in_other_forms(model):
    """numpy, int16, float64, a whole number or a list for lengths: the same text as for float32 tensors."""
    clip = (0.5 * torch.sin(torch.arange(8000) * 0.1)).mul(32768).round()[None]
    options = {"num_beams": 1, "max_new_tokens": 4}
    expected = model.generate(clip / 32768, torch.tensor([8000]), ["<SpeechHere>"], **options)
    for waveforms, lengths in (
        (clip.to(torch.int16), 8000),
        (clip.to(torch.int16).numpy(), [8000]),
        (clip.to(torch.int32) * 65536, None),
        ((clip / 32768).numpy(), np.array([8000])),
        ((clip / 32768).double().numpy(), np.int64(8000)),
    ):
        assert model.generate(waveforms, lengths, ["<SpeechHere>"], **options) == expected
        texts = dict(model.generate_each([(waveforms, lengths, ["<SpeechHere>"])], at_once=1, **options))
        assert [texts[0].text] == expected
        assert model(waveforms, lengths, ["<SpeechHere>"], ["red"]).loss.isfinite()
    pieces = model.stream(clip[0].to(torch.int16).numpy(), "<SpeechHere>", max_new_tokens=4)
    assert "".join(pieces).strip() == expected[0]


@pytest.mark.parametrize(
    ("waveforms", "lengths", "message"),
    [
        (torch.full((1, 800), float("nan")), 800, "NaN or infinite"),
        (np.full((2, 800), 900.0), [800, 800], "clip 0: float samples reach 900"),
        (torch.zeros(1, 800, dtype=torch.uint8), 800, "uint8; expected float32"),
        ([0.0] * 800, 800, "is a list; expected a torch tensor or numpy array|are a list"),
        (torch.zeros(1, 800), 0.05, "whole numbers of samples, not seconds"),
        (torch.zeros(1, 800), "800", "expected the number of samples"),
        (torch.zeros(1, 800), 801, "1 to 800"),
        (torch.zeros(1, 2, 800), 800, r"waveforms \[B, T\]"),
        (None, None, "NoneType"),
    ],
)
def test_samples_and_lengths_that_are_wrong_are_refused(model, waveforms, lengths, message):
    count = 1 if waveforms is None or len(waveforms) > 2 else len(waveforms)
    with pytest.raises(ValueError, match=message):
        model.generate(waveforms, lengths, ["<SpeechHere>"] * count)
    with pytest.raises(ValueError, match=message):
        model(waveforms, lengths, ["<SpeechHere>"] * count, ["red"] * count)


def test_reduced_precision_needs_no_autocast(config):
    """As evaluation runs it: every part computes in its own type."""
    model = build_model(replace(config, dtype="bfloat16"))
    assert (model.llm.dtype, model.connector.dtype) == (torch.bfloat16, torch.float32)
    waveforms, lengths = mixed_clips()
    for beams in (1, 2):
        details = model.generate(waveforms, lengths, PROMPTS, num_beams=beams, max_new_tokens=4, return_details=True)
        assert all(result.tokens for result in details)
    assert model(waveforms, lengths, PROMPTS, TEXTS).loss.isfinite()


def test_prompts_without_text_are_refused(model):
    waveforms, lengths = mixed_clips()
    with pytest.raises(ValueError, match="text_batch"):
        model(waveforms, lengths)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, "prompts is a NoneType"),
        (PROMPTS[0], "prompts is one string"),
        ([3] * len(PROMPTS), r"prompts\[0\] is int"),
        ([None] * len(PROMPTS), r"prompts\[0\] is NoneType"),
        ([[PROMPTS[0]]] * len(PROMPTS), r"prompts\[0\] is list"),
        ((prompt for prompt in PROMPTS), "prompts is a generator"),
    ],
)
def test_prompts_that_are_no_texts_are_refused(model, prompts, message):
    with pytest.raises(UserError, match=message):
        model.generate(*mixed_clips(), prompts)


def test_an_answer_that_is_missing_is_no_empty_answer(model):
    waveforms, lengths = mixed_clips()
    with pytest.raises(UserError, match=r"texts\[0\] is NoneType"):
        model(waveforms, lengths, PROMPTS, [None, *TEXTS[1:]])
    with pytest.raises(UserError, match="texts is one string"):
        model(waveforms, lengths, PROMPTS, TEXTS[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": "5"}, "max_new_tokens is '5'; expected a whole number"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ({"do_sample": "no"}, "do_sample is 'no'"),
        ({"num_beam": 3}, r"no option 'num_beam' of generation \(did you mean num_beams\?\)"),
        ({"seed": np.array([1, 2])}, "seed is"),
    ],
)
def test_options_of_another_type_or_name_are_refused(model, options, message):
    with pytest.raises(UserError, match=message):
        model.generate(*mixed_clips(), PROMPTS, **options)


def test_numbers_of_numpy_are_options(model):
    clips = mixed_clips()
    texts = model.generate(*clips, PROMPTS, num_beams=1, max_new_tokens=3)
    assert model.generate(*clips, PROMPTS, num_beams=np.int64(1), max_new_tokens=3.0) == texts


@pytest.mark.parametrize("given", [{"llama_path": "x"}, None, "model.yaml"])
def test_a_model_is_built_from_a_model_config(given):
    with pytest.raises(UserError, match=r"build_model takes a ModelConfig, found .*load_config\(FILE\)\.model"):
        build_model(given)


def test_serving_merges_lora_where_that_rounds_nothing(config, model):
    waveforms, lengths = mixed_clips()
    options = {"num_beams": 1, "max_new_tokens": 6, "return_details": True}
    served = build_model(config)
    served.load_state_dict(model.state_dict())
    expected = model.generate(waveforms, lengths, PROMPTS, **options)
    assert served.merge_for_serving() == served.merge_for_serving() == "merged into the weights"
    found = served.generate(waveforms, lengths, PROMPTS, **options)
    assert [each.tokens for each in found] == [each.tokens for each in expected]
    assert build_model(replace(config, legacy="exact")).merge_for_serving() == "next to the weights"
    quantised = replace(config, quantization="nf4", allow_slow_kernels=True)
    assert build_model(quantised).merge_for_serving() == "next to the weights"
    assert build_model(replace(config, lora=False)).merge_for_serving() == "none"

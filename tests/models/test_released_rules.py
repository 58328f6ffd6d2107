"""`model.legacy`: which rules of the public code a model follows under `weights` and under `exact`."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from configs.schema import load_config
from data.annotations import Annotation
from data.batch import Sample
from data.prompts import PromptError
from dataset import AudioTextDataset, collate
from evaluation.hypotheses import prompts_for
from models.checkpoint.adapter_folder import load_adapter, save_adapter
from models.decoding import continuous_batching
from models.decoding.scores import GenerateOptions
from models.encoders.frame_cache import FrameCache
from models.frames import Frames
from models.language.sequence import Assembled
from models.released_rules import RULES, STOP_ID, rules_of
from tests import tiny
from tests.parts import connector_of
from tests.released import PROMPT, make


@pytest.fixture(scope="module")
def project(shared_tiny_project):
    return shared_tiny_project


@pytest.fixture(scope="module")
def model(project):
    return make(project)


def test_short_clips_are_a_second_long(model):
    short = torch.randn(1, 4_000) * 0.1
    extended = torch.nn.functional.pad(short, (0, 12_000))
    with torch.no_grad():
        got, _ = model.encode_audio(short, torch.tensor([4_000]))
        expected, _ = model.encode_audio(extended, torch.tensor([16_000]))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("window_s", "stride_s", "frames"), [(0.17, 0.17, 40), (0.333333, 0.5, 101), (1.0, 0.29, 50), (0.25, 0.61, 61)]
)
def test_windows_are_counted_and_laid_as_released(window_s, stride_s, frames):
    """Against the public code's own line; 0.17 s are 9 frames, 0.25 s (12.5) are 12, and strides may leave gaps."""
    size, step = (round(1500 * seconds / 30.0) for seconds in (window_s, stride_s))
    options = {"hidden_size": 8, "num_heads": 2, "window_s": window_s, "stride_s": stride_s}
    connector = connector_of(["whisper"], [6], [50.0], 8, keep_partial_window=False, **options)
    values = torch.randn(2, frames, 6)
    windows, mask = connector._windows(Frames(values, torch.full((2,), frames)))
    unfolded = torch.nn.functional.unfold(values.transpose(1, 2)[:, :, None], (1, size), stride=(1, step))
    assert mask.all()
    assert torch.equal(windows, unfolded.unflatten(1, (6, size)).permute(0, 3, 2, 1))
    assert connector.window_count(frames) == windows.shape[1]


def test_the_length_limit_cuts_the_end_symbol_off(project):
    text = make(project, max_txt_len=4).text
    (target,) = text.batch([PROMPT], ["one two three four five six"]).targets
    assert len(target) == 4
    assert target[-1] not in text.eos_ids


def test_exact_refuses_prompts_that_begin_differently(project):
    model = make(project, legacy="exact")
    batch = model.text.batch([PROMPT, f"Listen well: {PROMPT}"], ["a", "b"])
    tokens = torch.zeros(2, 3, model.llm.hidden_size)
    with pytest.raises(ValueError, match="differ in tokens before the audio"):
        model.assemble(tokens, torch.ones(2, 3, dtype=torch.bool), batch)


def scripted(monkeypatch, rows, beams=1, legacy="exact"):
    """A search over 20 tokens whose logits are written down: `rows[row][step]` is {token: logit}; the last repeats."""
    held, steps = list(range(len(rows))), itertools.count()

    class Cache:
        def __init__(self, *arguments):
            pass

        def select(self, index, *arguments):
            held[:] = [held[slot] for slot in index.tolist()]

        def ignore(self, *arguments):
            pass

        reorder = attend_to = free = ignore

    def logits(*arguments):
        step, made = next(steps), torch.full((len(held), 20), -50.0)
        for slot, row in enumerate(held):
            for token, logit in rows[row][min(step, len(rows[row]) - 1)].items():
                made[slot, token] = logit
        return made

    monkeypatch.setattr(continuous_batching, "KeyValueCache", Cache)
    language_model = SimpleNamespace(device=torch.device("cpu"))
    engine = SimpleNamespace(llm=language_model, prefill=logits, step=logits, shrinks_batches=True)
    model = SimpleNamespace(engine=engine, text=NoEnd())
    mask = torch.ones(len(rows), 1, dtype=torch.bool)
    assembled = Assembled(embeds=torch.zeros(len(rows), 1, 4), mask=mask, positions=None)
    options = GenerateOptions(max_new_tokens=5, num_beams=beams, min_length=0, stop_id=STOP_ID)
    return RULES[legacy].model._decoded(model, assembled, options)


class NoEnd:
    """A text processor for which token 9 ends an answer."""

    eos_ids = frozenset({9})
    stop_strings = ()
    stop_span = 0

    def may_end_stop(self, token):
        return False

    def decode(self, tokens):
        return " ".join(map(str, tokens))


def test_all_rows_stop_with_the_first(monkeypatch):
    halting, plain = [{5: 9}, {STOP_ID: 9}, {7: 9}], [{5: 9}, {6: 9}, {7: 9}]
    results = scripted(monkeypatch, [halting, plain])
    assert [row.tokens for row in results] == [[5, STOP_ID], [5, 6]]
    assert [row.stop_reason for row in results] == ["end", "end"]
    results = scripted(monkeypatch, [plain, halting])
    assert [len(row.tokens) for row in results] == [5, 5]
    ending = [{5: 9}, {9: 9}, {STOP_ID: 9}]  # ended before: what would follow counts no more
    results = scripted(monkeypatch, [ending, plain])
    assert [len(row.tokens) for row in results] == [2, 5]


def test_all_beams_stop_with_the_first_rows_best(monkeypatch):
    halting = [{5: 9.0, 6: 8.0}, {STOP_ID: 9.0, 7: 8.5}, {7: 9.0}]
    plain = [{5: 9.0, 6: 8.0}, {6: 9.0, 7: 8.5}, {7: 9.0}]
    results = scripted(monkeypatch, [halting, plain], beams=2)
    assert [row.tokens for row in results] == [[5, STOP_ID], [5, 6]]
    assert [row.stop_reason for row in results] == ["end", "end"]
    results = scripted(monkeypatch, [plain, halting], beams=2)
    assert [len(row.tokens) for row in results] == [5, 5]
    second_best = [{5: 9.0, 6: 8.0}, {7: 9.0, STOP_ID: 8.5}, {7: 9.0}]  # in a beam that is not the best
    results = scripted(monkeypatch, [second_best, plain], beams=2)
    assert [len(row.tokens) for row in results] == [5, 5]


@pytest.mark.parametrize("beams", [1, 2])
def test_under_weights_a_row_stops_as_it_would_alone_under_exact(monkeypatch, beams):
    halting = [{5: 9.0, 6: 8.0}, {STOP_ID: 9.0, 7: 8.5}, {7: 9.0}]
    later = [{5: 9.0, 6: 8.0}, {6: 9.0, 7: 8.5}, {7: 9.0}, {STOP_ID: 9.0, 8: 8.0}]
    ending = [{5: 9.0, 6: 8.0}, {9: 9.0, 7: 2.0}]
    last = [*later[:3], {8: 9.0, 7: 8.0}, {STOP_ID: 9.0, 8: 8.0}]  # the last token that is allowed
    rows = [later, halting, ending, last]
    together = scripted(monkeypatch, rows, beams, legacy="weights")
    assert together == [scripted(monkeypatch, [row], beams)[0] for row in rows]
    assert together[1].tokens == [5, STOP_ID] and together[1].stop_reason == "end"
    assert len(together[0].tokens) == 4


def test_the_stop_id_ends_a_clip_in_every_way_to_decode(project):
    """Token 2 as an ordinary piece: with the end-of-sequence ids of another family it would not end an answer."""
    clips = torch.randn(2, 20_000) * 0.1, torch.tensor([20_000, 16_000])
    options = {"max_new_tokens": 6, "num_beams": 1, "min_length": 0}
    model = make(project).eval()
    model.text.eos_ids = frozenset({model.llm.vocab_size + 1})
    free = model.generate(*clips, [PROMPT] * 2, return_details=True, **options)
    model.text.stop_id = free[0].tokens[2]  # whichever token that is
    cut = model.generate(*clips, [PROMPT] * 2, return_details=True, **options)
    assert cut[0].tokens == free[0].tokens[: free[0].tokens.index(model.text.stop_id) + 1]
    assert cut[0].stop_reason == "end"
    each = dict(model.generate_each([(*clips, [PROMPT] * 2)], at_once=1, **options))
    assert [each[row].tokens for row in range(2)] == [result.tokens for result in cut]
    assert "".join(model.stream(clips[0][0], PROMPT, **options)) == cut[0].text
    assert make(project, legacy="off").text.stop_id is None and type(model.text).stop_id == STOP_ID


def test_frozen_encoders_are_awake_in_training_under_exact_alone(tmp_path, project):
    file = torch.load(project.beats, weights_only=True)
    file["cfg"]["encoder_layerdrop"] = 1.0  # never a layer
    torch.save(file, tmp_path / "beats.pt")
    clips = torch.randn(2, 20_000) * 0.1, torch.tensor([20_000, 16_000])

    def heard(legacy, training):
        model = make(project, legacy=legacy, beats_path=str(tmp_path / "beats.pt")).train(training)
        frames = model.encode_frames(*clips)[1].frames
        assert not model.encoders.encoders["beats"].training
        return frames

    assert torch.equal(heard("weights", True), heard("weights", False))
    assert not torch.allclose(heard("exact", True), heard("exact", False))


def test_ced_takes_the_batchs_statistics_in_training_under_exact_alone(tmp_path, project):
    ced = str(tiny.write_ced(tmp_path / "ced.pt"))
    clips = torch.randn(2, 20_000) * 0.1, torch.tensor([20_000, 16_000])
    model = make(project, legacy="exact", beats_path="", ced_path=ced)
    statistics = "encoders.encoders.ced.init_bn.1.running_mean"
    before = model.state_dict()[statistics].clone()
    quiet = model.encode_frames(*clips)[1].frames
    assert torch.equal(model.state_dict()[statistics], before)
    awake = model.train().encode_frames(*clips)[1].frames
    assert not torch.allclose(awake, quiet)
    drifted = model.state_dict()[statistics].clone()
    assert not torch.equal(drifted, before)

    save_adapter(model, tmp_path / "adapter")
    again = make(project, legacy="exact", beats_path="", ced_path=ced)
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(again.state_dict()[statistics], drifted)

    steady = make(project, legacy="weights", beats_path="", ced_path=ced).train()
    steady.encode_frames(*clips)
    assert torch.equal(steady.state_dict()[statistics], before)


def test_a_batch_of_one_is_the_same_in_both_modes_and_every_row_of_weights(tmp_path, project):
    ced = str(tiny.write_ced(tmp_path / "ced.pt"))
    clips, lengths = torch.randn(2, 24_000) * torch.tensor([[0.3], [1e-4]]), torch.tensor([24_000, 17_000])
    with torch.no_grad():
        heard = {}
        for legacy in ("weights", "exact"):
            torch.manual_seed(0)
            model = make(project, legacy=legacy, beats_path="", ced_path=ced)
            alone, mask = model.encode_audio(clips[1:, :17_000], lengths[1:])
            together, masks = model.encode_audio(clips, lengths)
            heard[legacy] = alone[0][mask[0]], together[1][masks[1]]
    torch.testing.assert_close(heard["weights"][0], heard["exact"][0])
    torch.testing.assert_close(heard["weights"][1], heard["weights"][0])
    assert not torch.allclose(heard["exact"][1], heard["exact"][0], atol=1e-4)


@pytest.mark.parametrize("legacy", ["weights", "exact"])
def test_streams_of_different_rates_stand_side_by_side_by_index(tmp_path, project, legacy):
    model = make(project, legacy=legacy, beats_path="", ced_path=str(tiny.write_ced(tmp_path / "ced.pt")))
    with torch.no_grad():
        whisper, ced = model.encode_frames(torch.randn(1, 20_000) * 0.1, torch.tensor([20_000]))
        (fused,) = model.connector.fuse([whisper, ced]).frames
        heard = model.connector.norms["ced"](ced.frames[0])
    assert len(fused) == 1500
    torch.testing.assert_close(fused[: len(heard), whisper.frames.shape[-1] :], heard)
    assert not fused[len(heard) :, whisper.frames.shape[-1] :].any()


def test_a_cache_of_encoder_outputs_is_refused_under_exact(tmp_path, project):
    with pytest.raises(ValueError, match="encoder outputs depend on its batch"):
        FrameCache(tmp_path / "cache", make(project, legacy="exact").encoders)


def test_one_prompt_a_batch_without_multi_prompt(project):
    config = load_config(project.config, ["model.multi_prompt=false", "model.legacy=exact"])
    assert rules_of(config.model).common_prompt
    assert not rules_of(replace(config.model, legacy="weights")).common_prompt
    assert not rules_of(replace(config.model, multi_prompt=True)).common_prompt

    def sample(task, prompt):
        annotation = Annotation(path="x", text="", task=task, source="", index=0)
        return Sample(index=0, annotation=annotation, waveform=torch.zeros(4), prompt=prompt, text="")

    same, mixed, asked = ("asr", "asr"), ("asr", "audiocaption"), ("QA", "QA")
    for tasks, expected in ((same, ["a", "a"]), (mixed, ["a", "b"]), (asked, ["a", "b"])):
        samples = [sample(task, prompt) for task, prompt in zip(tasks, "ab", strict=True)]
        assert collate(samples, common_prompt=True).prompts == expected
        assert collate(samples).prompts == ["a", "b"]


def test_clips_and_prompts_are_read_as_released_under_exact(project, tmp_path):
    question = Annotation(path=str(tmp_path / "clip.wav"), text="a", task="QA")
    sound = np.stack([np.full(1600, 0.5), np.full(1600, -0.5)], axis=1)
    soundfile.write(question.path, sound, 16_000)
    prompts = {"QA": "<Speech><SpeechHere></Speech> Answer: {}"}
    config = load_config(project.config, ["model.legacy=exact"])
    sample = prompts_for([question], prompts, config)[0, 0]
    assert sample.prompt == prompts["QA"]
    assert sample.waveform.mean().item() == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(PromptError, match="no 'Q'"):
        prompts_for([question], prompts, load_config(project.config))
    with pytest.raises(PromptError, match="no 'Q'"):
        AudioTextDataset([question], prompts, training=True, first_channel=True)


def test_special_tokens_stay_in_hypotheses_under_exact_alone(project):
    exact, weights = make(project, legacy="exact").text, make(project).text
    word = exact.tokenizer.encode("one two", add_special_tokens=False)
    ids = [exact.tokenizer.bos_token_id, *word, *exact.end_ids, *word]
    assert weights.decode(ids) == "one two"
    assert exact.decode(ids).endswith("one two")
    assert exact.tokenizer.bos_token in exact.decode(ids)
    assert exact.end_sym not in exact.decode(ids)

"""Checkpoints of the public code: what is read, what is refused, and which rules a model then follows."""

import itertools
import os
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from configs.schema import load_config
from data.annotations import Annotation
from data.batch import Sample
from data.prompts import PromptError
from dataset import AudioTextDataset, collate
from evaluation.hypotheses import prompts_for
from models import build_model
from models.checkpoint.adapter_folder import load_adapter, load_projection, save_adapter
from models.checkpoint.adapter_tensors import CheckpointError, named_tensors
from models.checkpoint.pad_rows import EMBEDDING_ROW, HEAD_ROW
from models.checkpoint.released import load_legacy
from models.checkpoint.released_names import own_name, released_name
from models.decoding import continuous_batching
from models.decoding.scores import GenerateOptions
from models.encoders.frame_cache import FrameCache
from models.frames import Frames
from models.language.sequence import Assembled
from models.released_rules import RULES, STOP_ID, ExactSALMONN, ReleasedSALMONN, ReleasedText, rules_of
from models.salmonn import SALMONN
from tests import tiny
from tests.parts import connector_of

BIAS = "beats.encoder.layers.1.self_attn.relative_attention_bias.weight"
PROMPT = "<Speech><SpeechHere></Speech> What is it?"


@pytest.fixture(scope="module")
def project(shared_tiny_project):
    return shared_tiny_project


def make(project, **changes):
    config = load_config(project.config).model
    return build_model(replace(config, **{"legacy": "weights", "ckpt": None, **changes}))


@pytest.fixture(scope="module")
def model(project):
    return make(project)


def released_state(model, seed=3):
    """Random values under the names, and with the company, that the public trainers write."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        released_name(name): torch.randn(tensor.shape, generator=generator) * 0.1
        for name, (tensor, needed) in named_tensors(model).items()
        if needed and not name.startswith("llm.pad_rows.")
    }
    assert None not in state
    state["speech_Qformer.bert.embeddings.position_ids"] = torch.arange(8)[None]
    if "beats" in model.encoders.encoders:
        state[BIAS] = (
            model.encoders.encoders["beats"].encoder.layers[0].self_attn.relative_attention_bias.weight.clone()
        )
    return state


def write(path, state):
    torch.save({"model": state, "optimizer": {"state": {}}, "config": {"run": {}}, "scaler": None, "epoch": 3}, path)
    return path


@pytest.fixture
def file(model, tmp_path):
    return write(tmp_path / "checkpoint_3.pth", released_state(model))


def pad_rows(model, count=1):
    generator = torch.Generator().manual_seed(9)
    shape = (count, model.llm.hidden_size)
    return {
        "lm_head.weight": torch.randn(shape, generator=generator),
        "model.embed_tokens.weight": torch.randn(shape, generator=generator),
    }


def test_names_go_both_ways(model):
    for name, (_, needed) in named_tensors(model).items():
        if needed:
            assert own_name(released_name(name)) == name


def test_every_parameter_is_loaded_and_buffers_are_named(model, file):
    report = load_legacy(model, file)
    state = torch.load(file, weights_only=True)["model"]
    assert report.ignored == ("speech_Qformer.bert.embeddings.position_ids",)
    assert set(report.matched) == set(state) - set(report.ignored)
    assert "1 without effect" in report.summary()
    for name, (tensor, needed) in named_tensors(model).items():
        if needed and released_name(name) in state:
            assert torch.equal(tensor, state[released_name(name)])


def test_a_shared_table_is_taken_from_its_second_name(project, tmp_path):
    model = make(project)
    state = released_state(model)
    state[BIAS] += 1
    load_legacy(model, write(tmp_path / "x.pth", state))
    for layer in model.encoders.encoders["beats"].encoder.layers:
        assert torch.equal(layer.self_attn.relative_attention_bias.weight, state[BIAS])
    save_adapter(model, tmp_path / "adapter")
    other = make(project)
    load_adapter(other, tmp_path / "adapter")
    table = other.encoders.encoders["beats"].encoder.layers[1].self_attn.relative_attention_bias.weight
    assert torch.equal(table, state[BIAS])


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace(".default.", "."),  # peft 0.2
        lambda name: name.replace("llama_model.base_model.model.model.", "llama_model.model."),
        lambda name: name.replace("llama_model.", "gemma_model."),
    ],
)
def test_lora_names_of_several_libraries(model, tmp_path, rename):
    state = released_state(model)
    renamed = {rename(name) if "lora_" in name else name: tensor for name, tensor in state.items()}
    renamed |= {
        "llama_model.base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "llama_model.base_model.model.model.layers.0.mlp.up_proj.weight.absmax": torch.ones(4),
    }
    report = load_legacy(model, write(tmp_path / "x.pth", renamed))
    assert sum("lora_" in name for name in report.matched) == 8
    assert len(report.ignored) == 3


@pytest.mark.parametrize("family", ["gemma", "qwen"])
def test_files_of_programs_that_name_parts_by_another_language_model(model, tmp_path, family):
    state = {
        name.replace("llama_model.", f"{family}_model.").replace("speech_llama_proj.", f"speech_{family}_proj."): tensor
        for name, tensor in released_state(model, seed=31).items()
    }
    report = load_legacy(model, write(tmp_path / "x.pth", state))
    assert {*report.matched, *report.ignored} == set(state)
    assert torch.equal(model.connector.to_llm.bias, state[f"speech_{family}_proj.bias"])
    load_projection(model, tmp_path / "x.pth")


def test_gate_projections(project, tmp_path):
    model = make(project, lora_target_modules=("q_proj", "v_proj", "gate_proj"))
    state = released_state(model)
    name = "llama_model.base_model.model.model.layers.1.mlp.gate_proj.lora_B.default.weight"
    load_legacy(model, write(tmp_path / "x.pth", state))
    found = {released_name(own): tensor for own, (tensor, _) in named_tensors(model).items()}
    assert torch.equal(found[name], state[name])
    with pytest.raises(CheckpointError, match=r"set model.lora_target_modules|are on q_proj, v_proj, gate_proj"):
        load_legacy(make(project), tmp_path / "x.pth")


def test_without_beats(project, model, file, tmp_path):
    alone = make(project, beats_path="")
    load_legacy(alone, write(tmp_path / "x.pth", released_state(alone)))
    with pytest.raises(CheckpointError, match=r"ln_audio.weight[\s\S]*beats_path"):
        load_legacy(alone, file)
    with pytest.raises(CheckpointError, match=r"missing[\s\S]*ln_audio"):
        load_legacy(model, tmp_path / "x.pth")


def test_pad_rows_enlarge_the_vocabulary_and_are_saved(project, model, file, tmp_path):
    rows = pad_rows(model)
    size = model.llm.vocab_size
    fresh, path = make(project), tmp_path / "rows.safetensors"
    save_file(rows, path)
    load_legacy(fresh, file, pad_rows=path)
    assert fresh.llm.vocab_size == size + 1
    assert torch.equal(fresh.llm.embed(torch.tensor([size])), rows["model.embed_tokens.weight"])
    assert torch.equal(fresh.llm.model.get_output_embeddings().weight[-1:], rows["lm_head.weight"])
    assert not any(parameter.requires_grad for name, parameter in fresh.llm.named_parameters() if "lora_" not in name)
    load_legacy(fresh, file, pad_rows=rows)
    assert fresh.llm.vocab_size == size + 1

    save_adapter(fresh, tmp_path / "adapter")
    again = make(project)
    load_adapter(again, tmp_path / "adapter")
    load_adapter(again, tmp_path / "adapter")
    assert again.llm.vocab_size == size + 1
    clip = torch.randn(1, 20_000) * 0.1, torch.tensor([20_000]), [PROMPT], ["a fish"]
    with torch.no_grad():
        assert torch.equal(again(*clip).loss, fresh(*clip).loss)


def test_a_tied_head_in_the_file_brings_its_pad_row(tmp_path):
    project = tiny.write_project(tmp_path / "tied", family="gemma2")
    model = make(project)
    embedding = model.llm.model.get_input_embeddings().weight
    assert embedding is model.llm.model.get_output_embeddings().weight
    size, row = len(embedding), torch.randn(1, model.llm.hidden_size)
    state = released_state(model)
    state["llama_model.base_model.model.lm_head.weight"] = torch.cat([embedding.detach().clone(), row])
    report = load_legacy(model, write(tmp_path / "x.pth", state))
    assert "llama_model.base_model.model.lm_head.weight" in report.matched
    assert model.llm.vocab_size == size + 1
    assert model.llm.model.get_input_embeddings().weight is model.llm.model.get_output_embeddings().weight
    assert torch.equal(model.llm.model.get_input_embeddings().weight[size:], row)


def test_a_checkpoint_named_in_the_configuration(project, model, file):
    config = load_config(project.config, [f"model.ckpt={file}"]).model
    assert config.legacy == "weights"
    built = build_model(config)
    assert type(built) is ReleasedSALMONN
    assert isinstance(built.text, ReleasedText)
    load_legacy(model, file)
    clip = torch.randn(1, 20_000) * 0.1, torch.tensor([20_000]), [PROMPT], ["a fish"]
    with torch.no_grad():
        assert torch.equal(built(*clip).loss, model(*clip).loss)
    assert isinstance(build_model(replace(config, legacy="exact")), ExactSALMONN)
    with pytest.raises(CheckpointError, match=r"legacy is off"):
        build_model(replace(config, legacy="off"))


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_never_run(model, tmp_path, zipped):
    mark, path = tmp_path / "was_here", tmp_path / "x.pth"
    content = {"model": released_state(model), "config": Malicious(str(mark))}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"x\.pth.*(nothing was run|no file of torch\.save)"):
        load_legacy(model, path)
    assert not mark.exists()


@pytest.mark.parametrize("key", ["ckpt", "speech_llama_proj_model", "beats_path", "ced_path"])
def test_code_in_a_file_that_the_configuration_names_is_never_run(project, tmp_path, key):
    mark, path = tmp_path / "was_here", tmp_path / "x.pth"
    torch.save({"model": {"a": torch.ones(2)}, "cfg": Malicious(str(mark))}, path)
    with pytest.raises(ValueError, match=r"x\.pth"):
        make(project, **{key: str(path)})
    assert not mark.exists()


def damaged(kind, state, path):
    """Write a file that is wrong in one way."""
    name = "speech_llama_proj.weight"
    if kind == "lacks a tensor":
        del state[name]
    elif kind == "misshapen":
        state[name] = state[name][:, :-1].clone()
    elif kind == "unknown":
        state["cls.weight"] = torch.ones(2)
    elif kind == "no tensor":
        state[name] = [1.0, 2.0]
    elif kind == "sparse":
        state[name] = state[name].to_sparse()
    elif kind == "without numbers":
        state[name] = state[name].to("meta")
    elif kind == "nested":
        state[name] = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    elif kind == "whole numbers":
        state[name] = torch.ones(state[name].shape, dtype=torch.int64)
    elif kind == "one number for all":
        state[name] = torch.ones(1).expand(state[name].shape)
    elif kind == "a head of a petabyte":
        state["llama_model.base_model.model.lm_head.weight"] = torch.ones(1, 1).expand(10**13, 32)
    write(path, state)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-2000])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "no state dict":
        torch.save({"optimizer": {}, "epoch": 1}, path)
    elif kind == "list":
        torch.save([1, 2], path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("lacks a tensor", "missing .1.: speech_llama_proj.weight"),
        ("misshapen", r"speech_llama_proj.weight: file \["),
        ("unknown", "unexpected .1.: cls.weight"),
        ("no tensor", "speech_llama_proj.weight is a list"),
        ("sparse", "speech_llama_proj.weight is a tensor of torch.float32, torch.sparse_coo, expected a dense"),
        ("without numbers", "speech_llama_proj.weight is a tensor without numbers, expected a dense"),
        ("nested", "speech_llama_proj.weight is a nested tensor, expected a dense"),
        ("whole numbers", r"speech_llama_proj.weight: file \[.*\] of int64"),
        ("one number for all", "speech_llama_proj.weight has the shape .* of which the file holds 4; expected"),
        ("a head of a petabyte", "lm_head.weight has the shape .* of which the file holds 4; expected"),
        ("truncated", "truncated"),
        ("empty", "truncated"),
        ("no state dict", "optimizer, epoch"),
        ("list", "holds list"),
    ],
)
def test_broken_files_change_nothing(model, tmp_path, kind, message):
    damaged(kind, released_state(model, seed=77), tmp_path / "x.pth")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_legacy(model, tmp_path / "x.pth", pad_rows=None)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert before.keys() == model.state_dict().keys()


def test_absent_files_and_wrong_pad_rows(model, file, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_legacy(model, tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_legacy(model, file, pad_rows=tmp_path / "nowhere.safetensors")
    for rows in (
        {"model.embed_tokens.weight": torch.ones(1, 3), "lm_head.weight": torch.ones(1, 3)},
        {"model.embed_tokens.weight": torch.ones(1, model.llm.hidden_size)},
        {"something.else": torch.ones(1, 1)},
    ):
        size = model.llm.vocab_size
        with pytest.raises(CheckpointError, match=r"PAD|pad_rows"):
            load_legacy(model, file, pad_rows=rows)
        assert model.llm.vocab_size == size


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
    model = SimpleNamespace(engine=engine, text=NoEnd(), halt_id=STOP_ID)
    mask = torch.ones(len(rows), 1, dtype=torch.bool)
    assembled = Assembled(embeds=torch.zeros(len(rows), 1, 4), mask=mask, positions=None)
    options = GenerateOptions(max_new_tokens=5, num_beams=beams, min_length=0)
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
    rows = [later, halting, ending]
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
    model.halt_id = free[0].tokens[2]  # whichever token that is
    cut = model.generate(*clips, [PROMPT] * 2, return_details=True, **options)
    assert cut[0].tokens == free[0].tokens[: free[0].tokens.index(model.halt_id) + 1] and cut[0].stop_reason == "end"
    each = dict(model.generate_each([(*clips, [PROMPT] * 2)], at_once=1, **options))
    assert [each[row].tokens for row in range(2)] == [result.tokens for result in cut]
    assert "".join(model.stream(clips[0][0], PROMPT, **options)) == cut[0].text
    assert SALMONN.halt_id is None and type(model).halt_id == STOP_ID


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


def test_ceds_statistics_come_from_the_file(tmp_path, project):
    ced = str(tiny.write_ced(tmp_path / "ced.pt"))
    model = make(project, beats_path="", ced_path=ced)
    state = released_state(model)
    state["ced.init_bn.1.running_mean"] = torch.randn(64)
    state["ced.front_end.0.spectrogram.window"] = torch.ones(4)
    report = load_legacy(model, write(tmp_path / "x.pth", state))
    assert "ced.init_bn.1.running_mean" in report.matched
    assert torch.equal(model.encoders.encoders["ced"].init_bn["1"].running_mean, state["ced.init_bn.1.running_mean"])


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


def test_names_of_pad_rows():
    assert (EMBEDDING_ROW, HEAD_ROW) == ("llm.pad_rows.embedding", "llm.pad_rows.head")

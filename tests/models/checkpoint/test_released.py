"""Checkpoints of the public code: files that load, and files that are refused."""

import pickle
from dataclasses import replace

import pytest
import torch

from configs.schema import load_config
from models import build_model
from models.checkpoint.adapter_folder import load_adapter, load_projection, save_adapter
from models.checkpoint.adapter_tensors import CheckpointError, named_tensors
from models.checkpoint.released import load_legacy
from models.checkpoint.released_names import released_name
from models.released_rules import ExactSALMONN, ReleasedText
from models.salmonn import SALMONN
from tests import tiny
from tests.released import BIAS, PROMPT, Malicious, make, released_state, write


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


def test_a_checkpoint_named_in_the_configuration(project, model, file):
    config = load_config(project.config, [f"model.ckpt={file}"]).model
    assert config.legacy == "weights"
    built = build_model(config)
    assert type(built) is SALMONN
    assert isinstance(built.text, ReleasedText)
    load_legacy(model, file)
    clip = torch.randn(1, 20_000) * 0.1, torch.tensor([20_000]), [PROMPT], ["a fish"]
    with torch.no_grad():
        assert torch.equal(built(*clip).loss, model(*clip).loss)
    assert isinstance(build_model(replace(config, legacy="exact")), ExactSALMONN)
    with pytest.raises(CheckpointError, match=r"legacy is off"):
        build_model(replace(config, legacy="off"))


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
        ("empty", "empty"),
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


@pytest.mark.parametrize("key", ["pruned_layers", "whisper_prune"])
def test_a_checkpoint_of_a_model_with_layers_left_out_is_refused(model, tmp_path, key):
    torch.save({"model": released_state(model), key: [1, 2]}, tmp_path / "pruned.pth")
    with pytest.raises(CheckpointError, match=rf"trained with layers left out \({key}: 1, 2\)"):
        load_legacy(model, tmp_path / "pruned.pth")


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


def test_ceds_statistics_come_from_the_file(tmp_path, project):
    ced = str(tiny.write_ced(tmp_path / "ced.pt"))
    model = make(project, beats_path="", ced_path=ced)
    state = released_state(model)
    state["ced.init_bn.1.running_mean"] = torch.randn(64)
    state["ced.front_end.0.spectrogram.window"] = torch.ones(4)
    report = load_legacy(model, write(tmp_path / "x.pth", state))
    assert "ced.init_bn.1.running_mean" in report.matched
    assert torch.equal(model.encoders.encoders["ced"].init_bn["1"].running_mean, state["ced.init_bn.1.running_mean"])

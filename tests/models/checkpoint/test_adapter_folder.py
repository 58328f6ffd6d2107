"""Adapter folders: written completely or not at all, strict, and checked for damage."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.checkpoint.adapter_folder import (
    adapter_state_dict,
    load_adapter,
    load_projection,
    save_adapter,
    verify_folder,
)
from models.checkpoint.adapter_tensors import CheckpointError


class Encoder(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(4, width)
        self.norm = nn.BatchNorm1d(width)


class Model(nn.Module):
    """The names that a SALMONN has: two encoders, a connector, LoRA inside the library's wrappers."""

    def __init__(self, *, trained=(), lora=True, width=3, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.encoders = nn.Module()
        self.encoders.encoders = nn.ModuleDict({"whisper": Encoder(), "beats": Encoder()})
        self.connector = nn.ModuleDict({"qformer": nn.Linear(width, 5), "to_llm": nn.Linear(5, 6)})
        attention = nn.ModuleDict({"base_layer": nn.Linear(6, 6)})
        if lora:
            attention["lora_A"] = nn.ModuleDict({"default": nn.Linear(6, 2, bias=False)})
            attention["lora_B"] = nn.ModuleDict({"default": nn.Linear(2, 6, bias=False)})
        layer = nn.ModuleDict({"self_attn": nn.ModuleDict({"q_proj": attention})})
        self.llm = nn.Module()
        self.llm.model = nn.ModuleDict({"model": nn.ModuleDict({"layers": nn.ModuleList([layer])})})
        for name, parameter in self.named_parameters():
            encoder = name.split(".")[2] if name.startswith("encoders.") else None
            parameter.requires_grad_("connector" in name or "lora_" in name or encoder in trained)


def values(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_round_trip_restores_every_trained_tensor(tmp_path):
    source, target = Model(seed=1), Model(seed=2)
    folder = save_adapter(source, tmp_path / "best", metrics={"asr.wer": 4.2})
    assert sorted(path.name for path in folder.iterdir()) == ["adapter.safetensors", "manifest.json", "metrics.json"]
    assert json.loads((folder / "metrics.json").read_text()) == {"asr.wer": 4.2}
    frozen = {name: tensor for name, tensor in values(target).items() if "encoders" in name or "base_layer" in name}
    report = load_adapter(target, folder)
    assert report.fits and set(report.matched) == set(adapter_state_dict(source))
    for name, tensor in adapter_state_dict(target).items():
        assert torch.equal(tensor, adapter_state_dict(source)[name])
    assert all(torch.equal(target.state_dict()[name], tensor) for name, tensor in frozen.items())


def test_names_in_the_file_are_stable():
    assert set(adapter_state_dict(Model())) == {
        "connector.qformer.weight",
        "connector.qformer.bias",
        "connector.to_llm.weight",
        "connector.to_llm.bias",
        "llm.layers.0.self_attn.q_proj.lora_A.weight",
        "llm.layers.0.self_attn.q_proj.lora_B.weight",
    }


def test_a_frozen_connector_is_saved_all_the_same(tmp_path):
    model = Model(seed=1)
    model.connector.requires_grad_(False)
    target = Model(seed=2)
    load_adapter(target, save_adapter(model, tmp_path / "a"))
    assert torch.equal(target.connector["qformer"].weight, model.connector["qformer"].weight)


def test_trained_encoders_and_their_buffers_are_part_of_the_adapter(tmp_path):
    model = Model(trained=("beats",), seed=1)
    model.encoders.encoders["beats"].norm.running_mean += 3
    names = set(adapter_state_dict(model))
    assert "encoders.encoders.beats.layer.weight" in names
    assert "encoders.encoders.beats.norm.running_mean" in names
    assert not any("whisper" in name for name in names)
    target = Model(trained=("beats",), seed=2)
    load_adapter(target, save_adapter(model, tmp_path / "a"))
    assert torch.equal(target.encoders.encoders["beats"].norm.running_mean, torch.full((3,), 3.0))


def test_an_encoder_unfrozen_in_the_next_stage_starts_from_its_base(tmp_path):
    folder = save_adapter(Model(seed=1), tmp_path / "stage1")
    target = Model(trained=("whisper",), seed=2)
    base = target.encoders.encoders["whisper"].layer.weight.clone()
    report = load_adapter(target, folder)
    assert report.from_base == ("encoders.encoders.whisper",) and report.fits
    assert "whisper" in report.summary()
    assert torch.equal(target.encoders.encoders["whisper"].layer.weight, base)


def test_an_encoder_frozen_in_the_next_stage_keeps_what_it_learned(tmp_path):
    """And stays in the adapter: the last stage's folder must load on top of the base checkpoints alone."""
    first = Model(trained=("whisper",), seed=1)
    second = Model(seed=2)
    load_adapter(second, save_adapter(first, tmp_path / "stage1"))
    third = Model(seed=3)
    load_adapter(third, save_adapter(second, tmp_path / "stage2"))
    assert torch.equal(third.encoders.encoders["whisper"].layer.weight, first.encoders.encoders["whisper"].layer.weight)


def test_misfits_are_listed_and_nothing_is_loaded(tmp_path):
    folder = save_adapter(Model(seed=1, width=4), tmp_path / "a")
    state = load_file(folder / "adapter.safetensors")
    del state["connector.to_llm.bias"]
    state["connector.other"] = torch.zeros(2)
    save_file(state, tmp_path / "adapter.safetensors")
    target = Model(seed=2)
    before = values(target)
    with pytest.raises(CheckpointError) as error:
        load_adapter(target, tmp_path / "adapter.safetensors")
    message = str(error.value)
    assert "missing (1): connector.to_llm.bias" in message
    assert "unexpected (1): connector.other" in message
    assert "misshapen (1): connector.qformer.weight: file [5, 4], model [5, 3]" in message
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


def test_a_long_list_of_misfits_says_how_many_more_there_are(tmp_path):
    folder = save_adapter(Model(seed=1), tmp_path / "a")
    state = load_file(folder / "adapter.safetensors")
    save_file(state | {f"connector.other_{n:02}": torch.zeros(2) for n in range(15)}, tmp_path / "adapter.safetensors")
    with pytest.raises(CheckpointError, match=r"unexpected \(15\): .*connector\.other_11, and 3 more"):
        load_adapter(Model(seed=2), tmp_path / "adapter.safetensors")


def test_missing_lora_is_an_error_that_says_what_to_set(tmp_path):
    with pytest.raises(CheckpointError, match=r"(?s)missing \(2\).*model\.lora"):
        load_adapter(Model(), save_adapter(Model(lora=False), tmp_path / "a"))
    with pytest.raises(CheckpointError, match=r"(?s)unexpected \(2\).*model\.lora"):
        load_adapter(Model(lora=False), save_adapter(Model(), tmp_path / "b"))


def test_an_encoder_half_in_the_file_is_an_error(tmp_path):
    folder = save_adapter(Model(trained=("whisper",)), tmp_path / "a")
    state = load_file(folder / "adapter.safetensors")
    del state["encoders.encoders.whisper.layer.bias"]
    save_file(state, tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match=r"missing \(1\): encoders\.encoders\.whisper\.layer\.bias"):
        load_adapter(Model(trained=("whisper",)), tmp_path / "half.safetensors")


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_damage_is_noticed_and_the_file_named(tmp_path, damage):
    folder = save_adapter(Model(), tmp_path / "a")
    file = folder / ("manifest.json" if damage == "manifest" else "adapter.safetensors")
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    elif damage == "flip":
        content[-1] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=file.name):
        load_adapter(Model(), folder)


def test_truncation_is_noticed_without_a_manifest(tmp_path):
    folder = save_adapter(Model(), tmp_path / "a")
    (folder / "manifest.json").unlink()
    verify_folder(folder)
    file = folder / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="truncated"):
        load_adapter(Model(), folder)


@pytest.mark.parametrize("name", ["nowhere", "empty", "checkpoint_0.pth"])
def test_other_sources_are_refused_by_name(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=name):
        load_adapter(Model(), tmp_path / name)


def test_config_and_further_files_are_saved_with_the_adapter(tmp_path, shared_tiny_project):
    from configs.schema import load_config

    config = load_config(shared_tiny_project.config, overrides=["model.token=hf_secret"])

    def state(draft):
        (draft / "trainer_state").mkdir()
        (draft / "trainer_state" / "progress.json").write_text("{}")

    folder = save_adapter(Model(), tmp_path / "run" / "checkpoint_1", config=config, extra=state)
    assert (folder / "trainer_state" / "progress.json").is_file()
    assert "hf_secret" not in (folder / "config.yaml").read_text()
    reloaded = load_config(folder / "config.yaml")
    assert replace(reloaded.model, token=None) == replace(config.model, token=None)


def test_saving_over_a_checkpoint_replaces_it_whole(tmp_path):
    folder = tmp_path / "last"
    for seed in (1, 2):
        save_adapter(Model(seed=seed), folder, metrics={"seed": seed} if seed == 1 else None)
    assert not (folder / "metrics.json").exists()
    target = Model(seed=3)
    load_adapter(target, folder)
    assert torch.equal(target.connector["qformer"].weight, Model(seed=2).connector["qformer"].weight)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_a_failed_save_leaves_the_previous_checkpoint(tmp_path):
    folder = save_adapter(Model(seed=1), tmp_path / "last")

    def disk_full(_):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_adapter(Model(seed=2), folder, extra=disk_full)
    target = Model(seed=3)
    load_adapter(target, folder)
    assert torch.equal(target.connector["qformer"].weight, Model(seed=1).connector["qformer"].weight)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_a_replacement_killed_between_its_renames_is_undone(tmp_path):
    folder = save_adapter(Model(seed=1), tmp_path / "last")
    os.replace(folder, tmp_path / "last.previous")
    assert load_adapter(Model(seed=2), folder).fits
    assert folder.is_dir() and not (tmp_path / "last.previous").exists()


def test_projection_alone_from_a_folder_or_a_salmonn_file(tmp_path):
    source = Model(seed=1)
    weight, bias = source.connector["to_llm"].weight.data, source.connector["to_llm"].bias.data
    torch.save(
        {"model": {"speech_llama_proj.weight": weight, "speech_llama_proj.bias": bias, "ln_speech.weight": bias}},
        tmp_path / "projection.pth",
    )
    for origin in (tmp_path / "projection.pth", save_adapter(source, tmp_path / "a")):
        target = Model(seed=2)
        untouched = target.connector["qformer"].weight.clone()
        report = load_projection(target, origin)
        assert report.matched == ("connector.to_llm.bias", "connector.to_llm.weight")
        assert torch.equal(target.connector["to_llm"].weight, weight)
        assert torch.equal(target.connector["qformer"].weight, untouched)


def test_a_file_without_the_projection_is_refused(tmp_path):
    torch.save({"model": {"ln_speech.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"missing \(2\)"):
        load_projection(Model(), tmp_path / "other.pth")


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch " + str(tmp_path / "ran"),)

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth"):
        load_projection(Model(), tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 89472\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
        (b"", r"empty \(0 bytes\)"),
        (b"PK\x03\x04" + bytes(500), "zip archive"),
    ],
)
@pytest.mark.parametrize("name", ["adapter.safetensors", "manifest.json"])
def test_a_file_that_is_something_else_is_named(tmp_path, name, content, words):
    save_adapter(Model(), tmp_path / "best")
    (tmp_path / "best" / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} is .*{words}"):
        load_adapter(Model(), tmp_path / "best")

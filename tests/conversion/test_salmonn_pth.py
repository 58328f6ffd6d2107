"""A released checkpoint becomes an adapter folder and a released checkpoint again, bit for bit."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from configs.schema import load_config
from conversion.salmonn_pth import to_folder
from models import build_model, load_model
from models.checkpoint.adapter_folder import save_adapter
from models.checkpoint.adapter_tensors import CheckpointError
from models.checkpoint.released import load_legacy
from support.command_line import UserError
from tests import tiny
from tests.released import PROMPT, Malicious, make, pad_rows, released_state, write
from tools.convert_checkpoint import main

CLIPS = torch.randn(2, 30_000, generator=torch.Generator().manual_seed(1)) * 0.1
LENGTHS = torch.tensor([30_000, 21_000])


def tokens_of(model):
    results = model.generate(CLIPS, LENGTHS, [PROMPT] * 2, return_details=True, num_beams=1, max_new_tokens=8)
    return [result.tokens for result in results]


def loss_of(model):
    with torch.no_grad():
        return model(CLIPS, LENGTHS, [PROMPT] * 2, ["a fish", "two beeps"]).loss


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_there_and_back(tmp_path, family):
    project = tiny.write_project(tmp_path / "project", family=family)
    source = make(project)
    state, arguments, rows = released_state(source), [], None
    embedding = source.llm.model.get_input_embeddings().weight
    if embedding is source.llm.model.get_output_embeddings().weight:
        row = torch.randn(1, source.llm.hidden_size)
        state["llama_model.base_model.model.lm_head.weight"] = torch.cat([embedding.detach().clone(), row])
        state = {name.replace("llama_", "gemma_"): tensor for name, tensor in state.items()}  # as cv-03's code has it
    else:
        rows = pad_rows(source)
        save_file(rows, tmp_path / "rows.safetensors")
        arguments = ["--pad-rows", str(tmp_path / "rows.safetensors")]
    file = write(tmp_path / "checkpoint_0.pth", state)
    load_legacy(source, file, pad_rows=rows)

    folder, back = tmp_path / "adapter", tmp_path / "again" / "checkpoint_0.pth"
    assert main([str(file), str(folder), "--cfg-path", str(project.config), *arguments]) == 0
    converted = load_model(folder, "cpu")
    assert converted.config.legacy == "weights"
    assert tokens_of(converted) == tokens_of(source)
    assert torch.equal(loss_of(converted), loss_of(source))

    assert main([str(folder), str(back)]) == 0
    before, after = (torch.load(path, weights_only=True) for path in (file, back))
    assert list(after["model"]) == list(before["model"])
    assert all(torch.equal(after["model"][name], tensor) for name, tensor in before["model"].items())
    assert {key: after[key] for key in before if key != "model"} == {
        key: before[key] for key in before if key != "model"
    }


def test_the_folder_knows_where_the_file_has_low_rank_adapters(tmp_path, shared_tiny_project):
    source = make(shared_tiny_project, lora_target_modules=("q_proj", "v_proj", "gate_proj"))
    file = write(tmp_path / "x.pth", released_state(source))
    load_legacy(source, file)
    assert main([str(file), str(tmp_path / "adapter"), "--cfg-path", str(shared_tiny_project.config)]) == 0
    converted = load_model(tmp_path / "adapter", "cpu")
    assert converted.config.lora_target_modules == ("q_proj", "v_proj", "gate_proj")
    assert tokens_of(converted) == tokens_of(source)


def test_ceds_statistics_go_there_and_back(tmp_path):
    ced = tiny.write_ced(tmp_path / "ced.pt")
    project = tiny.write_project(tmp_path / "project", model={"beats_path": "", "ced_path": str(ced)})
    source = make(project)
    state = released_state(source)
    state["ced.init_bn.1.running_mean"] = torch.randn(64)
    state["ced.init_bn.1.running_var"] = torch.rand(64) + 300
    file = write(tmp_path / "checkpoint_0.pth", state)
    load_legacy(source, file)

    folder, back = tmp_path / "adapter", tmp_path / "again.pth"
    assert main([str(file), str(folder), "--cfg-path", str(project.config)]) == 0
    converted = load_model(folder, "cpu")
    assert tokens_of(converted) == tokens_of(source)
    assert main([str(folder), str(back)]) == 0
    again = make(project)
    load_legacy(again, back)
    assert tokens_of(again) == tokens_of(source)
    after = torch.load(back, weights_only=True)["model"]
    assert list(after) == list(state)
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())


def test_what_was_kept_beside_the_adapter_runs_nothing(tmp_path, shared_tiny_project, capsys):
    file = write(tmp_path / "x.pth", released_state(make(shared_tiny_project)))
    folder, mark = tmp_path / "adapter", tmp_path / "was_here"
    assert main([str(file), str(folder), "--cfg-path", str(shared_tiny_project.config)]) == 0
    torch.save({"model": {}, "names": Malicious(str(mark))}, folder / "released.pt")
    assert main([str(folder), str(tmp_path / "y.pth")]) == 1
    assert "released.pt" in capsys.readouterr().err
    assert not mark.exists()
    assert not (tmp_path / "y.pth").exists()


def test_secrets_stay_behind(tmp_path, shared_tiny_project):
    file = write(tmp_path / "x.pth", released_state(make(shared_tiny_project)))
    content = torch.load(file, weights_only=True)
    content["config"] = {"model": {"token": "hf_secret"}, "wandb": {"key": "secret too"}}
    torch.save(content, file)
    assert main([str(file), str(tmp_path / "adapter"), "--cfg-path", str(shared_tiny_project.config)]) == 0
    assert not any(b"secret" in path.read_bytes() for path in (tmp_path / "adapter").iterdir())


def test_an_adapter_trained_here_becomes_a_released_checkpoint(tmp_path, shared_tiny_project):
    config = load_config(shared_tiny_project.config)
    model = build_model(replace(config.model, legacy="off"))
    save_adapter(model, tmp_path / "adapter", config=config)
    assert main([str(tmp_path / "adapter"), str(tmp_path / "x.pth")]) == 0
    other = make(shared_tiny_project)
    load_legacy(other, tmp_path / "x.pth")
    for name, tensor in model.connector.state_dict().items():
        assert torch.equal(other.connector.state_dict()[name], tensor)


def test_what_cannot_be_converted_is_said_in_a_line(tmp_path, shared_tiny_project, capsys):
    config = ["--cfg-path", str(shared_tiny_project.config)]
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    assert main([str(tmp_path / "broken.pth"), str(tmp_path / "adapter"), *config]) == 1
    assert "broken.pth" in capsys.readouterr().err
    write(tmp_path / "other.pth", {"cls.weight": torch.ones(2)})
    assert main([str(tmp_path / "other.pth"), str(tmp_path / "adapter"), *config]) == 1
    assert "cls.weight" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "x.pth")]) == 1
    assert not (tmp_path / "adapter").exists()

    project = tiny.write_project(tmp_path / "project", model={"fusion": "project"})
    project_config = load_config(project.config)
    save_adapter(build_model(project_config.model), tmp_path / "ours", config=project_config)
    capsys.readouterr()
    assert main([str(tmp_path / "ours"), str(tmp_path / "x.pth")]) == 1
    assert "connector.projections" in capsys.readouterr().err
    assert not (tmp_path / "x.pth").exists()


def test_structures_that_would_be_endless_are_kept_or_refused(tmp_path, shared_tiny_project, capsys, monkeypatch):
    config = ["--cfg-path", str(shared_tiny_project.config)]
    file = write(tmp_path / "x.pth", released_state(make(shared_tiny_project)))
    content = torch.load(file, weights_only=True)
    twice: dict = {"wandb_key": "secret"}
    for _ in range(80):  # 2 ** 80 if it were written out
        twice = {"a": twice, "b": [twice]}
    torch.save({**content, "config": twice}, file)
    assert main([str(file), str(tmp_path / "adapter"), *config]) == 0
    assert b"secret" not in (tmp_path / "adapter" / "released.pt").read_bytes()
    assert main([str(tmp_path / "adapter"), str(tmp_path / "y.pth")]) == 0
    torch.save({"model": 3}, tmp_path / "adapter" / "released.pt")
    assert main([str(tmp_path / "adapter"), str(tmp_path / "z.pth")]) == 1
    assert "released.pt is no file of this tool" in capsys.readouterr().err
    deep: list = []
    for _ in range(5000):  # the library reads such a file, but does not write one
        deep = [deep]
    monkeypatch.setattr("conversion.salmonn_pth.read_released", lambda path: {**content, "optimizer": deep})
    with pytest.raises(CheckpointError, match="nested too deeply"):
        to_folder(file, tmp_path / "z", load_config(shared_tiny_project.config))


def test_the_folder_is_evaluated_by_its_own_rules(tmp_path, shared_tiny_project):
    """The YAML does not say `model.legacy`; the file's name no longer does either."""
    file = write(tmp_path / "x.pth", released_state(make(shared_tiny_project)))
    assert main([str(file), str(tmp_path / "adapter"), "--cfg-path", str(shared_tiny_project.config)]) == 0
    config = load_config(shared_tiny_project.config)
    by_file, by_folder = config.with_adapter(str(file)), config.with_adapter(str(tmp_path / "adapter"))
    assert by_file.model.legacy == by_folder.model.legacy == "weights"
    assert tokens_of(build_model(by_file.model)) == tokens_of(build_model(by_folder.model))
    with pytest.raises(UserError, match=r"model\.legacy is off, but .*adapter was trained, or converted, with"):
        build_model(replace(config.model, ckpt=str(tmp_path / "adapter")))

"""Number types, device and processes of a run."""

import pytest
import torch

from configs.schema import load_config
from training import precision, step


def test_precision_of_training(shared_tiny_project):
    config = load_config(shared_tiny_project.config)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert precision.training_model_config(config, cpu) is config.model
    assert precision.training_model_config(config, cuda).dtype == "float32"
    scaled = load_config(shared_tiny_project.config, ["run.amp=true"])
    assert precision.training_model_config(scaled, cuda).dtype == "auto"
    half = load_config(shared_tiny_project.config, ["model.dtype=float16"])
    with pytest.raises(ValueError, match=r"run\.amp"):
        precision.training_model_config(half, cuda)
    with pytest.raises(ValueError, match="on the cpu"):
        precision.training_model_config(half, cpu)


def test_cuda_that_is_not_there_trains_on_the_cpu(tiny_project, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    accelerator = precision.make_accelerator(load_config(tiny_project.config, ["run.device=cuda"]))
    assert accelerator.device.type == "cpu"
    assert "run.device is cuda" in caplog.text


def test_process_count_is_checked(tiny_project, monkeypatch):
    class Alone:
        num_processes = 1

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(step, "Accelerator", lambda **_: Alone())
    with pytest.raises(ValueError, match="asked for 2 processes, but 1"):
        precision.make_accelerator(load_config(tiny_project.config))


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
@pytest.mark.parametrize(("value", "said"), [("1", True), ("true", True), ("false", False)])
def test_a_launchers_other_parallelism_is_ignored(
    monkeypatch, capsys, shared_tiny_project, variable: str, value: str, said: bool
):
    monkeypatch.setenv(variable, value)
    accelerator = precision.make_accelerator(load_config(shared_tiny_project.config))
    assert accelerator.num_processes == 1 and not accelerator.state.distributed_type.endswith(("FSDP", "DEEPSPEED"))
    assert (f"{variable}: ignored" in capsys.readouterr().out) == said

"""Stopped runs: exact resume, signals, whole checkpoints, what a folder holds and which run may go on."""

import errno
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch

from models import load_model
from models.checkpoint import save_adapter
from run_folder import Progress, RunFolder, RunFolderError, TrainerState, find_resume
from runner import Runner
from tests import tiny
from tests.runs import log_of, losses_of, make_runner
from training_step import TrainingStep


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it and tidy up."""


def kill_after(monkeypatch: pytest.MonkeyPatch, step: int, action) -> None:
    """Call `action` when the step after `step` is about to be taken."""
    take = TrainingStep.take

    def taken(self, window, tokens):
        taken.count += 1
        if taken.count == step + 1:
            action()
        return take(self, window, tokens)

    taken.count = 0
    monkeypatch.setattr(TrainingStep, "take", taken)


def die() -> None:
    raise Killed


@pytest.fixture(scope="module")
def lively_project(tmp_path_factory) -> tiny.TinyProject:
    """A project in which everything random is on: dropout, augmentation, several prompts, length buckets."""
    return tiny.write_project(
        tmp_path_factory.mktemp("lively"),
        model={"lora_dropout": 0.3},
        datasets={"augmentation": {"gain": {"p": 0.5}, "gaussian_noise": {"p": 0.5}}, "bucket_batches": 2},
        run={"accum_grad_iters": 2, "batch_size_train": 2, "iters_per_epoch": 5, "checkpoint_every_steps": 2},
    )


@pytest.fixture(scope="module")
def uninterrupted(lively_project, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    make_runner(lively_project.config, f"run.output_dir={folder}").train()
    return folder


def test_a_killed_run_goes_on_exactly(lively_project, uninterrupted, tmp_path, monkeypatch):
    """Killed while workers load ahead, resumed without them, held against a run that never had any."""
    folder = tmp_path / "run"
    option = f"run.output_dir={folder}"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 5, die)  # 3 steps an epoch: the newest checkpoint, of step 4, lies within the second one
        make_runner(lively_project.config, option, "run.num_workers=2").train()
    assert RunFolder(folder).last().name == "checkpoint_000004"
    assert len(losses_of(folder)) == 5

    resumed = make_runner(lively_project.config, option, resume=find_resume("auto", RunFolder(folder)))
    assert resumed.progress.step == 4
    result = resumed.train()
    assert (result.step, result.stopped_by) == (6, None)
    assert losses_of(folder) == losses_of(uninterrupted)  # bit for bit
    whole, again = (load_model(path / "last").state_dict() for path in (uninterrupted, folder))
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 2), (signal.SIGINT, 3)])
def test_a_signal_saves_and_the_run_goes_on_exactly(lively_project, uninterrupted, tmp_path, monkeypatch, number, step):
    """Mid-epoch, and in an epoch's last step: its validation is then left, and done after resuming."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_after(patch, step - 1, lambda: os.kill(os.getpid(), number))
        result = make_runner(lively_project.config, f"run.output_dir={folder}").train()
    assert result.stopped_by == number
    assert result.step == step
    assert result.last == folder / f"checkpoint_{result.step:06d}"
    make_runner(lively_project.config, f"run.output_dir={folder}", resume=result.last).train()
    assert losses_of(folder) == losses_of(uninterrupted)
    validations = [[line for line in log_of(path) if "valid/loss" in line] for path in (folder, uninterrupted)]
    assert validations[0] == validations[1]


def test_checkpoint_folder_and_pointers(lively_project, uninterrupted):
    names = {path.name for path in (uninterrupted / "last").iterdir()}
    assert {"adapter.safetensors", "config.yaml", "metrics.json", "trainer_state"} <= names
    assert json.loads((uninterrupted / "best" / "metrics.json").read_text())["criterion"] == "loss"
    assert (uninterrupted / "loss.png").read_bytes().startswith(b"\x89PNG")
    validations = [line for line in log_of(uninterrupted) if "valid/loss" in line]
    assert [line["step"] for line in validations] == [3, 6]
    assert len(RunFolder(uninterrupted).checkpoints()) <= 3  # two newest and the best
    assert {"lr", "grad_norm", "samples_per_s", "skipped"} <= set(log_of(uninterrupted)[0])


def test_resume_refuses_another_run(lively_project, uninterrupted, tmp_path):
    with pytest.raises(RunFolderError, match=r"seed: 1 -> 2"):
        make_runner(lively_project.config, "run.seed=2", resume=uninterrupted / "last")


def test_an_adapter_alone_cannot_be_resumed(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(RunFolderError, match=r"model\.ckpt"):
        TrainerState.read(tmp_path / "checkpoint")


def test_disk_full_leaves_the_previous_checkpoint(lively_project, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    write = TrainerState.write

    def full(self, target):
        if self.progress.step > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, target)

    with monkeypatch.context() as patch, pytest.raises(RunFolderError, match=r"checkpoint_000002 is whole.*--resume"):
        patch.setattr(TrainerState, "write", full)
        make_runner(lively_project.config, f"run.output_dir={folder}").train()
    assert [path.name for path in RunFolder(folder).checkpoints()] == ["checkpoint_000002"]
    assert make_runner(lively_project.config, f"run.output_dir={folder}", resume=folder / "last").progress.step == 2


def test_a_file_system_that_is_really_full(tmp_path):
    """The libraries report it as errors of their own."""
    tensors = {"weight": torch.zeros(100_000)}
    model = torch.nn.Module()
    model.connector = torch.nn.Linear(300, 300)
    states = TrainerState(Progress(), {}, None, []), TrainerState(Progress(), tensors, None, [])
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(OSError, match="adapter"):
            save_adapter(model, tmp_path / "checkpoint")
        states[0].write(tmp_path)
        with pytest.raises(OSError, match="optimizer"):
            states[1].write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "checkpoint").exists()


def test_a_damaged_trainer_state_is_named(lively_project, uninterrupted, tmp_path):
    copy = tmp_path / "checkpoint_000006"
    shutil.copytree(uninterrupted / "last", copy)
    with open(copy / "trainer_state" / "optimizer.pt", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(RunFolderError, match="is damaged"):
        TrainerState.read(copy)


def test_a_stop_right_after_a_checkpoint_leaves_its_scores(lively_project, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    finish = Runner._finish_epoch

    def finish_and_stop(self):
        finished = finish(self)
        os.kill(os.getpid(), signal.SIGTERM)
        return finished

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "_finish_epoch", finish_and_stop)
        assert make_runner(lively_project.config, f"run.output_dir={folder}").train().step == 3
    assert "loss" in json.loads((folder / "best" / "metrics.json").read_text())["scores"]


# -- the folder -----------------------------------------------------------------------------------------------------


def test_debris_is_no_checkpoint_and_is_swept(tmp_path):
    folder = RunFolder(tmp_path)
    for name in ("checkpoint_000002", "checkpoint_000010", ".checkpoint_000011.tmp"):
        (tmp_path / name / "trainer_state").mkdir(parents=True)
    (tmp_path / "checkpoint_000012").mkdir()  # without a trainer state
    assert [path.name for path in folder.checkpoints()] == ["checkpoint_000002", "checkpoint_000010"]
    folder.point("last", tmp_path / "checkpoint_000002")  # a kill fell between save and pointer
    assert find_resume("auto", folder).name == "checkpoint_000010"
    folder.sweep()
    assert not (tmp_path / ".checkpoint_000011.tmp").exists()
    folder.point("best", tmp_path / "checkpoint_000002")
    folder.prune(1)
    assert [path.name for path in folder.checkpoints()] == ["checkpoint_000002", "checkpoint_000010"]


def test_log_is_cut_after_the_resumed_step(tmp_path):
    folder = RunFolder(tmp_path)
    folder.log_path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    folder.cut_log(2)
    assert folder.log_path.read_text() == '{"step": 1}\n{"step": 2}\n'

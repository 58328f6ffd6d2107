"""Stopped runs: exact resume, signals, whole checkpoints, what a folder holds and which run may go on."""

import errno
import json
import os
import resource
import shutil
import signal
import sys
import types
from pathlib import Path

import pytest
import torch

import train
from configs.schema import load_config
from data.quarantine import TooManyBadClips
from models import load_model
from models.checkpoint.adapter_folder import save_adapter
from runner import Runner
from tests import tiny
from tests.runs import log_of, losses_of, make_runner
from training.resuming import TRAINING_SETTINGS, WITHOUT_EFFECT, setting
from training.run_folder import Progress, RunFolder, RunFolderError, TrainerState, find_resume
from training.run_log import RunLog
from training.step import TrainingStep


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


@pytest.mark.parametrize("field", ["texts", "Q", "expand_wav"])
def test_resume_refuses_other_annotations(lively_project, uninterrupted, tmp_path, field):
    entries = json.loads(lively_project.train.read_text())["annotation"]
    folder = lively_project.train.parent
    values = {"texts": ["another", "reference"], "Q": "What is heard?", "expand_wav": [entries[1]["path"]]}
    moved = [{**entry, "path": str(folder / entry["path"])} for entry in entries]
    other = tiny.write_annotations(tmp_path / "other.json", [{**moved[0], field: values[field]}, *moved[1:]])
    with pytest.raises(RunFolderError, match=r"cannot resume.*annotations: "):
        make_runner(lively_project.config, f"datasets.train_ann_path={other}", resume=uninterrupted / "last")


def test_resume_names_every_changed_setting(lively_project, uninterrupted, tmp_path, capsys):
    make_runner(lively_project.config, f"run.output_dir={tmp_path}", "run.log_freq=3", resume=uninterrupted / "last")
    assert "other settings" not in capsys.readouterr().out
    prompts = {**tiny.TRAIN_PROMPTS, "asr": ["<SpeechHere> Something else."]}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    options = (
        "run.optims.init_lr=0.1",
        "model.lora_dropout=0.2",
        "datasets.augmentation.gain.p=0.25",
        "datasets.join_clips.p=0.5",
        "run.max_grad_norm=null",
        f"model.prompt_path={tmp_path / 'prompts.json'}",
        "model.token=secret",
        f"model.ckpt={uninterrupted / 'last'}",
    )
    make_runner(lively_project.config, f"run.output_dir={tmp_path}", *options, resume=uninterrupted / "last")
    lines = capsys.readouterr().out.splitlines()
    (start,) = [number for number, line in enumerate(lines) if "was trained with other settings" in line]
    named = [line.strip() for line in lines[start + 1 : start + 7]]
    assert named[:2] == ["model.lora_dropout: 0.3 -> 0.2", "datasets.augmentation.gain.p: 0.5 -> 0.25"]
    assert named[2].startswith("datasets.join_clips: null -> ")
    assert named[3:5] == ["run.optims.init_lr: 0.001 -> 0.1", "run.max_grad_norm: 1.0 -> null"]
    assert named[5].endswith("holds other prompts than before")
    assert "secret" not in "".join(lines)


def test_settings_compared_on_resuming_exist(lively_project):
    sections = load_config(lively_project.config).to_dict()
    for key in (*TRAINING_SETTINGS, *WITHOUT_EFFECT):
        setting(sections, key)


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


def checkpoint_folders(path: Path, *steps: int) -> RunFolder:
    """A run's folder with empty checkpoints."""
    for step in steps:
        (path / f"checkpoint_{step:06d}" / "trainer_state").mkdir(parents=True)
    return RunFolder(path)


def names_of(folder: RunFolder) -> list[str]:
    return [path.name for path in folder.checkpoints()]


def test_later_checkpoints_are_set_aside_when_a_run_goes_on_from_an_older_one(tmp_path):
    folder = checkpoint_folders(tmp_path, 2, 4, 6)
    folder.point("last", tmp_path / "checkpoint_000006")
    (note,) = folder.go_on_from(2)
    assert "abandoned_checkpoint_000004, abandoned_checkpoint_000006" in note
    assert names_of(folder) == ["checkpoint_000002"]
    assert find_resume("auto", folder) == tmp_path / "checkpoint_000002"
    assert (tmp_path / "last").resolve() == tmp_path / "checkpoint_000002"
    checkpoint_folders(tmp_path, 4)  # the new branch's; left in its turn
    folder.go_on_from(2)
    folder.sweep()
    aside = sorted(path.name for path in tmp_path.glob("abandoned_*"))
    assert aside == ["abandoned_checkpoint_000004", "abandoned_checkpoint_000004_2", "abandoned_checkpoint_000006"]
    assert folder.go_on_from(2) == []
    assert folder.holds(tmp_path / "last")
    assert not folder.holds(tmp_path / "abandoned_checkpoint_000004")


def test_pruning_spares_what_pointers_point_to(tmp_path):
    folder = checkpoint_folders(tmp_path, 1, 2, 3, 4, 5)
    folder.point("best", tmp_path / "checkpoint_000001")
    folder.point("last", tmp_path / "checkpoint_000003")
    folder.prune(1)
    assert names_of(folder) == ["checkpoint_000001", "checkpoint_000003", "checkpoint_000005"]


def test_a_run_goes_on_from_an_older_checkpoint_of_its_own(lively_project, uninterrupted, tmp_path, capsys):
    """Its checkpoints on the way are kept, and the last one found, though the branch it left had later steps."""
    folder = RunFolder(tmp_path / "run")
    options = (f"run.output_dir={folder.path}", "run.checkpoint_every_steps=1", "run.keep_checkpoints=2")
    make_runner(lively_project.config, *options, "run.keep_checkpoints=9").train()
    runner = make_runner(lively_project.config, *options, resume=folder.checkpoint_path(2))
    saved, save = [], runner._save

    def watched(*arguments, **keywords):
        save(*arguments, **keywords)
        saved.append((runner.progress.step, folder.last().name, (folder.path / "last").resolve().name))

    runner._save = watched
    runner.train()
    assert saved == [(step, f"checkpoint_{step:06d}", f"checkpoint_{step:06d}") for step in (3, 4, 5, 6)]
    assert "abandoned_checkpoint_000003" in capsys.readouterr().out
    assert losses_of(folder.path) == losses_of(uninterrupted)


def test_a_folder_with_checkpoints_is_not_mixed_with_another_run(lively_project, uninterrupted, tmp_path, capsys):
    folder = checkpoint_folders(tmp_path / "run", 1)
    arguments = ["--cfg-path", str(lively_project.config), "--resume", str(uninterrupted / "last")]
    assert train.main([*arguments, "--options", f"run.output_dir={folder.path}"]) == 1
    assert "already holds checkpoints" in capsys.readouterr().err
    assert names_of(folder) == ["checkpoint_000001"]


def test_best_is_pointed_to_again_after_a_kill_between_save_and_pointer(tmp_path):
    folder = checkpoint_folders(tmp_path, 3, 4)
    folder.point("best", tmp_path / "checkpoint_000003")
    assert folder.go_on_from(4, best_step=4) == []
    assert folder.best() == tmp_path / "checkpoint_000004"
    folder.go_on_from(3, best_step=3)
    assert folder.best() == tmp_path / "checkpoint_000003"
    folder.go_on_from(3)  # before any validation
    assert folder.best() is None
    assert not (tmp_path / "best").is_symlink()


def test_a_best_checkpoint_that_is_not_in_the_folder_is_said_and_chosen_anew(
    lively_project, uninterrupted, tmp_path, capsys
):
    """A run of another folder goes on in a new one."""
    folder = RunFolder(tmp_path / "run")
    at_end = uninterrupted / "last"
    options = (f"run.output_dir={folder.path}", "run.optims.max_epoch=3")
    best_step = TrainerState.read(at_end).progress.best["step"]
    runner = make_runner(lively_project.config, *options, resume=at_end)
    result = runner.train()
    assert f"the best checkpoint so far, of step {best_step}, is not in this folder" in capsys.readouterr().out
    assert result.best == folder.checkpoint_path(9)
    assert runner.progress.best["step"] == 9
    assert [line["step"] for line in log_of(folder.path)] == [7, 8, 9, 9]


def test_a_finished_run_resumed_elsewhere_still_writes_its_checkpoint(lively_project, uninterrupted, tmp_path):
    result = make_runner(lively_project.config, f"run.output_dir={tmp_path}", resume=uninterrupted / "last").train()
    assert result.last == tmp_path / "checkpoint_000006"
    assert result.adapter == result.last


# -- bad clips -------------------------------------------------------------------------------------------------------


def test_bad_clips_are_still_counted_after_a_restart(tiny_project):
    """One of twelve is allowed: the second ends the run, on whichever side of the restart the first came."""
    entries = json.loads(tiny_project.train.read_text())["annotation"]
    first, second = (tiny_project.train.parent / entry["path"] for entry in entries[:2])
    whole = first.read_bytes()
    first.write_bytes(b"no audio")
    options = ("datasets.max_bad_fraction=0.1", "run.optims.max_epoch=1")
    result = make_runner(tiny_project.config, *options).train()
    first.write_bytes(whole)
    second.write_bytes(b"no audio")
    with pytest.raises(TooManyBadClips, match="2 of 12 clips"):
        make_runner(tiny_project.config, *options, "run.optims.max_epoch=2", resume=result.last).train()


# -- Weights & Biases ------------------------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_in_its_wandb_run(lively_project, tmp_path, monkeypatch):
    """A stand-in for the package notes what the run is started with."""
    started = []

    def init(**options):
        started.append(options)
        return types.SimpleNamespace(log=lambda entry, step: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    folder = RunFolder(tmp_path / "run")
    config = load_config(lively_project.config, ["wandb.mode=offline", f"run.output_dir={folder.path}"])
    checkpoint_folders(folder.path, 2, 4)
    for step in (4, 4, 2, 2, 0):  # an older checkpoint, and a fresh start, begin another one
        folder.go_on_from(step)
        RunLog(config, folder, total_steps=6, done_steps=step).close()
    first, same, other, again, fresh = [options["id"] for options in started]
    assert first == same and other == again
    assert len({first, other, fresh}) == 3
    assert {options["resume"] for options in started} == {"allow"}

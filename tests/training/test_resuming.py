"""Exact resume, and which run may be resumed."""

import json

import pytest
import torch

import train
from configs.schema import load_config
from data.quarantine import TooManyBadClips
from models import load_model
from tests import tiny
from tests.runs import checkpoint_folders, kill_after, log_of, losses_of, make_runner, names_of
from training.resuming import TRAINING_SETTINGS, WITHOUT_EFFECT, setting
from training.run_folder import RunFolder, RunFolderError, TrainerState, find_resume


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it and tidy up."""


def die() -> None:
    raise Killed


def test_a_killed_run_goes_on_exactly(lively_project, uninterrupted, tmp_path, monkeypatch):
    """Killed while workers load ahead, resumed without workers, compared with a run without workers."""
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


def test_a_best_checkpoint_that_is_not_in_the_folder_is_said_and_chosen_anew(
    lively_project, uninterrupted, tmp_path, capsys
):
    """A run is continued in a new folder."""
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

"""The folder of a run: complete checkpoints, links, leftovers of killed runs, and full disks."""

import errno
import json
import resource
import shutil
import signal

import pytest
import torch

from models.checkpoint.adapter_folder import save_adapter
from tests.runs import checkpoint_folders, log_of, make_runner, names_of
from training.run_folder import Progress, RunFolder, RunFolderError, TrainerState, find_resume


def test_checkpoint_folder_and_pointers(lively_project, uninterrupted):
    names = {path.name for path in (uninterrupted / "last").iterdir()}
    assert {"adapter.safetensors", "config.yaml", "metrics.json", "trainer_state"} <= names
    assert json.loads((uninterrupted / "best" / "metrics.json").read_text())["criterion"] == "loss"
    assert (uninterrupted / "loss.png").read_bytes().startswith(b"\x89PNG")
    validations = [line for line in log_of(uninterrupted) if "valid/loss" in line]
    assert [line["step"] for line in validations] == [3, 6]
    assert len(RunFolder(uninterrupted).checkpoints()) <= 3  # two newest and the best
    assert {"lr", "grad_norm", "samples_per_s", "skipped"} <= set(log_of(uninterrupted)[0])


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

    with (
        monkeypatch.context() as patch,
        pytest.raises(RunFolderError, match=r"checkpoint_000002 is complete.*--resume"),
    ):
        patch.setattr(TrainerState, "write", full)
        make_runner(lively_project.config, f"run.output_dir={folder}").train()
    assert [path.name for path in RunFolder(folder).checkpoints()] == ["checkpoint_000002"]
    assert make_runner(lively_project.config, f"run.output_dir={folder}", resume=folder / "last").progress.step == 2


def test_a_file_system_that_is_really_full(tmp_path):
    """The libraries raise errors of their own."""
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

"""Weights & Biases: one run there for each run, resumed with it."""

import sys
import types

import pytest

from configs.schema import load_config
from tests.runs import checkpoint_folders, make_runner
from training.run_folder import RunFolder
from training.run_log import RunLog


def test_a_resumed_run_goes_on_in_its_wandb_run(lively_project, tmp_path, monkeypatch):
    """A fake package records the options of each start."""
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


def test_wandb_that_is_not_installed_is_a_clear_error(tiny_project, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        make_runner(tiny_project.config, "wandb.mode=offline").train()

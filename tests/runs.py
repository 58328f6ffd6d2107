"""Runs of tiny projects for tests: a runner from a YAML, its log, and checkpoints."""

import json
from pathlib import Path

import pytest
import torch

import train
from configs.schema import load_config
from models import build_model
from runner import Runner
from training.run_folder import RunFolder
from training.step import TrainingStep
from training_data import prepare_alignment, transcripts_to_align


def make_runner(config_path: Path, *options: str, resume: Path | None = None) -> Runner:
    config = load_config(config_path, list(options))
    train_data, valid_data = transcripts_to_align(config, *train.load_data(config), print)
    torch.manual_seed(config.run.seed)
    model = build_model(config.model, device="cpu", aligning=config.run.stage == "align")
    prepare_alignment(config, model, train_data, valid_data, print, resume=resume)
    return train.make_runner(config, model, train_data, valid_data, resume=resume)


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses_of(folder: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in log_of(folder) if "loss" in line]


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


def checkpoint_folders(path: Path, *steps: int) -> RunFolder:
    """A run's folder with empty checkpoints."""
    for step in steps:
        (path / f"checkpoint_{step:06d}" / "trainer_state").mkdir(parents=True)
    return RunFolder(path)


def names_of(folder: RunFolder) -> list[str]:
    return [path.name for path in folder.checkpoints()]

"""A project with all randomness switched on, and a complete run of it."""

from pathlib import Path

import pytest

from tests import tiny
from tests.runs import make_runner


@pytest.fixture(scope="session")
def lively_project(tmp_path_factory) -> tiny.TinyProject:
    """A project with all randomness switched on: dropout, augmentation, several prompts, length buckets."""
    return tiny.write_project(
        tmp_path_factory.mktemp("lively"),
        model={"lora_dropout": 0.3},
        datasets={"augmentation": {"gain": {"p": 0.5}, "gaussian_noise": {"p": 0.5}}, "bucket_batches": 2},
        run={"accum_grad_iters": 2, "batch_size_train": 2, "iters_per_epoch": 5, "checkpoint_every_steps": 2},
    )


@pytest.fixture(scope="session")
def uninterrupted(lively_project, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    make_runner(lively_project.config, f"run.output_dir={folder}").train()
    return folder

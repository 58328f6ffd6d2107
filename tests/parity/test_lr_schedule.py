"""The family's learning rates and AdamW groups, from `lr_schedule/` of the reference vectors."""

import json

import pytest
import torch
from torch import nn

from training.schedule import build_optimizer, decay_groups, learning_rate

NO_WARMUP = {"warmup_steps": 0, "warmup_start_lr": -1.0}


def test_rates_equal_the_familys(parity_dir):
    runs = json.loads((parity_dir / "lr_schedule" / "schedules.json").read_text())
    for run in runs.values():
        got = [learning_rate(step, restart_warmup=True, **NO_WARMUP | run["config"]) for step in range(len(run["lr"]))]
        assert got == pytest.approx(run["lr"], rel=1e-12, abs=0)


def test_only_a_warmup_longer_than_an_epoch_differs_by_default(parity_dir):
    runs = json.loads((parity_dir / "lr_schedule" / "schedules.json").read_text())
    for run in runs.values():
        settings = NO_WARMUP | run["config"]
        got = [learning_rate(step, restart_warmup=False, **settings) for step in range(len(run["lr"]))]
        if settings["warmup_steps"] <= settings["iters_per_epoch"]:
            assert got == pytest.approx(run["lr"], rel=1e-12, abs=0)
        else:
            rising = got[: settings["warmup_steps"]]
            assert rising == sorted(rising)
            assert rising[-1] > max(run["lr"][: settings["warmup_steps"]])


def test_parameter_groups_equal_the_familys(parity_dir):
    expected = json.loads((parity_dir / "lr_schedule" / "param_groups.json").read_text())
    parameters = {name: nn.Parameter(torch.zeros(shape)) for name, shape in expected["shapes"].items()}
    for name in expected["frozen"]:
        parameters.setdefault(name, nn.Parameter(torch.zeros(2, 2))).requires_grad_(False)
    groups = decay_groups(parameters.items())
    assert [[name for name, _ in group] for group in groups] == [group["params"] for group in expected["groups"]]

    first, second = expected["groups"]
    optimizer = build_optimizer(
        parameters.items(), init_lr=first["lr"], weight_decay=first["weight_decay"], beta2=first["betas"][1]
    )
    for group, wanted in zip(optimizer.param_groups, (first, second), strict=True):
        assert len(group["params"]) == len(wanted["params"])
        assert group["weight_decay"] == wanted["weight_decay"]
        assert list(group["betas"]) == wanted["betas"]
        assert (group["lr"], group["eps"]) == (wanted["lr"], wanted["eps"])

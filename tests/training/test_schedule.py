"""Learning rates and the optimiser's groups; the public code's own numbers are in tests/parity/test_lr_schedule.py."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from support.command_line import UserError
from training.schedule import build_optimizer, decay_groups, learning_rate

RATES = {"init_lr": 1e-3, "min_lr": 1e-5, "max_epoch": 2, "iters_per_epoch": 10}
PLAIN = {**RATES, "warmup_steps": 0, "warmup_start_lr": -1.0, "restart_warmup": False}


def test_rates_rise_to_the_first_and_fall_to_the_least() -> None:
    warm = [learning_rate(step, **PLAIN | {"warmup_steps": 5, "warmup_start_lr": 1e-4}) for step in range(20)]
    assert warm[0] == 1e-4
    assert all(one < other for one, other in pairwise(warm[:5]))
    assert all(one > other for one, other in pairwise(warm[5:]))
    assert warm[5] < RATES["init_lr"] and warm[-1] < 2 * RATES["min_lr"]
    assert learning_rate(20, **PLAIN) == pytest.approx(RATES["min_lr"])


def test_without_warm_up_the_first_rate_is_the_whole_one() -> None:
    assert learning_rate(0, **PLAIN) == RATES["init_lr"]
    assert learning_rate(0, **PLAIN | {"warmup_steps": 5}) == RATES["init_lr"]  # no start given: none


def test_the_public_codes_warm_up_starts_again_each_epoch() -> None:
    options = {**PLAIN, "warmup_steps": 15, "warmup_start_lr": 0.0}
    restarted = [learning_rate(step, **options | {"restart_warmup": True}) for step in range(15)]
    assert restarted[0] == restarted[10] == 0.0
    assert learning_rate(10, **options) > 0.0


def test_groups_follow_axes_and_names() -> None:
    model = nn.ModuleDict({"layer": nn.Linear(2, 2), "ln_audio": nn.Linear(2, 2, bias=False)})
    model["frozen"] = nn.Linear(2, 2).requires_grad_(False)
    decay, plain = decay_groups(model.named_parameters())
    assert [name for name, _ in decay] == ["layer.weight"]
    assert [name for name, _ in plain] == ["layer.bias", "ln_audio.weight"]
    optimizer = build_optimizer(model.named_parameters(), init_lr=1e-3, weight_decay=0.05, beta2=0.99)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.99)}


def test_nothing_to_train_is_an_error() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(UserError, match=r"nothing to train.*model\.lora"):
        build_optimizer(frozen.named_parameters(), init_lr=1e-3, weight_decay=0.05, beta2=0.99)

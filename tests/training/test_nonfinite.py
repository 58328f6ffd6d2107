"""Non-finite steps: skipped, counted, and traced to a module."""

import math

import pytest
import torch

from tests.runs import log_of, make_runner
from training.nonfinite import NonFiniteError, first_nonfinite


def test_nonfinite_steps_are_skipped_counted_and_then_named(tiny_project):
    options = ("run.max_nonfinite_steps=3", "run.iters_per_epoch=20", "run.optims.max_epoch=1")
    runner = make_runner(tiny_project.config, *options)
    before = [parameter.detach().clone() for parameter in runner.model.adapter_parameters()]
    broken = runner.model.connector.qformer
    broken.register_forward_hook(lambda module, inputs, output: output * math.nan)
    with pytest.raises(NonFiniteError, match=r"3 steps in a row.*the output of connector\.qformer") as caught:
        runner.train()
    assert "run.max_nonfinite_steps" in str(caught.value)
    after = list(runner.model.adapter_parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_single_nonfinite_step_is_passed_over(tiny_project):
    runner = make_runner(tiny_project.config)
    calls = []

    def once(module, inputs, output):
        calls.append(None)
        return output * math.nan if len(calls) == 2 else output

    runner.model.connector.qformer.register_forward_hook(once)
    runner.train()
    lines = [line for line in log_of(tiny_project.output) if "loss" in line]
    assert [line["skipped"] for line in lines] == [0, 1, 1, 1, 1, 1]
    assert lines[1]["loss"] is None
    assert all(math.isfinite(line["loss"]) for line in lines if line["step"] != 2)


def test_first_nonfinite_finds_weights_outputs_and_gradients():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    inputs = torch.ones(3, 2)
    assert first_nonfinite(model, lambda: model(inputs).sum()) is None
    assert "output of 0" in first_nonfinite(model, lambda: model(inputs * math.inf).sum())
    assert "loss itself" in first_nonfinite(model, lambda: model(inputs).sum() * math.nan)
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.zero_()
    assert "gradient" in first_nonfinite(model, lambda: model(inputs).sqrt().sum())
    with torch.no_grad():
        model[1].bias.fill_(math.nan)
    assert "weights of 1.bias" in first_nonfinite(model, lambda: model(inputs).sum())

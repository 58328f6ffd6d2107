"""Evaluation during training."""

import json
import math

import pytest
import torch

from tests.runs import log_of, make_runner


@pytest.mark.parametrize("name", ["asr.werr", "audiocaption.spice", "music_description.cider_d"])
def test_a_metric_that_validation_lacks_is_refused_before_training(shared_tiny_project, name):
    with pytest.raises(ValueError, match="best_metric"):
        make_runner(shared_tiny_project.config, "run.valid_scoring=true", f"run.best_metric={name}")


def test_bad_validation_clips_are_named_once_and_not_counted(tiny_project, capsys):
    entries = json.loads(tiny_project.valid.read_text())["annotation"]
    (tiny_project.valid.parent / entries[1]["path"]).write_bytes(b"no audio")
    options = ("run.iters_per_epoch=1", "run.optims.max_epoch=2", "datasets.max_bad_fraction=0")
    folder = make_runner(tiny_project.config, *options).train().folder
    assert [line["valid/bad_clips"] for line in log_of(folder) if "valid/loss" in line] == [1, 1]
    assert all(math.isfinite(line["valid/loss"]) for line in log_of(folder) if "valid/loss" in line)
    (line,) = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert (line["index"], line["split"]) == (1, "validation")
    assert line["path"].endswith(entries[1]["path"])
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count("1 of 5 clips cannot be read") == 1
    make_runner(tiny_project.config, *options, "run.optims.max_epoch=3", resume=folder / "last").train()
    assert len((folder / "quarantine.jsonl").read_text().splitlines()) == 1


def test_text_is_scored_without_autocast(tiny_project, monkeypatch):
    """As evaluate.py does, whatever precision trains."""
    runner = make_runner(tiny_project.config, "run.valid_scoring=true", "run.valid_max_samples=1")
    monkeypatch.setattr(runner.accelerator, "autocast", lambda: torch.autocast("cpu", torch.bfloat16))
    decode, used = type(runner.model.text).decode, []

    def decoded(self, ids):
        used.append(torch.is_autocast_enabled("cpu"))
        return decode(self, ids)

    monkeypatch.setattr(type(runner.model.text), "decode", decoded)
    runner.validator.scores()
    assert used == [False]

"""Which validation is the best."""

import json
import math

from tests import tiny
from tests.runs import make_runner
from training.best_checkpoint import criterion, is_better


def test_scores_choose_the_best_checkpoint(tiny_project):
    runner = make_runner(tiny_project.config, "run.valid_scoring=true", "run.valid_max_samples=4")
    result = runner.train()
    assert {"loss", "asr.wer", "audiocaption.cider_d"} <= set(result.scores)
    assert result.best is not None
    assert runner.progress.best["criterion"] == "mean log of asr.wer, audiocaption.cider_d"


def test_a_best_metric_without_a_figure_is_said_and_the_checkpoint_saved(tiny_project, capsys):
    entries = json.loads(tiny_project.valid.read_text())["annotation"]
    tiny.write_annotations(tiny_project.valid, [{**entry, "text": " ", "texts": [" "]} for entry in entries])
    options = ("run.iters_per_epoch=1", "run.optims.max_epoch=1", "run.valid_scoring=true", "run.best_metric=asr.wer")
    result = make_runner(tiny_project.config, *options).train()
    assert (result.step, result.best) == (1, None)
    metrics = json.loads((result.last / "metrics.json").read_text())
    assert (metrics["criterion"], metrics["value"], metrics["best_so_far"]) == ("asr.wer", None, False)
    printed = capsys.readouterr()
    assert "run.best_metric = asr.wer (3 of 3 clips have no reference)" in printed.out + printed.err


def test_criterion():
    loss_only = {"loss": 2.0}
    assert criterion(loss_only) == ("loss", -2.0)
    one_task = {"loss": 2.0, "asr.wer": 0.25, "asr.substitutions": 3.0}
    assert criterion(one_task) == ("asr.wer", -0.25)
    assert criterion(one_task, "loss") == ("loss", -2.0)
    assert criterion({"loss": 2.0, "asr.wer": None}, "asr.wer") == ("asr.wer", None)

    def both(wer, cider):
        return criterion({"loss": 1.0, "asr.wer": wer, "audiocaption.cider_d": cider})[1]

    assert both(0.1, 1.0) > both(0.2, 1.0)
    assert both(0.1, 1.0) > both(0.1, 0.8)
    assert both(0.05, 1.0) > both(0.1, 1.5)  # halving the errors counts more than half as much again
    assert math.isfinite(both(0.0, 0.0))


def test_is_better():
    best, scores = {"criterion": "asr.wer", "value": -0.2, "scores": {"loss": 1.0}}, {"loss": 2.0}
    assert is_better("asr.wer", -0.1, scores, None)
    assert is_better("asr.wer", -0.1, scores, best)
    assert not is_better("asr.wer", -0.2, scores, best)
    assert is_better("asr.wer", -0.2, {"loss": 0.5}, best)
    assert not is_better("asr.wer", math.nan, scores, None)
    assert not is_better("asr.wer", None, scores, None)
    assert is_better("loss", -3.0, scores, best)

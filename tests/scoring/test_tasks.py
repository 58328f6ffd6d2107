"""The table of tasks: every prompted task has a metric, and scores say why one is missing."""

import json
from pathlib import Path

import pytest

import metrics


def test_every_prompted_task_has_a_metric() -> None:
    prompts = json.loads((Path(metrics.__file__).parent / "prompts" / "test.json").read_text(encoding="utf-8"))
    for task in prompts:
        name, direction = metrics.primary_metric(task)
        assert metrics.directions([name]) == {name: direction}


@pytest.mark.parametrize("task", sorted(metrics.TASKS))
def test_scores_hold_the_primary_metric_and_survive_json(task: str) -> None:
    scores = metrics.score_with_reasons(task, ["a dog", "a cat sat here"], ["a dog", ""], java=False)
    name, direction = metrics.primary_metric(task)
    assert isinstance(scores.values[name], float) and direction in ("min", "max")
    assert json.loads(json.dumps(scores.values, allow_nan=False)) == scores.values


def test_variants_take_the_row_their_name_begins_with() -> None:
    assert metrics.primary_metric("audiocaption_clotho") == ("cider_d", "max")
    assert metrics.primary_metric("asr_noisy") == ("wer", "min")
    assert "wer_nota" not in metrics.score("asr_fr", ["été"], ["été"])
    with pytest.raises(ValueError, match="no metric for task 'juggling'"):
        metrics.score("juggling", ["a"], ["a"])


def test_one_clip_says_why_cider_d_is_zero() -> None:
    scores = metrics.score_with_reasons("audiocaption", [["a dog"]], ["a dog"], java=False)
    assert scores.values["cider_d"] == 0.0 and "one clip" in scores.reasons["cider_d"]

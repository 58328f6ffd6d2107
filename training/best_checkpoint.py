"""Which checkpoint is the best so far: by loss, or by the tasks' own metrics."""

import math
from collections.abc import Mapping

import metrics

SCORE_OFFSET = 0.01  # keeps the logarithm of a score of 0 finite, and of one near 0 from deciding alone


def primary_scores(scores: Mapping[str, float | None]) -> dict[str, float]:
    """Of `{"loss": …, "asr.wer": …, "asr.substitutions": …}` each task's own metric, where it was computed."""
    tasks = {name.split(".", 1)[0] for name in scores if "." in name}
    chosen = {f"{task}.{metrics.primary_metric(task)[0]}" for task in tasks}
    return {name: scores[name] for name in sorted(chosen) if scores.get(name) is not None}


def criterion(scores: Mapping[str, float | None], best_metric: str | None = None) -> tuple[str, float | None]:
    """Name and value of what checkpoints are compared by; larger is better. None: there is no figure.

    `best_metric` is `loss` or `task.metric`. Without it: the task's own metric; with several tasks the mean of their
    logarithms (error rates negative), so that an equal *relative* gain counts the same for every task, whatever its
    scale, and no task's history matters; without task scores the loss.
    """
    if best_metric is not None:
        figure = scores.get(best_metric)
        return best_metric, None if figure is None else _sign(best_metric) * figure
    primary = primary_scores(scores)
    if not primary:
        return "loss", -scores["loss"]
    if len(primary) == 1:
        ((name, value),) = primary.items()
        return name, _sign(name) * value
    gains = [_sign(name) * math.log(max(value, 0.0) + SCORE_OFFSET) for name, value in primary.items()]
    return "mean log of " + ", ".join(primary), sum(gains) / len(gains)


def is_better(name: str, value: float | None, scores: Mapping[str, float | None], best: dict | None) -> bool:
    """Whether (criterion, value) beats the best so far; of equals the one with the lower loss.

    Figures under another criterion are not compared: the newer one counts.
    """
    if value is None or not math.isfinite(value):
        return False
    if best is None or best["criterion"] != name:
        return True
    return (value, -scores["loss"]) > (best["value"], -best["scores"]["loss"])


def shown_scores(scores: Mapping[str, float | None]) -> dict[str, float]:
    """The loss and each task's own metric: what fits a line or a picture."""
    return {"loss": scores["loss"], **primary_scores(scores)}


def _sign(name: str) -> int:
    metric = name.rsplit(".", 1)[-1]
    return -1 if metrics.directions([metric]).get(metric) == "min" else 1

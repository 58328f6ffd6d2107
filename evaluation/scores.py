"""From predictions to figures: for each task, and for each annotation file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import metrics
from data.annotations import Annotation
from evaluation.modes import FAMILIES
from evaluation.predictions import Prediction
from support.command_line import UserError


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """Scores of one task's clips, failed ones counted as empty hypotheses."""

    clips: int
    failed: int
    primary: str | None
    """The metric that counts for this task; None for a task without a row in `metrics.TASKS`."""
    values: dict[str, float | None]
    reasons: dict[str, str]


def flat_scores(tasks: Mapping[str, TaskScores]) -> dict[str, float | None]:
    """The figures of several tasks under `task.metric`."""
    return {f"{task}.{name}": value for task, row in tasks.items() for name, value in row.values.items()}


def score_predictions(
    predictions: Sequence[Prediction], *, scoring: bool = True, java: bool = True
) -> dict[str, TaskScores]:
    """Scores of each task present; None with the reason where clips have no reference."""
    tasks: dict[str, TaskScores] = {}
    for task in dict.fromkeys(prediction.task for prediction in predictions):
        rows = [prediction for prediction in predictions if prediction.task == task]
        values: dict[str, float | None] = {}
        reasons: dict[str, str] = {}
        primary = None
        without = sum(not prediction.references for prediction in rows)
        if not any(text.strip() for prediction in rows for text in prediction.references):
            without = len(rows)  # all empty: references were withheld; a few empty ones mean silence
        try:
            primary = metrics.primary_metric(task)[0]
        except UserError as error:
            reasons["score"] = str(error)
        if primary is not None and not scoring:
            values, reasons = {primary: None}, {primary: "scoring was skipped"}
        elif primary is not None and all(row.error is not None for row in rows):
            values, reasons = {primary: None}, {primary: f"none of the {len(rows)} clips could be read"}
        elif primary is not None and without:
            values, reasons = {primary: None}, {primary: f"{without} of {len(rows)} clips have no reference"}
        elif primary is not None:
            scores = metrics.score_with_reasons(
                task, [list(row.references) for row in rows], [row.hypothesis for row in rows], java=java
            )
            values, reasons = scores.values, scores.reasons
        tasks[task] = TaskScores(
            clips=len(rows),
            failed=sum(row.error is not None for row in rows),
            primary=primary,
            values=values,
            reasons=reasons,
        )
    return tasks


def named_scores(mode: str, tasks: Mapping[str, TaskScores]) -> dict[str, float | None]:
    """Figures by the names that `evaluate.py` explains."""
    own = tasks.get(FAMILIES.get(mode.partition("_")[2], ""))
    return {**(own.values if own else {}), **flat_scores(tasks)}


def scores_by_file(
    mode: str, predictions: Sequence[Prediction], annotations: Sequence[Annotation], *, scoring: bool = True
) -> dict[str, dict[str, object]]:
    """Scores of each annotation file's clips alone, and counts, without the metrics that need Java."""
    files: dict[str, list[Prediction]] = {}
    for prediction, annotation in zip(predictions, annotations, strict=True):
        files.setdefault(annotation.source.rpartition("#")[0], []).append(prediction)
    rows: dict[str, dict[str, object]] = {}
    for file, own in files.items():
        tasks = score_predictions(own, scoring=scoring, java=False)
        rows[file] = {
            "clips": len(own),
            "failed": sum(row.failed for row in tasks.values()),
            "scores": named_scores(mode, tasks),
            "reasons": {f"{task}.{name}": why for task, row in tasks.items() for name, why in row.reasons.items()},
        }
    return rows

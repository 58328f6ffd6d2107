"""The table of tasks, and the scores of each: references and hypotheses in, scores out.

Corpus-level scores with their counts. Decided edge cases: an empty hypothesis counts every reference word as
deleted; an empty reference adds insertions to the numerator only; when all references are empty the error rate is the
number of inserted words, as in jiwer (0.0 if there are none); unequal counts, or nothing to score, is a
``ValueError``. Text is Unicode throughout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from scoring.answers import accuracy, token_f1
from scoring.captions import (
    MetricUnavailable,
    bleu,
    check_pairs,
    cider_d,
    cider_d_x100,
    meteor_or_raise,
    rouge_l,
    spice_or_raise,
)
from scoring.translation import translation_bleu
from scoring.typography import plain_text
from scoring.words import cer, per, wer, wer_nota
from support.command_line import UserError


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of one task; ``reasons`` says why a value is ``None``, 0 by definition, or there twice."""

    values: dict[str, float | None]
    reasons: dict[str, str]


def is_transcript(task: str) -> bool:
    """Whether a task's text is what is said in the clip, in its language."""
    return task == "asr" or task.startswith("asr_")


def _score_words(references: list[list[str]], hypotheses: list[str]) -> dict[str, float | None]:
    first = [several[0] for several in references]
    errors = wer(first, hypotheses)
    return {
        "wer": errors.wer,
        "wer_nota": wer_nota(first, hypotheses).wer,
        "substitutions": errors.substitutions,
        "deletions": errors.deletions,
        "insertions": errors.insertions,
        "reference_words": errors.reference_words,
    }


def _score_foreign_words(references: list[list[str]], hypotheses: list[str]) -> dict[str, float | None]:
    first = [several[0] for several in references]
    errors = wer(first, hypotheses, language="other")
    return {"wer": errors.wer, "cer": cer(first, hypotheses).wer, "reference_words": errors.reference_words}


def _score_characters(references: list[list[str]], hypotheses: list[str]) -> dict[str, float | None]:
    errors = cer([several[0] for several in references], hypotheses)
    return {"cer": errors.wer, "reference_characters": errors.reference_words}


def _score_phones(references: list[list[str]], hypotheses: list[str]) -> dict[str, float | None]:
    errors = per([several[0] for several in references], hypotheses)
    return {"per": errors.wer, "reference_phones": errors.reference_words}


def _score_answers(references: list[list[str]], hypotheses: list[str]) -> dict[str, float | None]:
    first = [several[0] for several in references]
    return {"accuracy": accuracy(first, hypotheses), "token_f1": token_f1(first, hypotheses)}


def _score_classes(references: list[list[str]], hypotheses: list[str]) -> dict[str, float | None]:
    return {"accuracy": accuracy([several[0] for several in references], hypotheses)}


def _score_translation(tokenize: str) -> Callable[[list[list[str]], list[str]], dict[str, float | None]]:
    def compute(references: list[list[str]], hypotheses: list[str]) -> dict[str, float | None]:
        return {"bleu": translation_bleu(references, hypotheses, tokenize)}

    return compute


def _score_captions(references: list[list[str]], hypotheses: list[str]) -> dict[str, float | None]:
    return {
        "cider_d": cider_d(references, hypotheses),
        "cider_d_x100": cider_d_x100(references, hypotheses),
        **bleu(references, hypotheses)._asdict(),
        "rouge_l": rouge_l(references, hypotheses),
    }


@dataclass(frozen=True, kw_only=True)
class TaskMetrics:
    """How a task is scored: the metric that selects the best checkpoint, its direction, the computation."""

    primary: str
    direction: str
    compute: Callable[[list[list[str]], list[str]], dict[str, float | None]]
    java: bool = False


_WORDS = TaskMetrics(primary="wer", direction="min", compute=_score_words)
_CAPTIONS = TaskMetrics(primary="cider_d", direction="max", compute=_score_captions, java=True)
_ANSWERS = TaskMetrics(primary="accuracy", direction="max", compute=_score_answers)
_CLASSES = TaskMetrics(primary="accuracy", direction="max", compute=_score_classes)

TASKS: dict[str, TaskMetrics] = {
    "asr": _WORDS,
    "asr_zh": TaskMetrics(primary="cer", direction="min", compute=_score_characters),
    "asr_ja": TaskMetrics(primary="cer", direction="min", compute=_score_characters),
    "asr_de": TaskMetrics(primary="wer", direction="min", compute=_score_foreign_words),
    "asr_nl": TaskMetrics(primary="wer", direction="min", compute=_score_foreign_words),
    "lyrics_recognition": _WORDS,
    "speech_separation": _WORDS,
    "speaker_diarization_asr": _WORDS,
    "phone_recognition": TaskMetrics(primary="per", direction="min", compute=_score_phones),
    "translation_ec": TaskMetrics(primary="bleu", direction="max", compute=_score_translation("zh")),
    "translation_en2ja": TaskMetrics(primary="bleu", direction="max", compute=_score_translation("char")),
    "translation_en2de": TaskMetrics(primary="bleu", direction="max", compute=_score_translation("13a")),
    "audiocaption": _CAPTIONS,
    "audiocaption_v2": _CAPTIONS,
    "music_description": _CAPTIONS,
    "audio_speech_description": _CAPTIONS,
    "fluent_speech_audio": _CAPTIONS,
    "audio_story_telling": _CAPTIONS,
    "QA": _ANSWERS,
    "gender_QA": _ANSWERS,
    "speech_query": _ANSWERS,
    "speech_audio_query": _ANSWERS,
    "speech_audio_coreasoning": _ANSWERS,
    "slot_filling": _ANSWERS,
    "keywords": _ANSWERS,
    "gender_recognition": _CLASSES,
    "emotion_recognition": _CLASSES,
    "speaker_verification": _CLASSES,
}

_LOWER_IS_BETTER = frozenset({"wer", "wer_nota", "cer", "per", "substitutions", "deletions", "insertions", "loss"})
PLAIN_TEXT = "_plain_text"
"""Ends the name of a metric on plain text (`scoring/typography.py`)."""
TYPOGRAPHIC = "typographic_texts"
"""References and hypotheses that are not plain; only where that changes the primary metric."""
_COUNTS = frozenset({TYPOGRAPHIC, "reference_words", "reference_characters", "reference_phones"})


def task_metrics(task: str) -> TaskMetrics:
    """The row of ``TASKS`` for a task; a variant (``audiocaption_clotho``) uses the row that its name begins with.

    Raises:
        UserError: no row fits; add one to ``TASKS``.
    """
    if task in TASKS:
        return TASKS[task]
    stems = [stem for stem in ("asr", "audiocaption", "QA") if task.startswith(stem + "_")]
    if not stems:
        raise UserError(f"no metric for task {task!r}; known tasks: {', '.join(TASKS)}; add a row to metrics.TASKS")
    # English spelling rules do not apply to other languages.
    return TASKS["asr_de"] if re.fullmatch(r"asr_[a-z]{2}", task) and task != "asr_en" else TASKS[stems[0]]


def primary_metric(task: str) -> tuple[str, str]:
    """The metric that selects the best checkpoint, and its direction: ``("wer", "min")``."""
    row = task_metrics(task)
    return row.primary, row.direction


def directions(names: Iterable[str]) -> dict[str, str]:
    """Which way each metric is better: ``min`` or ``max``; counts are left out."""
    return {
        name: "min" if name.removesuffix(PLAIN_TEXT) in _LOWER_IS_BETTER else "max"
        for name in names
        if name not in _COUNTS
    }


def score(
    task: str, references: Sequence[str] | Sequence[Sequence[str]], hypotheses: Sequence[str]
) -> dict[str, float | None]:
    """All scores of a task; ``None`` where one cannot be computed here (:func:`score_with_reasons` says why)."""
    return score_with_reasons(task, references, hypotheses).values


def score_with_reasons(
    task: str,
    references: Sequence[str] | Sequence[Sequence[str]],
    hypotheses: Sequence[str],
    java: bool = True,
) -> Scores:
    """All scores of a task and, for each ``None``, the reason.

    Args:
        references: one string per clip, or a list of several.
        java: whether METEOR and SPICE may start their Java programs (they take seconds; off during training).
    """
    row = task_metrics(task)
    several = [[item] if isinstance(item, str) else list(item) for item in references]
    check_pairs(several, hypotheses)
    reasons: dict[str, str] = {}
    try:
        values = row.compute(several, list(hypotheses))
    except MetricUnavailable as error:
        values = {row.primary: None}
        reasons[row.primary] = str(error)
    _score_plain_text(row, several, list(hypotheses), values, reasons)
    if row.java:
        java_values, java_reasons = _score_java(several, hypotheses, values.get("cider_d"), java)
        values.update(java_values)
        reasons.update(java_reasons)
    if values.get("cider_d") is not None and len(hypotheses) == 1:
        reasons["cider_d"] = reasons["cider_d_x100"] = "0 by definition: one clip has no document frequencies"
    return Scores(values=values, reasons=reasons)


def _score_plain_text(
    row: TaskMetrics,
    references: list[list[str]],
    hypotheses: list[str],
    values: dict[str, float | None],
    reasons: dict[str, str],
) -> None:
    """Add the primary metric of plain text, and the number of texts that are not plain, where the metric differs."""
    plain_references = [[plain_text(text) for text in several] for several in references]
    plain_hypotheses = [plain_text(text) for text in hypotheses]
    before = [text for several in references for text in several] + hypotheses
    after = [text for several in plain_references for text in several] + plain_hypotheses
    changed = sum(" ".join(old.split()) != new for old, new in zip(before, after, strict=True))
    if not changed or values.get(row.primary) is None:
        return
    figure = row.compute(plain_references, plain_hypotheses)[row.primary]
    if figure == values[row.primary]:
        return
    values[f"{row.primary}{PLAIN_TEXT}"] = figure
    values[TYPOGRAPHIC] = changed
    reasons[f"{row.primary}{PLAIN_TEXT}"] = (
        f"{row.primary} with quotes, hyphens, spaces and letter forms made plain: {changed} of {len(before)} texts "
        f"have others, which {row.primary} itself keeps apart"
    )


def _score_java(
    references: list[list[str]], hypotheses: Sequence[str], cider: float | None, allowed: bool
) -> tuple[dict[str, float | None], dict[str, str]]:
    values: dict[str, float | None] = {"meteor": None, "spice": None, "spider": None}
    if not allowed:
        return values, dict.fromkeys(values, "not computed: Java metrics are switched off for this run")
    reasons: dict[str, str] = {}
    for name, compute in (("meteor", meteor_or_raise), ("spice", spice_or_raise)):
        try:
            values[name] = compute(references, hypotheses)
        except MetricUnavailable as error:
            reasons[name] = str(error)
    if values["spice"] is None or cider is None:
        missing = "spice" if values["spice"] is None else "cider_d"
        reasons["spider"] = f"SPIDEr is (CIDEr-D + SPICE) / 2 and {missing} is null"
    else:
        values["spider"] = (cider + values["spice"]) / 2
    return values, reasons

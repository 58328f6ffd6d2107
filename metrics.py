"""The public face of `scoring`: references and hypotheses in, scores out."""

from scoring.answers import accuracy, token_f1
from scoring.captions import (
    Bleu,
    MetricUnavailable,
    bleu,
    cider_d,
    cider_d_per_clip,
    cider_d_x100,
    meteor,
    ptb_tokenize,
    rouge_l,
    spice,
    spider,
    unavailable,
)
from scoring.tasks import (
    TASKS,
    Scores,
    TaskMetrics,
    directions,
    primary_metric,
    score,
    score_with_reasons,
    task_metrics,
)
from scoring.translation import translation_bleu
from scoring.words import WordErrors, cer, clean_hypothesis, english_normalizer, per, wer, wer_nota

__all__ = [
    "TASKS",
    "Bleu",
    "MetricUnavailable",
    "Scores",
    "TaskMetrics",
    "WordErrors",
    "accuracy",
    "bleu",
    "cer",
    "cider_d",
    "cider_d_per_clip",
    "cider_d_x100",
    "clean_hypothesis",
    "directions",
    "english_normalizer",
    "meteor",
    "per",
    "primary_metric",
    "ptb_tokenize",
    "rouge_l",
    "score",
    "score_with_reasons",
    "spice",
    "spider",
    "task_metrics",
    "token_f1",
    "translation_bleu",
    "unavailable",
    "wer",
    "wer_nota",
]

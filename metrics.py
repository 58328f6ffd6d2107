"""The public names of `scoring`: references and hypotheses in, scores out."""
# ruff: noqa: F401

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
from scoring.intervals import Interval, mean_interval, ratio_interval
from scoring.tasks import (
    TASKS,
    Scores,
    TaskMetrics,
    directions,
    is_transcript,
    primary_metric,
    score,
    score_with_reasons,
    task_metrics,
)
from scoring.translation import translation_bleu
from scoring.typography import plain_text
from scoring.words import (
    ClipErrors,
    WordErrors,
    cer,
    clean_hypothesis,
    english_normalizer,
    per,
    wer,
    wer_nota,
    wer_per_clip,
)

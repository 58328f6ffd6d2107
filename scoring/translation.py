"""Scores of translations."""

from __future__ import annotations

from collections.abc import Sequence

from scoring.captions import MetricUnavailable, check_pairs


def translation_bleu(references: Sequence[Sequence[str]], hypotheses: Sequence[str], tokenize: str = "13a") -> float:
    """sacreBLEU corpus score, 0 to 100. ``tokenize`` is 13a for spaced scripts, zh, or char (Japanese, no MeCab)."""
    check_pairs(references, hypotheses)
    try:
        import sacrebleu
    except ImportError as error:
        raise MetricUnavailable(f"translation BLEU needs sacrebleu ({error}); `pip install sacrebleu`") from error
    most = max(len(several) for several in references)
    streams = [[several[i] if i < len(several) else None for several in references] for i in range(most)]
    return float(sacrebleu.corpus_bleu(list(hypotheses), streams, tokenize=tokenize).score)

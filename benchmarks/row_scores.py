"""Figures of a row's texts with their intervals, and against another row's texts for the same clips."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import metrics
from benchmarks.clip_sets import ClipSet
from metrics import ClipErrors, Interval

METRICS = {"asr": "wer", "aac": "cider_d"}
"""Family -> what its sets are scored by."""
Texts = Mapping[str, str]
"""Hypotheses by the `source` of their clips."""


class Scorer:
    """Scores clip by clip; errors of a pair of texts are counted once, since tables compare rows many times."""

    def __init__(self) -> None:
        self._counted: dict[tuple[str, str], ClipErrors] = {}

    def figure(self, clips: ClipSet, texts: Texts) -> Interval:
        """WER or CIDEr-D of the clips."""
        return metrics.ratio_interval(*self._sums(clips, texts))

    def ratio(self, clips: ClipSet, texts: Texts, others: Texts) -> Interval:
        """The figure over that of another row's texts, on the clips that both have, drawn together."""
        shared = common(clips, texts, others)
        return metrics.ratio_interval(self._sums(shared, texts)[0], self._sums(shared, others)[0])

    def flips(self, clips: ClipSet, texts: Texts, others: Texts) -> dict[str, Any]:
        """Shares of clips whose text is another than the other row's, and of its words that differ (normalised)."""
        shared = common(clips, texts, others)
        pairs = [(others[clip.source], texts[clip.source]) for clip in shared.clips]
        counts = self._errors(pairs)
        words = metrics.ratio_interval([each.errors for each in counts], [each.reference_words for each in counts])
        return {
            "texts": asdict(metrics.mean_interval([float(before != after) for before, after in pairs])),
            "words": asdict(words),
        }

    def per_clip(self, clips: ClipSet, texts: Texts) -> list[float]:
        """Errors of each clip, or its caption score."""
        return self._sums(clips, texts)[0]

    def _sums(self, clips: ClipSet, texts: Texts) -> tuple[list[float], list[float]]:
        """What the figure is a quotient of, clip by clip."""
        if METRICS[clips.family] == "wer":
            counts = self._errors([(clip.texts[0], texts[clip.source]) for clip in clips.clips])
            return [each.errors for each in counts], [each.reference_words for each in counts]
        references = [list(clip.texts) for clip in clips.clips]
        scores = metrics.cider_d_per_clip(references, [texts[clip.source] for clip in clips.clips])
        return scores, [1.0] * len(scores)

    def _errors(self, pairs: list[tuple[str, str]]) -> list[ClipErrors]:
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._counted]
        if new:
            references, hypotheses = zip(*new, strict=True)
            self._counted |= zip(new, metrics.wer_per_clip(references, hypotheses), strict=True)
        return [self._counted[pair] for pair in pairs]


def common(clips: ClipSet, texts: Texts, others: Texts) -> ClipSet:
    """The clips that have a text in both: a row may have been given a sample."""
    kept = tuple(clip for clip in clips.clips if clip.source in texts and clip.source in others)
    return dataclasses.replace(clips, clips=kept)

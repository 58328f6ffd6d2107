"""Bootstrap intervals of figures over clips, and of the ratio of two systems on the same clips.

Clips are drawn with replacement, as many as there are, and the figure is computed anew for every draw; the interval
lies between the percentiles of these figures (M. Bisani and H. Ney, "Bootstrap estimates for confidence intervals in
ASR performance evaluation", ICASSP 2004). A WER is the sum of errors over the sum of words, not a mean of clips' rates.

Every figure here is a sum over clips divided by another sum over the same clips, and one draw counts for both:

    WER                       errors / reference words
    mean of a caption score   scores / 1
    ratio of two WERs         errors of one system / errors of the other (their words are the same)

So a ratio is paired: a clip that is hard for both systems is in both sums or in neither, which makes the interval
narrower than one from two separate draws.

What the intervals leave out: caption scores are resampled with each clip's score as it was computed on the whole
corpus, document frequencies included (those of the drawn clips alone would make CIDEr-D another measure in every draw).
And clips count as independent; where a few speakers have many clips each, the true interval is wider.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
BLOCK = 1 << 22  # counts of clips in memory at once


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure and the bounds between which it lies with the probability `level`."""

    value: float
    low: float
    high: float
    level: float = LEVEL


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """The sum of `numerators` over that of `denominators`, one of each a clip.

    A draw whose denominators are all 0 counts as infinite, or as no draw where its numerators are 0 too; the value and
    its bounds are NaN where no draw is left.

    Raises:
        ValueError: no clips, unequal counts, a number that is not finite, or a `level` that is not within 0 and 1.
    """
    columns = np.stack([_numbers("numerators", numerators), _numbers("denominators", denominators)], axis=1)
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level = {level}, resamples = {resamples}; expected a level within 0 and 1, and 1 or more")
    drawn = _quotients(_drawn_sums(columns, resamples, seed))
    drawn = drawn[~np.isnan(drawn)]
    (value,) = _quotients(columns.sum(axis=0, keepdims=True))
    if not len(drawn):
        return Interval(value=float(value), low=float("nan"), high=float("nan"), level=level)
    # A figure that was drawn, not one between two of them: infinity has no neighbours.
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Interval(value=float(value), low=float(low), high=float(high), level=level)


def mean_interval(scores: Sequence[float], **options: float) -> Interval:
    """The mean of one score a clip; `options` as in `ratio_interval`."""
    return ratio_interval(scores, np.ones(len(scores)), **options)


def _numbers(name: str, values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name}: {array.size} numbers in {array.ndim} dimensions; expected one number a clip")
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name}[{int(np.argmin(np.isfinite(array)))}] is not finite; expected a number for every clip"
        )
    return array


def _drawn_sums(columns: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums of the columns `[clips, C]` over each draw of as many clips, with replacement: `[resamples, C]`."""
    rng = np.random.default_rng(seed)
    clips = len(columns)
    at_once = max(1, BLOCK // clips)
    sums = []
    for start in range(0, resamples, at_once):
        # How often each clip is drawn is all that a sum needs.
        counts = rng.multinomial(clips, np.full(clips, 1 / clips), size=min(at_once, resamples - start))
        sums.append(counts @ columns)
    return np.concatenate(sums)


def _quotients(sums: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[:, 0] / sums[:, 1]

"""Bootstrap intervals: exact cases, coverage on drawn data, and what pairing gains."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import metrics
from scoring import intervals
from scoring.intervals import mean_interval, ratio_interval


def bounds(interval: metrics.Interval) -> tuple[float, float]:
    return interval.low, interval.high


def test_the_value_is_the_corpus_figure_and_not_a_mean_of_rates() -> None:
    assert ratio_interval([1, 0], [2, 8]).value == 0.1
    assert mean_interval([1.0, 3.0]).value == 2.0


def test_clips_that_are_all_alike_have_no_width() -> None:
    assert bounds(ratio_interval([2] * 20, [10] * 20)) == (0.2, 0.2)
    assert bounds(mean_interval([0.7] * 3)) == pytest.approx((0.7, 0.7))


def test_bounds_are_those_of_every_possible_draw() -> None:
    """Five clips have 3,125 draws, all of them equally likely: the exact distribution."""
    errors, words = np.array([0, 1, 2, 5, 3]), np.array([4, 10, 7, 9, 3])
    draws = [list(draw) for draw in itertools.product(range(5), repeat=5)]
    exact = [errors[draw].sum() / words[draw].sum() for draw in draws]
    found = ratio_interval(errors, words, resamples=200_000, seed=3)
    assert bounds(found) == pytest.approx(np.quantile(exact, [0.025, 0.975]), abs=0.006)
    narrower = ratio_interval(errors, words, resamples=200_000, level=0.5)
    assert bounds(narrower) == pytest.approx(np.quantile(exact, [0.25, 0.75]), abs=0.006)


def test_a_seed_gives_the_same_bounds_whatever_fits_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    errors, words = np.arange(30) % 4, np.full(30, 9)
    first = ratio_interval(errors, words, seed=5)
    assert ratio_interval(errors, words, seed=5) == first
    assert ratio_interval(errors, words, seed=6) != first
    monkeypatch.setattr(intervals, "BLOCK", 64)
    assert ratio_interval(errors, words, seed=5) == first


def test_the_interval_covers_the_true_rate_as_often_as_it_says() -> None:
    """Clips of 5 to 25 words, each with a rate of errors of its own around 0.1: 400 test sets of 150 clips."""
    rng = np.random.default_rng(1)
    covered = 0
    for number in range(400):
        words = rng.integers(5, 26, size=150)
        errors = rng.binomial(words, rng.beta(2, 18, size=150))
        found = ratio_interval(errors, words, resamples=1000, seed=number)
        covered += found.low <= 0.1 <= found.high
    assert 0.91 < covered / 400 < 0.98


def test_a_paired_ratio_is_narrower_than_an_unpaired_one() -> None:
    rng = np.random.default_rng(0)
    hard = rng.gamma(0.5, 4, size=300)
    ours, theirs = rng.poisson(1.3 * hard), rng.poisson(hard)
    paired = ratio_interval(ours, theirs)
    unpaired = ratio_interval(ours, rng.permutation(theirs))
    assert paired.low < 1.3 < paired.high
    assert paired.high - paired.low < 0.7 * (unpaired.high - unpaired.low)
    assert bounds(ratio_interval(ours, ours)) == (1.0, 1.0)


def test_nothing_to_divide_by() -> None:
    endless = ratio_interval([1, 1], [0, 0])
    assert (endless.value, endless.low, endless.high) == (math.inf, math.inf, math.inf)
    nothing = ratio_interval([0, 0], [0, 0])
    assert math.isnan(nothing.value) and math.isnan(nothing.low)
    rare = ratio_interval([1] * 10, [1, *[0] * 9])
    assert rare.value == 10 and rare.low <= 5 and rare.high == math.inf


@pytest.mark.parametrize(
    ("numerators", "denominators", "options", "problem"),
    [
        ([], [], {}, "0 numbers"),
        ([1, 2], [1], {}, "shape"),
        ([1, math.nan], [1, 1], {}, r"numerators\[1\] is not finite"),
        ([1], [1], {"level": 95}, "level = 95"),
    ],
)
def test_what_has_no_interval(numerators: list, denominators: list, options: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ratio_interval(numerators, denominators, **options)


def test_errors_of_each_clip_add_up_to_the_wer() -> None:
    references = ["the cat sat", "a dog", "colour 3", "", "six words are in this text"]
    hypotheses = ["the hat sat on", "", "color three", "noise", "six words in the text too"]
    clips = metrics.wer_per_clip(references, hypotheses)
    whole = metrics.wer(references, hypotheses)
    assert [clip.errors for clip in clips][:4] == [2, 2, 0, 1]
    assert [clip.reference_words for clip in clips] == [3, 2, 2, 0, 6]
    assert sum(clip.errors for clip in clips) == whole.errors
    assert sum(clip.reference_words for clip in clips) == whole.reference_words
    interval = ratio_interval([clip.errors for clip in clips], [clip.reference_words for clip in clips])
    assert interval.value == pytest.approx(whole.wer) and interval.low <= whole.wer <= interval.high


def test_a_caption_score_is_resampled_as_the_corpus_scored_it() -> None:
    references = [["a dog barks", "a dog is barking"], ["rain falls"], ["a clock ticks"], ["a man speaks"]]
    hypotheses = ["a dog barks", "rain falls", "a bell rings", "a man speaks"]
    found = mean_interval(metrics.cider_d_per_clip(references, hypotheses))
    assert found.value == pytest.approx(metrics.cider_d(references, hypotheses))
    assert 0 <= found.low < found.value < found.high <= 10

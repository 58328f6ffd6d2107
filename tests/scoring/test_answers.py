"""Accuracy and token overlap of answers."""

import pytest

import metrics


def test_accuracy_and_overlap() -> None:
    assert metrics.accuracy(["Female", "male", "angry"], ["female.", "Male!", "sad"]) == pytest.approx(2 / 3)
    assert metrics.accuracy(["yes", ""], ["", ""]) == 0.5
    assert metrics.token_f1(["the red car", ""], ["a red car", ""]) == pytest.approx((2 / 3 + 1) / 2)

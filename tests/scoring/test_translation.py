"""BLEU of translations, by the target's language."""

import pytest

import metrics


def test_translation() -> None:
    assert metrics.score("translation_en2de", ["Der Hund bellt sehr laut."], ["Der Hund bellt sehr laut."])[
        "bleu"
    ] == pytest.approx(100.0)
    assert metrics.score("translation_ec", ["今天天气很好。"], ["今天天气很好。"])["bleu"] == pytest.approx(100.0)
    assert metrics.score("translation_en2ja", ["今日は良い天気"], [""])["bleu"] == 0.0

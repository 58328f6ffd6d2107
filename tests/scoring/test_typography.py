"""Typographic signs: the published figure stays, a second one and a count say what of it is typography."""

from __future__ import annotations

import json
import unicodedata

import pytest

import evaluate
import metrics
from scoring.typography import plain_text
from tests import tiny


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("it’s ‘fine’", "it's 'fine'"),
        ("the dogs´ `own` ＇bowl＇", "the dogs' 'own' 'bowl'"),
        ("“yes” «no» „well‟", '"yes" "no" "well"'),
        ("one–two—three‑four−five", "one-two-three-four-five"),
        ("ｆｕｌｌ　ｗｉｄｔｈ １２", "full width 12"),
        ("no\xa0break\u202fspace\u2003here", "no break space here"),
        ("soft\xadhyphen zero\u200bwidth\ufeff", "softhyphen zerowidth"),
        ("\u200eleft\u202e to \u2066right\u2069", "left to right"),
        (unicodedata.normalize("NFD", "café ñandú"), "café ñandú"),
        ("ﬁsh … ½", "fish ... 1⁄2"),
        ('it\'s plain - "quite"', 'it\'s plain - "quite"'),
        ("한국어 中文 русский", "한국어 中文 русский"),
    ],
)
def test_signs_made_plain(written: str, expected: str) -> None:
    assert plain_text(written) == expected
    assert plain_text(expected) == expected


def test_curly_apostrophes_keep_the_published_figure_and_get_a_second_one() -> None:
    curly = ["it’s the dog’s", "I don’t know", "a plain text"]
    straight = [text.replace("’", "'") for text in curly]
    scores = metrics.score_with_reasons("asr", straight, curly)
    assert scores.values["wer"] == metrics.wer(straight, curly).wer > 0.3  # as the normaliser is published
    assert scores.values["wer_plain_text"] == 0.0 and scores.values["typographic_texts"] == 2
    assert "2 of 6 texts" in scores.reasons["wer_plain_text"]
    directions = metrics.directions(scores.values)
    assert directions["wer_plain_text"] == "min" and "typographic_texts" not in directions


@pytest.mark.parametrize(
    ("task", "reference", "hypothesis", "metric"),
    [
        ("asr", "cooperate now", "co\xadoperate now", "wer"),
        ("asr", "zero width", "ze\u200bro width", "wer"),
        ("asr_fr", "l'été", "l’e\u0301te\u0301 à", "wer"),
        ("QA", "it's a woman", "it’s a woman", "accuracy"),
        ("gender_recognition", "woman", "ｗｏｍａｎ", "accuracy"),
        ("audiocaption", "a full width dog", "a ｆｕｌｌ width dog", "cider_d"),
    ],
)
def test_other_forms_and_other_tasks(task: str, reference: str, hypothesis: str, metric: str) -> None:
    other = "something else was said"
    scores = metrics.score_with_reasons(task, [reference, other], [hypothesis, other], java=False).values
    second = metrics.score_with_reasons(
        task, [plain_text(reference), other], [plain_text(hypothesis), other], java=False
    )
    if scores[metric] == second.values[metric]:  # this metric's normaliser takes both for one
        assert f"{metric}_plain_text" not in scores and "typographic_texts" not in scores
    else:
        assert scores[f"{metric}_plain_text"] == second.values[metric] and scores["typographic_texts"] >= 1


@pytest.mark.parametrize("task", ["asr", "asr_zh", "audiocaption", "QA"])
def test_plain_texts_have_one_figure(task: str) -> None:
    scores = metrics.score_with_reasons(task, ["it's a dog", "two  cats"], ["it's a dog", "a cat"], java=False)
    assert not [name for name in (*scores.values, *scores.reasons) if "plain" in name or "typographic" in name]


def test_signs_on_both_sides_that_change_nothing_are_not_mentioned() -> None:
    assert "wer_plain_text" not in metrics.score("asr", ["it’s"], ["it’s"])


def test_the_files_and_the_terminal_have_both(project: tiny.TinyProject, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(project.test_asr.read_text())
    content["annotation"][0]["text"] = "yes ma’am"  # three words as it stands, two with a plain apostrophe
    project.test_asr.write_text(json.dumps(content))
    assert evaluate.main(["--cfg-path", str(project.config), "--mode", "submission_asr", "--no-java"]) == 0
    report = json.loads((project.output / "eval" / "submission_asr" / "scores.json").read_text())
    out = capsys.readouterr().out
    figures = report["tasks"]["asr"]["scores"]
    assert report["scores"]["wer_plain_text"] == report["scores"]["asr.wer_plain_text"] != figures["wer"]
    assert figures["typographic_texts"] == 1
    assert "wer_plain_text" in out and "1 of " in out and "typographic_texts 1" in out

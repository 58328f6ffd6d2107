"""Answers that are right or wrong: accuracy, and the overlap of words."""

from __future__ import annotations

import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from scoring.words import check_texts


def accuracy(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Share of hypotheses equal to their reference, ignoring case, punctuation, Unicode form and spaces."""
    check_texts(references, hypotheses)
    pairs = zip(references, hypotheses, strict=True)
    return sum(_answer_words(a) == _answer_words(b) for a, b in pairs) / len(references)


def token_f1(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Mean overlap of words between answer and reference (F1 as in SQuAD); two empty texts count as equal."""
    check_texts(references, hypotheses)

    def f1(reference: list[str], hypothesis: list[str]) -> float:
        if not reference or not hypothesis:
            return float(reference == hypothesis)
        return 2 * sum((Counter(reference) & Counter(hypothesis)).values()) / (len(reference) + len(hypothesis))

    pairs = zip(references, hypotheses, strict=True)
    return sum(f1(_answer_words(a), _answer_words(b)) for a, b in pairs) / len(references)


def _answer_words(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", text).casefold()
    text = "".join(" " if char in string.punctuation or unicodedata.category(char)[0] == "P" else char for char in text)
    return text.split()

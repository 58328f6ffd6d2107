"""Prompts, answers, references and hypotheses of a caller: several texts in an order, or refused in words."""

from __future__ import annotations

import numpy as np
import pytest

from support.texts import TextsError, require_list, require_texts


@pytest.mark.parametrize("values", [["a", ""], ("a",), np.array(["a", "b"]), []])
def test_texts(values: object) -> None:
    require_texts("prompts", values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("a b", "prompts is one string"),
        (b"a", "prompts is one string"),
        (None, "prompts is a NoneType; expected a list"),
        ((text for text in ["a"]), "prompts is a generator"),
        ({"a", "b"}, "prompts is a set; expected a list with one entry per clip, in order"),
        ({"asr": "a"}, "prompts is a dict"),
        (3, "prompts is a int"),
        (["a", None], r"prompts\[1\] is NoneType, expected a string"),
        ([["a"]], r"prompts\[0\] is list"),
        ([b"a"], r"prompts\[0\] is bytes"),
        ([float("nan")], r"prompts\[0\] is float"),
    ],
)
def test_what_is_refused(values: object, message: str) -> None:
    with pytest.raises(TextsError, match=message):
        require_texts("prompts", values)


def test_a_list_of_lists() -> None:
    require_list("references", [["a"], ["b", "c"]])

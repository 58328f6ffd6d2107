"""Texts that come from a caller: one set of checks for prompts, answers, references and hypotheses."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from support.command_line import UserError


class TextsError(UserError):
    """What is no list of texts."""


def require_list(name: str, values: Any) -> None:
    """Raise `TextsError` unless these are several values in an order: a list, a tuple, an array, a column."""
    if isinstance(values, str | bytes):
        raise TextsError(f"{name} is one string, expected a list with one entry per clip; wrap it in a list")
    if isinstance(values, Mapping | Set) or not hasattr(values, "__len__") or not hasattr(values, "__getitem__"):
        raise TextsError(f"{name} is a {type(values).__name__}; expected a list with one entry per clip, in order")


def require_texts(name: str, values: Any) -> None:
    """Raise `TextsError` unless these are texts in an order, none of them missing."""
    require_list(name, values)
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise TextsError(f"{name}[{index}] is {type(value).__name__}, expected a string")

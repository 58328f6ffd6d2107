"""Fields that look like a time in the recording, but are not read: named, so that nobody believes that they count."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from data.part_fields import time_role

TIME_WORDS = re.compile(r"(?:^|_)(start|begin|onset|offset|end|stop|trim|crop|seek|skip|cut)(?:s|ed|_|$)")
OTHER_WORDS = re.compile(
    r"(?:^|_)(char|chars|token|tokens|word|words|answer|idx|index|id|line|page|year|date|day|age|of|sentence|text|frame|"
    r"frames|sample|samples|epoch|byte|bytes|week|weekend)(?:_|$)"
)
"""Words of names that are about something else."""


def unread_times(entry: Mapping[str, Any]) -> list[str]:
    """The names of an entry's fields that look like a time, with a number, and are not read."""
    suspects = _suspects(tuple(entry))
    if not suspects and dict not in map(type, entry.values()):  # nearly all entries
        return []
    found = [name for name in suspects if _is_time(entry[name])]
    for name, value in entry.items():
        if isinstance(value, dict) and time_role(name) is None and name != "custom":
            found += [f"{name}.{inner}" for inner in value if time_role(inner) == "start" and _is_time(value[inner])]
    return found


@lru_cache(maxsize=1024)
def _suspects(names: tuple[str, ...]) -> tuple[str, ...]:
    """Of an entry's names those that may be a time; entries of one file mostly have the same names."""
    plain = {name: re.sub(r"\W+|(?<=[a-z0-9])(?=[A-Z])", "_", name).lower() for name in names}
    return tuple(
        name
        for name in names
        if time_role(name) is None and TIME_WORDS.search(plain[name]) and not OTHER_WORDS.search(plain[name])
    )


def _is_time(value: object) -> bool:
    if isinstance(value, list):
        return len(value) == 2 and all(map(_is_time, value))
    return isinstance(value, int | float) and not isinstance(value, bool)

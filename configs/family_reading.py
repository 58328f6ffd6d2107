"""A file of the SALMONN family while its keys are being renamed: what was written where, and what is to be said."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from configs.parsing import shown

MODELS = ("model", "distillation.teacher")
"""Sections that describe a model."""


@dataclass(frozen=True)
class Reading:
    """A file's content, `given`, which is changed in place."""

    given: dict[str, Any]
    file: str
    overridden: frozenset[str]
    """Dotted keys given after `--options`, as they were written."""
    origins: dict[str, str] = field(default_factory=dict)
    """Our key -> the name written, where they differ."""
    found: dict[str, str] = field(default_factory=dict)
    """Our key -> the family's name that the file has for it, by which a program is recognised."""
    sections: dict[str, str] = field(default_factory=dict)
    """Our section -> the section written, where they differ."""
    ignored: list[str] = field(default_factory=list)
    """Keys without effect, each with the reason."""
    notes: list[str] = field(default_factory=list)
    """What else a reader of the file should know."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """Keys that a user must change, as written, each with a sentence that names it."""

    def ignore(self, key: str, why: str) -> None:
        self.ignored.append(f"{self.written(key)}: ignored, because {why}")

    def note(self, key: str, text: str) -> None:
        self.notes.append(f"{self.written(key)}: {text}")

    def refuse(self, key: str, text: str) -> None:
        self.problems.append((self.written(key), f"{self.written(key)}: {text}"))

    def holder(self, section: str) -> dict[str, Any] | None:
        """The mapping at a dotted name, or None; "" is the whole file."""
        found: Any = self.given
        for name in section.split(".") if section else ():
            found = found.get(name) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else None

    def written(self, key: str) -> str:
        """A key as written in the file, with the section it was written in."""
        section, dot, name = key.rpartition(".")
        return f"{self.sections.get(section, section)}{dot}{name}"

    def is_overridden(self, key: str) -> bool:
        return key in self.overridden or self.written(key) in self.overridden

    def pop(self, key: str) -> tuple[bool, Any]:
        section, _, name = key.rpartition(".")
        holder = self.holder(section)
        return (True, holder.pop(name)) if holder is not None and name in holder else (False, None)

    def switch(self, key: str) -> bool | None:
        """Take a switch away and return it; None if it is not there, or null."""
        found, value = self.pop(key)
        if not found or value is None or isinstance(value, bool):
            return value
        self.refuse(key, f"expected true or false, found {shown(value)}")
        return None

    def put(self, ours: str, value: Any, theirs: str) -> None:
        """Store a renamed value; where our key is there too, an override wins, equal or empty values do no harm."""
        section, _, name = ours.rpartition(".")
        holder = self.holder(section)
        if holder is None:
            holder = self.given[section] = {}
        present = holder.get(name)
        if value not in (None, "") or ours not in self.found:
            self.found[ours] = theirs
        mine = name in holder and self.is_overridden(ours)
        if mine and (present is not None or not self.is_overridden(theirs)):
            return
        if present in (None, "") or present == value or self.is_overridden(theirs):
            holder[name] = value
            self.origins[ours] = self.written(theirs)
        elif value not in (None, ""):
            other = self.origins.get(ours, self.written(ours))
            text = f"{self.written(theirs)} and {other} name the same thing, but they differ: "
            text += f"{shown(value)} and {shown(present)}; keep one of them"
            self.problems.append((self.written(theirs), text))

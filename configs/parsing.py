"""Strict reading of plain mappings into frozen dataclasses.

It handles types, key names and places in files; what a key means is in `configs/sections.py`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union

import yaml

from support.command_line import UserError

T = TypeVar("T")
Problem = tuple[str, str]
"""Where a value was set, and what is wrong with it."""


LINE = re.compile(r", line (\d+)$")
MISPLACED = 0.8
"""Likeness, from 0 to 1, from which an unknown key is taken for a mistyped one of another section."""


class ConfigError(UserError):
    """A configuration that a user must fix: names the file, the key, what was found and what was expected."""


def raise_problems(file: str, problems: typing.Sequence[Problem]) -> None:
    """Raise one ConfigError for all problems of a file, each with its place, in the order of the file's lines; nothing
    for none."""
    problems = sorted(problems, key=lambda problem: _line_of(problem[0]))
    if len(problems) == 1:
        raise ConfigError(": ".join(problems[0]))
    if problems:
        lines = [
            f"{place.removeprefix(f'{file}, ').replace(f' (over {file})', '')}: {text}" for place, text in problems
        ]
        raise ConfigError("\n  ".join([f"{file}: {len(problems)} things to fix", *dict.fromkeys(lines)]))


def _line_of(place: str) -> float:
    """The line that a place names; infinite for one that names none."""
    found = LINE.search(place)
    return int(found[1]) if found else math.inf


def option(default: Any = dataclasses.MISSING, *, factory: Any = dataclasses.MISSING, **metadata: Any) -> Any:
    """A dataclass field with checks: `minimum`, `above` (exclusive), `maximum`, `below` (exclusive); `path` (its
    kind, see `Config.require_paths`); `secret` (never shown, never written)."""
    hidden = bool(metadata.get("secret"))
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata, repr=not hidden)
    return dataclasses.field(default=default, metadata=metadata, repr=not hidden)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where values came from, so that an error can name the line or the option of one."""

    file: str
    """The YAML file as the user wrote it."""
    lines: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Dotted key -> line in the file, from 1."""
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Dotted key -> the raw text given after `--options`."""
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Our dotted key -> the name that the user wrote for it."""
    arguments: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Dotted key -> the command's own argument that set it: `--ckpt`."""

    def of(self, key: str) -> str:
        """Where a dotted key was set, for the beginning of a message."""
        if key in self.arguments:
            return self.arguments[key]
        written = self.renamed.get(key, key)
        if written in self.lines and not any(f"{written}.".startswith(f"{option}.") for option in self.overrides):
            return f"{self.file}, line {self.lines[written]}"
        # A section, or a mapping, may come from options that name keys within it, and a key from one that names it all.
        optional = any(
            f"{option}.".startswith(f"{written}.") or written.startswith(f"{option}.") for option in self.overrides
        )
        return f"--options (over {self.file})" if optional else self.file

    def name(self, key: str) -> str:
        """The key as the user wrote it, followed by ours where they differ."""
        written = self.renamed.get(key, key)
        return key if written == key else f"{written} (here {key})"


def yaml_lines(text: str) -> dict[str, int]:
    """Dotted key -> line (from 1) of every key of a YAML mapping."""
    lines: dict[str, int] = {}

    def visit(node: yaml.Node, prefix: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                dotted = f"{prefix}{key.value}"
                lines[dotted] = key.start_mark.line + 1
                visit(value, f"{dotted}.")

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None:
        visit(root, "")
    return lines


def nearest(name: str, valid: typing.Iterable[str]) -> str | None:
    """The valid name closest to a mistyped one, or None if none is close."""
    valid = list(valid)
    lowered = {v.lower(): v for v in valid}
    if name.lower() in lowered:
        return lowered[name.lower()]
    found = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.6)
    return lowered[found[0]] if found else None


def shown(value: Any) -> str:
    """A value as an error shows it: short, with its YAML type."""
    text = str(value).lower() if isinstance(value, bool) else "null" if value is None else repr(value)
    if len(text) > 80:
        text = text[:77] + "..."
    return f"{text} ({yaml_type(value)})"


def yaml_type(value: Any) -> str:
    """A value's type in YAML's terms."""
    names = {bool: "true/false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return names.get(type(value), type(value).__name__)


def described(annotation: Any) -> str:
    """What a field accepts, in YAML's terms: 'a whole number or null'."""
    if dataclasses.is_dataclass(annotation) or annotation is Any:
        return "a mapping" if annotation is not Any else "anything"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(described(a) for a in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        return "a list of text"
    if origin is dict:
        return f"a mapping of names to {'numbers' if arguments[1] is float else 'values'}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "null"}[
        annotation
    ]


def field_types(cls: type) -> dict[str, Any]:
    """Field name -> resolved annotation."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def nullable(annotation: Any) -> bool:
    """Whether a field may hold null."""
    return types.NoneType in typing.get_args(annotation)


def takes_text(annotation: Any) -> bool:
    """Whether a field may hold text, or a list of it."""
    return annotation is str or takes_list(annotation) or str in typing.get_args(annotation)


def takes_list(annotation: Any) -> bool:
    """Whether a field may hold a list of text."""
    return any(typing.get_origin(choice) is tuple for choice in (annotation, *typing.get_args(annotation)))


def annotation_of(key: str, schema: type) -> Any:
    """The type of a dotted key's field, from the dataclass of all sections; None if there is no such key."""
    annotation: Any = schema
    for name in key.split("."):
        section = dataclass_of(annotation)
        annotation = field_types(section).get(name) if section is not None else None
    return annotation


class _Mismatch(Exception):
    """The value does not fit the annotation; the caller raises the error with the key."""


def _convert(value: Any, annotation: Any, raw: str | None) -> Any:
    """`value` as `annotation` asks for it. `raw` is the text after `key=` on the command line, if it came from
    there."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        for argument in arguments:
            try:
                return _convert(value, argument, raw)
            except _Mismatch:
                continue
        raise _Mismatch
    if annotation is Any:
        return value
    if annotation is types.NoneType and value is None:
        return None
    if annotation is bool and isinstance(value, bool):
        return value
    if annotation is int and not isinstance(value, bool):
        if isinstance(value, int):
            return value
        if isinstance(value, float) and value.is_integer():  # 3e3
            return int(value)
    if annotation is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if annotation is str:
        if isinstance(value, str):
            return value
        if raw is not None and value is not None and not isinstance(value, Mapping | list):
            return raw  # --options run.output_dir=2024: text was meant
    if origin is Literal and value in arguments and not isinstance(value, bool):
        return value
    if origin is tuple:
        if isinstance(value, str):
            return (value,)
        if isinstance(value, list | tuple):
            return tuple(_convert(item, arguments[0], None) for item in value)
    if origin is dict and isinstance(value, Mapping):
        return {str(name): _convert(item, arguments[1], None) for name, item in value.items()}
    raise _Mismatch


def _check_range(value: Any, metadata: Mapping[str, Any]) -> str | None:
    """What is wrong with a number, or with one inside a mapping or list, in words, or None."""
    if isinstance(value, Mapping | list | tuple):
        inside = value.values() if isinstance(value, Mapping) else value
        return next((problem for item in inside if (problem := _check_range(item, {}))), None)
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    checks = {
        "minimum": (lambda v, b: v >= b, "at least"),
        "above": (lambda v, b: v > b, "above"),
        "maximum": (lambda v, b: v <= b, "at most"),
        "below": (lambda v, b: v < b, "below"),
    }
    for name, (holds, words) in checks.items():
        if name in metadata and not holds(value, metadata[name]):
            return f"{words} {metadata[name]}"
    return None


def check_values(section: Any) -> None:
    """Raise UserError for a value of a dataclass, made in Python, of another type or outside of what its field allows.

    Numbers of numpy and whole floats (3.0 for a whole number) become what the field holds.
    """
    annotations = field_types(type(section))
    for field in dataclasses.fields(section):
        given = getattr(section, field.name)
        try:
            value = _convert(given.item() if hasattr(given, "item") else given, annotations[field.name], None)
        except (_Mismatch, ValueError, RuntimeError):  # an array of several numbers is none
            raise UserError(f"{field.name} is {given!r:.60}; expected {described(annotations[field.name])}.") from None
        problem = _check_range(value, field.metadata)
        if problem is not None:
            raise UserError(f"{field.name} is {value}; expected {problem}.")
        object.__setattr__(section, field.name, value)


@dataclass(frozen=True)
class Builder:
    """Makes dataclasses of plain mappings; unknown keys and wrong types are collected, to be raised together."""

    origin: Origin
    elsewhere: Mapping[str, str]
    """A key's last name -> the dotted key of a section that has it, for an error that names the right section."""
    problems: list[Problem] = dataclasses.field(default_factory=list)

    def add(self, key: str, text: str) -> None:
        """Note what is wrong with a key."""
        self.problems.append((self.origin.of(key), text))

    def build(self, cls: type[T], given: Mapping[str, Any], prefix: str = "") -> T | None:
        """An instance of `cls`, or None where `problems` has what is wrong. `prefix` is the section's dotted name with
        a dot at its end, or ""."""
        before = len(self.problems)
        annotations = field_types(cls)
        given = {str(name): value for name, value in given.items()}  # YAML reads 1, on and null as other than text
        fields = {field.name: field for field in dataclasses.fields(cls) if not field.metadata.get("internal")}
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name in fields:
                self._take(values, name, value, annotations[name], fields[name].metadata, prefix)
            else:
                self.add(f"{prefix}{name}", _unknown(name, value, prefix, fields, self.elsewhere))
        if len(self.problems) > before:
            return None
        try:
            return cls(**values)
        except ConfigError:
            raise
        except UserError as error:  # a rule between several keys, from __post_init__
            self.problems.append((self.origin.file, str(error)))
            return None

    def _take(
        self,
        values: dict[str, Any],
        name: str,
        value: Any,
        annotation: Any,
        metadata: Mapping[str, Any],
        prefix: str,
    ) -> None:
        """Put a key's value, converted and checked, into `values`."""
        key, origin = f"{prefix}{name}", self.origin
        nested = dataclass_of(annotation)
        text = origin.overrides.get(origin.renamed.get(key, key))
        if value is None and not nullable(annotation):
            if text is not None:  # null means "not given" in a file, as in the family's
                self.add(key, f"{origin.name(key)}: expected {described(annotation)}, found {text!r}, which is null")
            return
        if value == "" and nullable(annotation):
            value = None  # the family writes "" for "not given"
        if nested is not None and isinstance(value, Mapping):
            values[name] = self.build(nested, value, f"{key}.")
            return
        if value == "None" and (annotation is str or takes_list(annotation)):
            self.add(
                key,
                f"{origin.name(key)}: found None, which YAML reads as a text; drop the key, or give a value",
            )
            return
        try:
            converted = _convert(value, annotation, text)
        except _Mismatch:
            found = yaml_type(value) if metadata.get("secret") else shown(value)
            quote = ' (put it in quotes: "...")' if str in (annotation, *typing.get_args(annotation)) else ""
            self.add(key, f"{origin.name(key)}: expected {described(annotation)}, found {found}{quote}")
            return
        problem = _check_range(converted, metadata)
        if problem is not None:
            self.add(key, f"{origin.name(key)}: expected {problem}, found {shown(value)}")
        values[name] = converted


def dataclass_of(annotation: Any) -> type | None:
    """The dataclass in `Section` or `Section | None`, if there is one."""
    candidates = (annotation, *typing.get_args(annotation))
    return next((c for c in candidates if isinstance(c, type) and dataclasses.is_dataclass(c)), None)


def _known_encoders(name: str, valid: Mapping[str, dataclasses.Field]) -> str:
    """For an unknown `…_path`, the known encoders: the keys that have a freeze switch."""
    paths = [key for key in valid if key.endswith("_path") and f"freeze_{key.removesuffix('_path')}" in valid]
    return f" Encoders are named by {', '.join(paths)}." if paths and name.endswith("_path") else ""


def _unknown(
    name: str, value: Any, prefix: str, valid: Mapping[str, dataclasses.Field], elsewhere: Mapping[str, str]
) -> str:
    key, what = f"{prefix}{name}", f"key of {prefix[:-1]}" if prefix else "section"
    close, misplaced = _meant(name, value, valid, elsewhere)
    secret = close is not None and valid[close].metadata.get("secret")  # a mistyped or misplaced token is still one
    found = shown(value) if prefix and not secret and not misplaced else yaml_type(value)
    message = f"{key}: no such {what} (found {found})."
    if close is not None:
        return f"{message} Did you mean {prefix}{close}?{_known_encoders(name, valid)}"
    if misplaced is not None:
        return f"{message} Did you mean {misplaced}?"
    return f"{message} It has: {', '.join(sorted(valid))}."


def _meant(
    name: str, value: Any, valid: Mapping[str, dataclasses.Field], elsewhere: Mapping[str, str]
) -> tuple[str | None, str | None]:
    """The key of this section, or the dotted key of another one, that an unknown name is most like."""
    close = nearest(name, valid)
    if isinstance(value, Mapping):
        return close, None
    other = name if name in elsewhere else nearest(name, elsewhere)
    if other is None or (close is not None and close.lower() == name.lower()):
        return close, None
    likeness = {key: difflib.SequenceMatcher(None, name.lower(), key.lower()).ratio() for key in (close, other) if key}
    here, there = likeness.get(close, 0), likeness[other]
    if there == 1 or (there >= MISPLACED and there > here):
        return None, elsewhere[other]
    return close, None

"""JSON or JSON Lines -> `Annotation`, or an error naming file, entry and field.

An entry is `{path, text, task, Q?, testset_id?, expand_wav?, texts?}`; unknown fields are kept in `extra`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.command_line import UserError

REFERENCE_FIELDS = ("texts", "captions", "references")
"""Fields that may have a list of references in addition to `text`; the first one found is used."""
KNOWN_FIELDS = frozenset({"path", "text", "task", "Q", "testset_id", "expand_wav"})
PROBED_CLIPS = 16
"""Clips of a file that are looked up on disk to find the folder of its relative paths."""


class AnnotationError(UserError):
    """An annotation file that a user must fix: names the file, the entry, the field."""


@dataclass(frozen=True)
class Annotation:
    """One clip, what is asked about it, and the answer."""

    path: str
    """The clip's resolved path."""
    text: str
    """The reference; empty if there is none."""
    task: str
    """Which prompts and which metric apply."""
    Q: str | None = None
    """The question that fills the prompt's `{}`."""
    testset_id: str | None = None
    """Name of the row in a submission."""
    expand_wav: tuple[str, ...] = ()
    """Resolved paths of further clips, appended to the first one."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Unknown fields, unchanged."""
    source: str = ""
    """`file#entry`, the entry counted from 0, for errors."""
    index: int = 0
    """Position among all entries of all files."""
    texts: tuple[str, ...] = ()
    """All references, `text` first; at least `text` if the entry has one, even an empty one."""


def load_annotations(
    paths: str | Path | Sequence[str | Path], prefix: str | Path | None = None, require_text: bool = True
) -> list[Annotation]:
    """Read one or several annotation files, in order, as one list.

    A relative annotation file is looked up as given, else under `prefix`. Relative clip paths are relative to `prefix`
    if the file's clips exist there, else to the annotation file's folder.

    Args:
        paths: JSON (`{"annotation": [...]}` or a list) or JSON Lines files.
        prefix: folder of the data.
        require_text: whether an entry without a reference is an error.

    Raises:
        AnnotationError: unreadable or broken file, no entries, a missing field, a wrong type, a `testset_id` repeated
            within a file.
    """
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    if not files:
        raise AnnotationError("no annotation files given")
    annotations: list[Annotation] = []
    # File -> testset_id -> place. Names need only be unique within a file: several files may each count from 0.
    names: dict[Path, dict[str, str]] = {}
    for path in files:
        file = _find(Path(path), prefix)
        entries = _read(file)
        root = _clip_root(entries, file, prefix)
        seen = names.setdefault(file, {})
        for number, (place, entry) in enumerate(entries):
            annotation = _annotation(
                entry, place, source=f"{file}#{number}", index=len(annotations), root=root, require_text=require_text
            )
            name = annotation.testset_id
            if name is not None and name in seen:
                raise AnnotationError(f"{place}: field 'testset_id': {name!r} was used before, at {seen[name]}")
            if name is not None:
                seen[name] = place
            annotations.append(annotation)
    return annotations


def _find(path: Path, prefix: str | Path | None) -> Path:
    places = [_at_home(path)]
    if prefix is not None and not path.is_absolute():
        places.append(_at_home(prefix) / path)
    for place in places:
        if os.path.isfile(place):
            return place
    raise AnnotationError(f"{path}: no such annotation file (looked at {' and at '.join(map(str, places))})")


def _read(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """The entries of a file, each with its place for errors."""
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{file}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise AnnotationError(f"{file}: cannot be read ({error.strerror}); check its permissions") from None
    if not content.strip():
        raise AnnotationError(f"{file}: the file is empty; expected annotations")
    if file.suffix in (".jsonl", ".ndjson") or _is_json_lines(content):
        entries = _read_lines(file, content)
    else:
        entries = _read_json(file, content)
    escapes = r"\ud" in content or r"\uD" in content  # the only source of half a surrogate pair in UTF-8
    for place, entry in entries:
        if not isinstance(entry, dict):
            raise AnnotationError(f"{place}: expected an object with path, text and task, found {_shown(entry)}")
        if escapes:
            _check_characters(entry, place)
    if not entries:
        raise AnnotationError(f"{file}: no entries; expected at least one")
    return entries


def _check_characters(entry: dict[str, Any], place: str) -> None:
    """Raise for half of a surrogate pair (`"\\ud800"` alone): it is not a character and cannot be written as UTF-8."""
    for name, value in entry.items():
        try:
            json.dumps({name: value}, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise AnnotationError(
                f"{place}: field {name!r}: has {half!r}, half of a surrogate pair; expected whole characters"
            ) from None


def _is_json_lines(content: str) -> bool:
    """Whether the first line alone is an entry, whatever the file's suffix."""
    first = content.lstrip().partition("\n")[0]
    try:
        entry = json.loads(first)
    except ValueError:
        return False
    return isinstance(entry, dict) and "annotation" not in entry


def _read_lines(file: Path, content: str) -> list[tuple[str, Any]]:
    entries = []
    for number, line in enumerate(content.split("\n"), start=1):  # splitlines would also split at U+2028, in texts
        if not line.strip():
            continue
        try:
            entries.append((f"{file}, line {number}", json.loads(line)))
        except ValueError as error:
            raise AnnotationError(f"{file}, line {number}: broken JSON: {_json_problem(error)}") from None
    return entries


def _read_json(file: Path, content: str) -> list[tuple[str, Any]]:
    try:
        document = json.loads(content)
    except json.JSONDecodeError as error:
        raise AnnotationError(
            f"{file}, line {error.lineno}, column {error.colno}: broken JSON: {_json_problem(error)}"
        ) from None
    except RecursionError:
        raise AnnotationError(f"{file}: broken JSON: brackets nested too deeply; expected a list of entries") from None
    entries = document.get("annotation") if isinstance(document, dict) else document
    if not isinstance(entries, list):
        has = f"keys {', '.join(map(repr, list(document)[:5]))}" if isinstance(document, dict) else _shown(document)
        raise AnnotationError(f'{file}: expected {{"annotation": [...]}}, a list, or JSON Lines; found {has}')
    return [(f"{file}, annotation[{number}]", entry) for number, entry in enumerate(entries)]


def _json_problem(error: ValueError) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def _clip_root(entries: list[tuple[str, dict[str, Any]]], file: Path, prefix: str | Path | None) -> Path:
    """The folder of a file's relative clip paths: decided once, by looking up its first clips."""
    if prefix is None:
        return file.parent
    under_prefix = _at_home(prefix)
    clips = [entry["path"] for _, entry in entries[:PROBED_CLIPS] if isinstance(entry.get("path"), str)]
    if any(os.path.exists(_join(under_prefix, clip)) for clip in clips):
        return under_prefix
    if any(os.path.exists(_join(file.parent, clip)) for clip in clips):
        return file.parent
    return under_prefix  # if none exists, an error about a clip should name the folder that the user gave


def _join(root: Path, clip: str) -> Path:
    """A clip's path. The family also writes `/LibriSpeech/...` for a path under its data folder."""
    path = _at_home(clip)
    if not path.is_absolute():
        return root / path
    below = root / clip.lstrip("/\\")
    return below if not os.path.exists(path) and os.path.exists(below) else path


def _at_home(path: str | Path) -> Path:
    """`~` expanded. Unlike pathlib's expansion, os.path's never raises."""
    return Path(os.path.expanduser(path))


def _annotation(
    entry: dict[str, Any], place: str, *, source: str, index: int, root: Path, require_text: bool
) -> Annotation:
    clip = _text_field(entry, "path", place, required=True)
    task = _text_field(entry, "task", place, required=True)
    references_field = next((name for name in REFERENCE_FIELDS if isinstance(entry.get(name), list)), None)
    listed = _text_list(entry[references_field], references_field, place) if references_field else []
    text = _text_field(entry, "text", place, required=require_text and not listed)
    if listed:
        text = text or listed[0]  # with a list, an empty text counts as none
        texts = (text, *(reference for reference in listed if reference != text))
    else:
        texts = () if text is None else (text,)
        text = text or ""
    testset_id = entry.get("testset_id")
    if isinstance(testset_id, bool) or not isinstance(testset_id, str | int | None):
        raise AnnotationError(
            f"{place}: field 'testset_id': expected text or a whole number, found {_shown(testset_id)}"
        )
    expand = entry.get("expand_wav") or []
    expand = [expand] if isinstance(expand, str) else _text_list(expand, "expand_wav", place)
    known = KNOWN_FIELDS | ({references_field} if references_field else set())
    return Annotation(
        path=str(_join(root, clip)),
        text=text,
        task=task,
        Q=_text_field(entry, "Q", place, required=False) or None,
        testset_id=None if testset_id is None else str(testset_id),
        expand_wav=tuple(str(_join(root, further)) for further in expand),
        extra={name: value for name, value in entry.items() if name not in known},
        source=source,
        index=index,
        texts=texts,
    )


def _text_field(entry: dict[str, Any], name: str, place: str, *, required: bool) -> str | None:
    value = entry.get(name)
    if value is None:
        if required:
            has = ", ".join(map(repr, entry)) or "none"
            state = "is null" if name in entry else f"is missing (the entry has {has})"
            raise AnnotationError(f"{place}: field {name!r} {state}; expected text")
        return None
    if not isinstance(value, str):
        raise AnnotationError(f"{place}: field {name!r}: expected text, found {_shown(value)}")
    if required and name in ("path", "task") and not value.strip():
        raise AnnotationError(f"{place}: field {name!r} is empty; expected text")
    return value


def _text_list(value: Any, name: str, place: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        found = value if not isinstance(value, list) else next(item for item in value if not isinstance(item, str))
        raise AnnotationError(f"{place}: field {name!r}: expected a list of text, found {_shown(found)}")
    if name in REFERENCE_FIELDS and not value:
        raise AnnotationError(f"{place}: field {name!r} is an empty list; expected at least one reference")
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."

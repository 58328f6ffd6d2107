"""JSON or JSON Lines -> `Annotation`, or an error naming file, entry and field.

An entry is `{path, text, task, Q?, testset_id?, expand_wav?, texts?}`, and the fields of `data.part_fields` where it
means a part of its file; unknown fields are kept in `extra`. `data.manifests` reads other programs' entries.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.annotation_error import AnnotationError
from data.file_names import existing, may_differ
from data.manifests import kaldi_folder, our_entry, read_kaldi
from data.part_fields import first_parts_of, read_part, stated_duration
from data.parts import Part
from data.unread_times import unread_times
from support.file_kinds import mistaken

log = logging.getLogger(__name__)

REFERENCE_FIELDS = ("texts", "captions", "references")
"""Fields that may have a list of references in addition to `text`; the first one found is used."""
KNOWN_FIELDS = frozenset({"path", "text", "task", "Q", "testset_id", "expand_wav"})
PLAIN_NAME = re.compile(r"[\w-][^/\\]*(/[\w-][^/\\]*)*", re.ASCII)
"""Relative paths without `~`, `.` or anything else at the beginning of a part that is not kept as it is."""
PROBED_CLIPS = 16
"""Clips of a file that are looked up on disk to find the folder of its relative paths."""
CHANGED_SOUND = {"speed", "tempo", "pitch", "volume", "gain", "augment", "augmentation", "transforms", "effects"}
"""Fields by which other programs change a clip's sound as they load it."""
GZIP = b"\x1f\x8b"
DOCUMENT = re.compile(r'\s*(\[|\{\s*"annotation"\s*:)')
"""How a file begins that is no JSON Lines."""

_said: set[str] = set()
"""What was said about files: a run reads them several times."""


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
    part: Part | None = None
    """What of the file at `path` is meant; None for all of it. Clips of `expand_wav` are whole."""

    @property
    def audio(self) -> tuple[object, ...]:
        """What is loaded: equal for two entries where they have the same sound."""
        return (self.path, self.part, *self.expand_wav)

    @property
    def clip(self) -> str:
        """The clip's name where parts of a recording are told apart: its path, and the part."""
        return self.path if self.part is None else f"{self.path} [{self.part}]"


def load_annotations(
    paths: str | Path | Sequence[str | Path], prefix: str | Path | None = None, require_text: bool = True
) -> list[Annotation]:
    """Read one or several annotation files, in order, as one list.

    A relative annotation file is looked up as given, else under `prefix`. Relative clip paths are relative to `prefix`
    if the file's clips exist there, else to the annotation file's folder.

    Args:
        paths: JSON (`{"annotation": [...]}` or a list) or JSON Lines files, NeMo manifests, Lhotse cuts, Kaldi folders.
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
        entries = [(place, our_entry(entry, place)) for place, entry in _read(file)]
        located = _locator(entries, file, prefix)
        parts = _parts(entries)
        _say(file, entries, parts, prefix)
        seen = names.setdefault(file, {})
        for number, (place, entry) in enumerate(entries):
            annotation = _annotation(
                entry,
                place,
                source=f"{file}#{number}",
                index=len(annotations),
                located=located,
                part=parts[number],
                require_text=require_text,
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
    if prefix is not None and not places[0].is_absolute():
        places.append(_at_home(prefix) / path)
    for place in places:
        if os.path.isfile(place) or kaldi_folder(place):
            return place
    for place in places:
        spelled = existing(str(place))
        if spelled is not None and os.path.isfile(spelled):
            return Path(spelled)
    raise AnnotationError(f"{path}: no such annotation file (looked at {' and at '.join(map(str, places))})")


def _parts(entries: list[tuple[str, dict[str, Any]]]) -> list[Part | None]:
    """What each entry means of its file."""
    parts = [read_part(entry, place) for place, entry in entries]
    if not any(part is not None and part.start_s > 0 for part in parts):
        return parts
    stated = [None if entry.get("expand_wav") else stated_duration(entry) for _, entry in entries]
    return first_parts_of(parts, [str(entry.get("path")) for _, entry in entries], stated)


def _say(file: Path, entries: list[tuple[str, dict[str, Any]]], parts: list[Part | None], prefix: object) -> None:
    """Say, once a file, what changes the sound of its entries, or would elsewhere."""
    notes = []
    found = [part for part in parts if part is not None]
    if found:
        notes.append(
            f"{file}: {len(found):,} of {len(entries):,} entries name a part of their file; only that part is read "
            f"({found[0].fields})"
        )
    present = {name for _, entry in entries for name in entry}
    for name in sorted(CHANGED_SOUND & present):
        count = sum(_changes_sound(entry.get(name)) for _, entry in entries)
        if count:
            notes.append(f"{file}: field '{name}' of {count:,} entries has no effect here; see datasets.augmentation")
    unread = Counter(name for _, entry in entries for name in unread_times(entry))
    for name, count in sorted(unread.items()):
        notes.append(
            f"{file}: field '{name}' of {count:,} entries is not read; if it says which part of the recording is "
            "meant, write 'start' and 'end', or 'offset' and 'duration', in seconds"
        )
    if prefix is not None and existing(str(_at_home(prefix))) is None:
        notes.append(
            f"datasets.prefix, {str(prefix)!r}, is no folder; relative paths of clips are looked up next to their "
            "annotation file"
        )
    for note in notes:
        if note not in _said:
            _said.add(note)
            log.warning("%s", note)


def _changes_sound(value: object) -> bool:
    """Whether a field of `CHANGED_SOUND` asks for a change: not 1, 0 or nothing, and no word (speed: fast)."""
    return value not in (None, 1, 0, [], {}) and not isinstance(value, str | bool)


def _read(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """The entries of a file, each with its place for errors."""
    kaldi = kaldi_folder(file)
    if kaldi is not None:
        return read_kaldi(kaldi)
    try:
        raw = file.read_bytes()
        if raw.lstrip()[:1] not in (b"{", b"[", GZIP[:1]) and (found := mistaken(file, text_is_right=True)):
            raise AnnotationError(f"{file}: {found}")
        content = (gzip.decompress(raw) if raw.startswith(GZIP) else raw).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{file}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from None
    except (EOFError, zlib.error) as error:
        raise AnnotationError(f"{file}: a damaged gzip file ({error}); copy it again") from None
    except OSError as error:
        raise AnnotationError(f"{file}: cannot be read ({error.strerror or error}); check its permissions") from None
    if not content.strip():
        raise AnnotationError(f"{file}: holds nothing but blanks; expected annotations")
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
    if DOCUMENT.match(content):  # which may be one line of many megabytes: it is not parsed twice
        return False
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


def _locator(entries: list[tuple[str, dict[str, Any]]], file: Path, prefix: str | Path | None) -> Callable[[str], str]:
    """From a clip's path in a file's entries to its path on disk. The folder of relative ones, and whether names are
    written in another way than on disk, are decided once, by looking up the first clips."""
    clips = [entry["path"] for _, entry in entries if isinstance(entry.get("path"), str)]
    root = _clip_root(clips[:PROBED_CLIPS], file.parent if file.is_file() else file, prefix)

    folder = str(root / "x")[:-1]

    def joined(clip: str) -> str:
        if PLAIN_NAME.fullmatch(clip):
            return folder + clip  # what pathlib gives, in a tenth of its time
        return str(_join(root, clip))

    doubtful = [clip for clip in clips if may_differ(clip)][:PROBED_CLIPS]
    if all(os.path.exists(joined(clip)) for clip in doubtful):
        return joined
    return lambda clip: (existing(joined(clip)) or joined(clip)) if may_differ(clip) else joined(clip)


def _clip_root(clips: list[str], own: Path, prefix: str | Path | None) -> Path:
    if prefix is None:
        return own
    under_prefix = _at_home(prefix)
    under_prefix = Path(existing(str(under_prefix)) or under_prefix)
    for root in (under_prefix, own):
        if any(existing(str(_join(root, clip))) for clip in clips):
            return root
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
    entry: dict[str, Any],
    place: str,
    *,
    source: str,
    index: int,
    located: Callable[[str], str],
    part: Part | None,
    require_text: bool,
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
        path=located(clip),
        text=text,
        task=task,
        Q=_text_field(entry, "Q", place, required=False) or None,
        testset_id=None if testset_id in (None, "") else str(testset_id),
        expand_wav=tuple(located(further) for further in expand),
        extra={name: value for name, value in entry.items() if name not in known},
        source=source,
        index=index,
        texts=texts,
        part=part,
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
        also = "; several references go in 'texts'" if name == "text" and isinstance(value, list) else ""
        raise AnnotationError(f"{place}: field {name!r}: expected text, found {_shown(value)}{also}")
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

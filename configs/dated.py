"""Folders whose names have the day or the moment of a run in them: `run.output_dir: outputs/{date}`."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

FORMATS = {"date": "%Y-%m-%d", "time": "%Y-%m-%d_%H-%M-%S"}
"""Placeholder -> how it is written. Both sort by name as they do by time; `{time}` is another name every second."""
DIGITS = {"date": r"\d{4}-\d\d-\d\d", "time": r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d"}
_BRACES = re.compile(r"\{([^{}]*)\}")


def unknown_placeholder(path: str) -> str | None:
    """The first `{name}` of a path that is no placeholder, with its braces, or None."""
    return next((found[0] for found in _BRACES.finditer(path) if found[1] not in FORMATS), None)


def placeholders(path: str) -> set[str]:
    """The names in braces in a path."""
    return set(_BRACES.findall(path))


def is_dated(path: str) -> bool:
    """Whether a path has a placeholder."""
    return _BRACES.search(path) is not None


def this_moment() -> dict[str, str]:
    """Placeholder -> its text now, local time."""
    now = datetime.now()
    return {name: now.strftime(form) for name, form in FORMATS.items()}


def fill(path: str, moment: Mapping[str, str]) -> str:
    """The path with its placeholders replaced."""
    return _BRACES.sub(lambda found: moment[found[1]], path)


def moment_of(folder: str | Path, path: str) -> dict[str, str] | None:
    """The text of each placeholder where `folder` is one that `path` stands for, else None."""
    seen: set[str] = set()

    def group(name: str) -> str:
        again = name in seen
        seen.add(name)
        return f"(?P={name})" if again else f"(?P<{name}>{DIGITS[name]})"

    pieces = _BRACES.split(str(Path(path).expanduser().absolute()))  # literal, name, literal, …
    pattern = "".join(group(piece) if place % 2 else re.escape(piece) for place, piece in enumerate(pieces))
    found = re.fullmatch(pattern, str(Path(folder).expanduser().absolute()))
    return None if found is None else found.groupdict()


def existing(path: str) -> list[dict[str, str]]:
    """The moments of the folders on disk that a path with placeholders stands for, the newest first."""
    pieces = _BRACES.split(str(Path(path).expanduser()))
    pattern = "".join("*" if place % 2 else glob.escape(piece) for place, piece in enumerate(pieces))
    folders = (folder for folder in glob.glob(pattern) if Path(folder).is_dir())
    moments = [moment for folder in folders if (moment := moment_of(folder, path)) is not None]
    return sorted(moments, key=lambda moment: [moment.get(name, "") for name in FORMATS], reverse=True)

"""A file whose name is written in another way than on disk: another Unicode form, backslashes, blanks at the end.

macOS writes names decomposed (NFD: `e` and an accent), most other systems composed (NFC); they look alike. Windows
separates folders by backslashes.
"""

from __future__ import annotations

import os
import unicodedata
from functools import lru_cache
from pathlib import Path


def may_differ(name: str) -> bool:
    """Whether a name may be written in another way on disk: cheap, for names of every kind."""
    return not name.isascii() or "\\" in name or name != name.strip()


def existing(path: str) -> str | None:
    """The path of the file that a path means, in the spelling on disk; None if there is none."""
    if os.path.exists(path):
        return path
    return _by_components(path) or (_by_components(path.replace("\\", "/")) if "\\" in path else None)


def near_name(path: str) -> str | None:
    """The file that a path that does not exist may mean, for an error: in other letters (case), or of another kind."""
    found = existing(path) if may_differ(path) else None
    if found is not None:
        return found
    folder, name = os.path.split(path.strip())
    names = _plain_names(folder or ".")
    similar = names.get(_plain(name)) or names.get(_plain(os.path.splitext(name)[0]))
    return None if similar is None else os.path.join(folder, similar)


def _by_components(path: str) -> str | None:
    """Folder by folder, each in the form that it has on disk."""
    here = ""
    for part in Path(path).parts:
        there = os.path.join(here, part)
        if not os.path.exists(there):
            composed = unicodedata.normalize("NFC", part)
            same = None if part.isascii() else _composed_names(here or ".").get(composed)
            there = os.path.join(here, same or part.strip())
            if not os.path.exists(there):
                return None
        here = there
    return here or None


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError):
        return []


@lru_cache(maxsize=64)
def _composed_names(folder: str) -> dict[str, str]:
    return {unicodedata.normalize("NFC", name): name for name in _listed(folder)}


@lru_cache(maxsize=64)
def _plain_names(folder: str) -> dict[str, str]:
    """Names without case and blanks, whole and without their suffix -> as on disk."""
    names = _listed(folder)
    return {_plain(os.path.splitext(name)[0]): name for name in names} | {_plain(name): name for name in names}


def _plain(name: str) -> str:
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())

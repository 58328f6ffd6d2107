"""Names that stand for a folder next to them: `best -> checkpoint_000200`.

A symbolic link where the file system has links; else (a mounted drive, exFAT, some network shares) a small text file
with the folder's name. Both are read everywhere: unpacking an archive, or git on Windows, makes such a file of a link.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from support.files import recover, replace, write_whole

LONGEST_BYTES = 1024


def point(pointer: Path, target: Path) -> None:
    """Let `pointer` stand for `target`, a folder next to it, in one rename. A folder of that name must not be there."""
    draft = pointer.with_name(f".{pointer.name}.tmp")
    draft.unlink(missing_ok=True)
    try:
        draft.symlink_to(target.name, target_is_directory=True)
    except (OSError, NotImplementedError, AttributeError):
        if pointer.is_symlink():  # else what it points to would be written
            pointer.unlink()
        write_whole(pointer, f"{target.name}\n")
    else:
        replace(draft, pointer)


def pointed(path: Path) -> Path:
    """The path with every pointer in it, and every link, replaced by what it stands for."""
    path = Path(os.path.abspath(path))
    for place in reversed((path, *path.parents)):
        target = _target_in(place)
        if target is not None:
            return pointed(target / path.relative_to(place))
    return path.resolve()


def _target_in(place: Path) -> Path | None:
    """The folder that a small text file names, next to it."""
    with suppress(OSError, UnicodeDecodeError):
        if place.is_file() and place.stat().st_size <= LONGEST_BYTES:
            name = place.read_text(encoding="utf-8").strip()
            target = place.parent / name
            if not name or "\n" in name or target == place:
                return None
            recover(target)
            return target if target.is_dir() else None
    return None

"""What the command-line programs have in common: errors in one line, no progress bars of other libraries."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

DISK_ERRORS = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EEXIST,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
        None,  # raised with a sentence of its own, by our code or a library's
    }
)


def quieten_libraries() -> None:
    """No bar for every part of every model that is loaded; the programs say what they do themselves."""
    disable_progress_bar()


def is_for_user(error: Exception) -> bool:
    """Whether an error's message says what to mend: a sentence will do, where the program's own faults need a trace."""
    return isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno in DISK_ERRORS)


def require_writable(folder: str, key: str) -> None:
    """Before minutes of work: see that results can be written to `folder`, which need not be there yet.

    Raises:
        ValueError: a file is in the folder's place, or in that of one above it; or it must not be written to.
    """
    path = Path(folder).absolute()
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if not nearest.is_dir():
        raise ValueError(f"{key} = {folder}: {nearest} is a file; expected a folder, there or to be made")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"{key} = {folder}: no permission to write in {nearest}; choose another folder")

"""What the command-line programs have in common: errors in one line, no progress bars of other libraries."""

from __future__ import annotations

import errno

from transformers.utils.logging import disable_progress_bar

DISK_ERRORS = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EISDIR,
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

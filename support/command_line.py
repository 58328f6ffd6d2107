"""How every command runs: quiet libraries, a user's mistake in one line, our own faults with their trace.

A command is a parser and the work that its arguments ask for:

    def main(argv: Sequence[str] | None = None) -> int:
        return command_line.run(work, parser(), argv)
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

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


class UserError(ValueError):
    """What a user can fix: the message names the file, key or clip, what was found, what was expected, and the fix."""


def run(
    work: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the arguments and do the work; the exit status.

    A `UserError`, and an error of the disk, is one line on stderr and status 1; with `--traceback` its trace too. Any
    other exception is a fault of this program and keeps its trace.
    """
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    arguments = parser.parse_args(argv)
    try:
        return work(arguments) or 0
    except (UserError, OSError) as error:
        if arguments.traceback or not is_for_user(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


def quieten_libraries() -> None:
    """No bar for every part of every model that is loaded; the programs say what they do themselves."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def is_for_user(error: Exception) -> bool:
    """Whether an error's message says what to fix: a sentence will do, where the program's own faults need a trace."""
    return isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno in DISK_ERRORS)


def require_writable(folder: str, key: str) -> None:
    """Before minutes of work: see that results can be written to `folder`, which need not be there yet.

    Raises:
        UserError: a file is in the folder's place, or in that of one above it; or it must not be written to.
    """
    path = Path(folder).absolute()
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if not nearest.is_dir():
        raise UserError(f"{key} = {folder}: {nearest} is a file; expected a folder, there or to be made")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{key} = {folder}: no permission to write in {nearest}; choose another folder")

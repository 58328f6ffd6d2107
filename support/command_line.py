"""How every command runs: quiet libraries, a user's mistake in one line, our own faults with their trace.

A command is a parser and the work that its arguments ask for; its libraries are imported by the work, so that `--help`
and a mistyped path do not wait for them:

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

from support.environment import read_environment_file

PROBLEMS = {
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EDQUOT: "the disk quota is used up; make room, then run it again",
    errno.EFBIG: "the file is larger than this file system, or the limit of this process, allows",
    errno.EEXIST: "it exists already, and is of another kind",
    errno.EISDIR: "it is a folder; expected a file",
    errno.ELOOP: "its links lead in a circle",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOENT: "no such file or folder",
    errno.ENOSPC: "no space left on the disk; make room, then run it again",
    errno.ENOTDIR: "a part of this path is a file; expected a folder",
    errno.EROFS: "this file system cannot be written",
}
"""Errors of the disk, in words."""
DISK_ERRORS = frozenset({*PROBLEMS, None})
"""None: raised with a message alone, by our code or a library."""


class UserError(ValueError):
    """What a user can fix: the message names the file, key or clip, what was found, what was expected, and the fix."""


def run(
    work: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
    *,
    error_status: int = 1,
) -> int:
    """Parse the arguments and do the work; the exit status.

    A `UserError`, and an error of the disk, is one line on stderr and `error_status`; with `--traceback` it keeps its
    traceback. Any other exception is a fault of this program and always keeps it.
    """
    never_fail_to_print()
    add_traceback(parser)
    arguments = parser.parse_args(argv)
    _expand_home(arguments)
    quieten_libraries()
    try:
        read_environment_file()
        return work(arguments) or 0
    except (UserError, OSError, UnicodeEncodeError) as error:
        message = _in_one_line(error)
        if message is None or getattr(arguments, "traceback", False):
            raise
        print(f"error: {message}", file=sys.stderr)
        return error_status


def _in_one_line(error: Exception) -> str | None:
    """What the user is told; None for a fault of ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, UnicodeEncodeError):
        return _unnameable(error)
    return disk_problem(error) if error.errno in DISK_ERRORS else None


def disk_problem(error: OSError) -> str:
    """An error of the disk in words: the file, what is wrong with it, and what helps."""
    if error.errno not in PROBLEMS:
        return str(error)
    files = [str(file) for file in (error.filename, error.filename2) if file is not None]
    return ": ".join([" -> ".join(files), PROBLEMS[error.errno]] if files else [PROBLEMS[error.errno]])


def _unnameable(error: UnicodeEncodeError) -> str | None:
    """Why a file's name cannot be used; None where the text is no such name."""
    if error.encoding.lower().replace("_", "-") != "utf-8":  # the locale's, as files are all in UTF-8
        return (
            f"{error.object!r} cannot be written in this system's encoding, {error.encoding}: set the environment "
            "variable PYTHONUTF8=1, or LC_ALL to a locale of UTF-8 such as C.UTF-8"
        )
    if any("\udc80" <= character <= "\udcff" for character in error.object[error.start : error.end]):
        return (
            f"{error.object[:200]!r} holds a name that is no UTF-8: set the environment variable PYTHONUTF8=1 if "
            "LC_ALL is no locale of UTF-8, else rename the file"
        )
    return None


def never_fail_to_print() -> None:
    """Where the terminal, or the log that output is sent to, has no UTF-8, other characters are shown as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a notebook or a test has put something else in its place
            stream.reconfigure(errors="backslashreplace")


def _expand_home(arguments: argparse.Namespace) -> None:
    """`~/…` in every argument: shells expand it in `--out ~/x`, but not in `--out=~/x`."""

    def expanded(value: object) -> object:
        if isinstance(value, list):
            return [expanded(item) for item in value]
        if isinstance(value, str | Path) and str(value).split("/")[0] == "~":
            return type(value)(os.path.expanduser(value))
        return value

    for name, value in vars(arguments).items():
        setattr(arguments, name, expanded(value))


def add_traceback(parser: argparse.ArgumentParser) -> None:
    """Add `--traceback`: `run` does so for a command, but not for its subcommands."""
    parser.add_argument(
        "--traceback", action="store_true", default=argparse.SUPPRESS, help="show where an error was raised"
    )


def quieten_libraries() -> None:
    """No bar for every part of every model that is loaded; the programs say what they do themselves."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # for a transformers that is still to be imported
    if "transformers" in sys.modules:
        sys.modules["transformers"].utils.logging.disable_progress_bar()


def number(kind: type, least: float, most: float | None = None) -> Callable[[str], int | float]:
    """For `add_argument(type=…)`: a number of this kind, from `least` to `most`."""

    def parse(text: str) -> int | float:
        value = kind(text)
        if not least <= value <= (value if most is None else most):
            raise argparse.ArgumentTypeError(
                f"{text}; expected {f'at least {least}' if most is None else f'{least} to {most}'}"
            )
        return value

    parse.__name__ = kind.__name__  # as argparse names it where the text is no number
    return parse


def require_writable(folder: str, key: str) -> None:
    """Before minutes of work: check that results can be written to `folder`, which need not exist yet.

    Raises:
        UserError: it, or a folder above it, is a file; or there is no permission to write.
    """
    path = Path(folder).absolute()
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if not nearest.is_dir():
        raise UserError(f"{key} = {folder}: {nearest} is a file; expected a folder, there or to be made")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{key} = {folder}: no permission to write in {nearest}; choose another folder")

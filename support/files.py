"""Files and folders that are written whole or not at all, and strict JSON."""

import errno
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NO_REPLACING = (errno.EEXIST, errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
"""How file systems that cannot replace a file say so."""
LOST = (errno.EIO, errno.ENOSPC, errno.EDQUOT)
"""What syncing fails with where content has not reached the disk; with anything else, it is not offered there."""


def write_whole(path: Path, content: str | bytes | Callable[[Path], object], *, in_cache: bool = False) -> None:
    """Write a file so that a reader finds the old or the new content, never half of it, whenever this process ends.

    Args:
        content: text (written as UTF-8), bytes, or what writes to the path that it is given.
        in_cache: for files that can be made again, perhaps by several processes at once: each has a draft of its own,
            and nobody waits for the disk.
    """
    path = path.resolve()  # a link stays one
    if path.exists() and not path.is_file():  # a pipe or a device, which nothing may replace
        _fill(path, content)
        return
    draft = path.with_name(f".{uuid.uuid4().hex if in_cache else path.name}.tmp")
    try:
        _fill(draft, content)
        if not in_cache:
            _sync(draft)
        replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _fill(path: Path, content: str | bytes | Callable[[Path], object]) -> None:
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def replace(draft: Path, path: Path) -> None:
    """Give a file its name, in the place of the file that has it."""
    try:
        os.replace(draft, path)
    except OSError as error:
        folder = path.is_dir() and not path.is_symlink()
        if error.errno not in NO_REPLACING or not os.path.lexists(path) or folder:
            raise
        before = path.with_name(f".{path.name}.before")  # some mounted drives rename to free names only
        before.unlink(missing_ok=True)
        os.rename(path, before)
        try:
            os.rename(draft, path)
        except OSError:
            os.rename(before, path)
            raise
        before.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write `jsonable(value)` whole."""
    write_whole(path, json.dumps(jsonable(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def jsonable(value: Any) -> Any:
    """The same with null in the place of NaN and infinity, which JSON cannot say, however deep."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A draft folder that takes `folder`'s name once all in it is on disk. After an error nothing has changed; after a
    kill `recover` gives the old folder or the new one. What an earlier killed process left is deleted."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder)
    draft = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        for path in sorted(draft.rglob("*"), reverse=True):
            _sync(path)
        _sync(draft)
        _put_in_place(draft, folder)
        _sync(folder.parent)
    finally:
        recover(folder)
        shutil.rmtree(draft, ignore_errors=True)


def recover(folder: Path) -> None:
    """Undo a replacement that was killed between its two renames; to be called before a folder is read."""
    if not folder.exists() and _previous(folder).is_dir():
        with suppress(FileNotFoundError):  # another process was first
            os.replace(_previous(folder), folder)


def _put_in_place(draft: Path, folder: Path) -> None:
    """Give the draft its name; the folder that had it is renamed first, and deleted last."""
    while True:
        if folder.exists():
            shutil.rmtree(_previous(folder), ignore_errors=True)
            os.replace(folder, _previous(folder))
        try:
            os.replace(draft, folder)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # a reader has put the old one back meanwhile
                raise
    shutil.rmtree(_previous(folder), ignore_errors=True)


def _previous(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.previous")


def _sync(path: Path) -> None:
    """Have a file, or a folder's list of names, on disk before what follows, where the file system can do that."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in LOST:
            raise

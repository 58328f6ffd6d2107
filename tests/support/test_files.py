"""Files and folders are the old ones or the new ones, whole, whatever stops the process that writes them."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import shutil
import time
from itertools import count
from pathlib import Path

import pytest

from support.files import new_folder, recover, write_json, write_whole
from training.run_folder import STATE_FOLDER, RunFolder, find_resume

FORKED = multiprocessing.get_context("fork")
KILLED = 9


def write_folder(folder: Path, text: str) -> None:
    with new_folder(folder) as draft:
        (draft / STATE_FOLDER).mkdir()
        for name in ("a", f"{STATE_FOLDER}/b"):
            (draft / name).write_text(text)


def texts_in(folder: Path) -> set[str]:
    return {(folder / name).read_text() for name in ("a", f"{STATE_FOLDER}/b")}


def killed_at(step: int, folder: Path) -> bool:
    """Replace the folder in a process that is killed at a step of it; False where there are not as many steps."""

    def work() -> None:
        steps = count()

        def watched(function):
            def call(*arguments, **named):
                if next(steps) == step:
                    os._exit(KILLED)
                return function(*arguments, **named)

            return call

        os.replace, shutil.rmtree, os.fsync = watched(os.replace), watched(shutil.rmtree), watched(os.fsync)
        write_folder(folder, "new")

    process = FORKED.Process(target=work)
    process.start()
    process.join()
    assert process.exitcode in (0, KILLED)
    return process.exitcode == KILLED


def test_a_kill_between_any_two_steps_leaves_the_old_folder_or_the_new(tmp_path: Path) -> None:
    found = []
    for step in count():
        folder = tmp_path / str(step) / "checkpoint_000001"
        write_folder(folder, "old")
        killed = killed_at(step, folder)
        (folder.parent / "last").symlink_to("checkpoint_000001")
        assert find_resume(str(folder.parent / "last"), RunFolder(tmp_path / "other")) == folder.resolve()
        (text,) = texts_in(folder)
        found.append(text)
        RunFolder(folder.parent).sweep()
        assert sorted(path.name for path in folder.parent.iterdir()) == ["checkpoint_000001", "last"]
        if not killed:
            break
    assert set(found) == {"old", "new"} and found == sorted(found, reverse=True) and found[-1] == "new"


def test_a_run_finds_a_checkpoint_whose_replacement_was_killed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_folder(tmp_path / "checkpoint_000001", "x")
    for look in (run.last, run.best):
        run.point("best", tmp_path / "checkpoint_000001")
        os.replace(tmp_path / "checkpoint_000001", tmp_path / "checkpoint_000001.previous")
        assert look() == tmp_path / "checkpoint_000001"


def test_what_a_killed_write_left_is_cleaned_by_the_next(tmp_path: Path) -> None:
    for name in (".a.tmp", "a.previous"):
        write_folder(tmp_path / name, "debris")
    write_folder(tmp_path / "a", "new")
    (tmp_path / ".b.tmp").write_text("debris, longer than what is written")
    write_whole(tmp_path / "b", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert texts_in(tmp_path / "a") == {"new"} and (tmp_path / "b").read_text() == "new"


def save_for_ever(folder: Path, saved) -> None:
    for number in count(1):
        write_folder(folder, str(number))
        saved.set()


def test_killed_saves_leave_a_whole_folder(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    for attempt in range(8):
        saved = FORKED.Event()
        process = FORKED.Process(target=save_for_ever, args=(folder, saved))
        process.start()
        assert saved.wait(timeout=60)
        time.sleep(0.0007 * attempt)
        process.kill()
        process.join()
        recover(folder)
        assert len(texts_in(folder)) == 1


def test_a_reader_that_puts_the_old_folder_back_does_not_stop_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "last"
    write_folder(folder, "old")
    replace, calls = os.replace, count()

    def read_meanwhile(source: Path, target: Path) -> None:
        replace(source, target)
        if next(calls) == 0:
            recover(folder)

    monkeypatch.setattr(os, "replace", read_meanwhile)
    write_folder(folder, "new")
    assert texts_in(folder) == {"new"} and [path.name for path in tmp_path.iterdir()] == ["last"]


@pytest.mark.parametrize("content", ["old or new", b"old or new", lambda draft: draft.write_text("old or new")])
@pytest.mark.parametrize("in_cache", [False, True])
def test_a_file_is_written_whole(tmp_path: Path, content, in_cache: bool) -> None:
    path = tmp_path / "file"
    write_whole(path, content, in_cache=in_cache)
    assert path.read_text() == "old or new"

    def half(draft: Path) -> None:
        draft.write_text("ha")
        assert draft.parent == path.parent and path.read_text() == "old or new"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_whole(path, half, in_cache=in_cache)
    assert path.read_text() == "old or new" and list(tmp_path.iterdir()) == [path]


def test_json_says_what_json_can_say(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [math.nan, 1.5, (math.inf,)], "b": "é"})
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == {"a": [None, 1.5, [None]], "b": "é"} and "é" in text


def test_links_stay_and_pipes_are_written_to(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "link.json").symlink_to("results/real.json")
    write_whole(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "results" / "real.json").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(tmp_path / "pipe", "through")
    assert os.read(reader, 100) == b"through" and (tmp_path / "pipe").is_fifo()
    os.close(reader)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF])
def test_a_file_system_that_cannot_sync_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    write_whole(tmp_path / "file", "text")
    write_folder(tmp_path / "folder", "text")
    assert (tmp_path / "file").read_text() == "text" and texts_in(tmp_path / "folder") == {"text"}


def test_a_folder_that_cannot_be_opened_for_syncing_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path, *rest) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with new_folder(tmp_path / "folder") as draft:
            (draft / "file").write_text("text")
    assert (tmp_path / "folder" / "file").read_text() == "text"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_what_did_not_reach_the_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    write_whole(tmp_path / "file", "old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        write_whole(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"


def only_free_names(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A file system that renames to names which nothing has."""
    real = os.rename

    def rename(source, target) -> None:
        if os.path.lexists(target):
            raise OSError(number, os.strerror(number), str(source), None, str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", rename)
    monkeypatch.setattr(os, "rename", rename)


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EPERM, errno.EACCES])
def test_a_file_is_replaced_where_renaming_does_not_replace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    only_free_names(monkeypatch, number)
    for text in ("first", "second", "third"):
        write_whole(tmp_path / "file", text)
        assert (tmp_path / "file").read_text() == text and len(list(tmp_path.iterdir())) == 1


def test_what_was_there_stays_where_its_successor_cannot_get_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "file", "old")
    only_free_names(monkeypatch, errno.EEXIST)
    free = os.rename

    def rename(source, target) -> None:
        if str(source).endswith(".tmp"):
            raise OSError(errno.EIO, "Input/output error")
        free(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="Input/output"):
        write_whole(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1

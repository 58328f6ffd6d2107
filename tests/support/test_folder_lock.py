"""One process at a time in a folder; the dead make room for the living."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from support import folder_lock
from support.command_line import UserError
from support.folder_lock import LOCK_FILE, SILENCE_S, FolderInUse, Owner, locked, locked_by_first, require_held
from tests.conftest import ROOT
from tests.locks import left_by

HOLDER = """
import sys, time
from support.folder_lock import locked
with locked(sys.argv[1], "training", "wait"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process that has `tmp_path / "run"`, until its input ends."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def taken(folder: Path) -> list[str]:
    """What is said where the folder can be taken."""
    said: list[str] = []
    with locked(folder, "evaluation", "wait", say=said.append):
        assert (folder / LOCK_FILE).exists()
    assert not list(folder.glob(".*"))
    return said


def test_a_second_process_is_told_who_since_when_and_what_to_do(tmp_path: Path, holder: subprocess.Popen) -> None:
    folder = tmp_path / "run"
    owner = json.loads((folder / LOCK_FILE).read_text())
    with pytest.raises(FolderInUse) as refused, locked(folder, "training", "choose another folder"):
        pass
    message = str(refused.value)
    assert "\n" not in message and message.startswith(f"{folder} is in use by process {holder.pid} on {owner['host']}")
    assert (
        owner["since"] in message and "choose another folder" in message and f"delete {folder / LOCK_FILE}" in message
    )
    holder.communicate(timeout=60)
    assert taken(folder) == []


def test_a_stopped_process_is_alive_however_long_it_is_silent(tmp_path: Path, holder: subprocess.Popen) -> None:
    holder.send_signal(signal.SIGSTOP)
    os.utime(tmp_path / "run" / LOCK_FILE, (1, 1))
    with pytest.raises(FolderInUse):
        taken(tmp_path / "run")
    holder.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_gives_the_lock_back(tmp_path: Path, holder: subprocess.Popen, number: signal.Signals) -> None:
    holder.send_signal(number)
    assert holder.wait(timeout=60) == -number  # as without a lock
    assert not (tmp_path / "run").exists()  # it was made for the lock, and nothing came into it


def test_a_killed_process_makes_room_even_before_its_parent_has_noticed(
    tmp_path: Path, holder: subprocess.Popen
) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while folder_lock._started(holder.pid) != "ended":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (said,) = taken(tmp_path / "run")
    assert f"process {holder.pid} on " in said and "has ended without giving it back; taking the folder over" in said


def test_an_error_gives_the_lock_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path, "training", "wait"):
        1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "silent_s", "free"),
    [
        ({"pid": 2**22 + 7}, 0, True),  # no such process
        ({"started": "1"}, 0, True),  # the number is another process' now
        ({"host": "elsewhere"}, 0, False),
        ({"host": "elsewhere"}, SILENCE_S - 60, False),
        ({"host": "elsewhere"}, SILENCE_S + 60, True),
        ({"boot": "another"}, 0, False),  # two machines of one name
        ({"boot": "another"}, SILENCE_S + 60, True),
        ({"namespace": "pid:[1]", "pid": 1}, 0, False),  # another container of this machine
        ({"namespace": "pid:[1]", "pid": 1}, SILENCE_S + 60, True),
        ({}, 10 * SILENCE_S, False),  # alive
    ],
)
def test_who_is_dead(tmp_path: Path, changes: dict, silent_s: float, free: bool) -> None:
    left_by(tmp_path / "run", silent_s, **changes)
    if free:
        assert len(taken(tmp_path / "run")) == 1
        return
    with pytest.raises(FolderInUse) as refused:
        taken(tmp_path / "run")
    assert ("last sign of life" in str(refused.value)) == bool(changes)
    assert (tmp_path / "run" / LOCK_FILE).exists() and len(list((tmp_path / "run").iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 3}', b"\xff"])
def test_a_lock_that_says_nothing_counts_until_it_is_old(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "WRITING_S", 0.01)
    lock = tmp_path / LOCK_FILE
    lock.write_bytes(content)
    with pytest.raises(FolderInUse, match="another process"):
        taken(tmp_path)
    os.utime(lock, (1, 1))
    assert len(taken(tmp_path)) == 1


def test_of_many_that_come_at_once_one_has_it(tmp_path: Path) -> None:
    """Over a dead owner's lock, too."""
    left_by(tmp_path / "run", started="1")
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    crowd = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(6)
    ]
    losers = [process for process in crowd if process.stdout.readline() == b""]
    assert len(losers) == 5
    for process in crowd:
        process.communicate(timeout=60)
    assert sorted(process.returncode for process in crowd) == [0, 1, 1, 1, 1, 1]


def test_an_owner_that_lost_its_folder_writes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that was suspended for longer than others wait."""
    with locked(tmp_path, "training", "wait"):
        left_by(tmp_path, host="elsewhere", token="another")
        require_held(tmp_path)  # nothing is read within the first seconds
        monkeypatch.setattr(folder_lock, "RECHECK_S", 0.0)
        with pytest.raises(FolderInUse, match=r"on elsewhere .* has taken this folder over"):
            require_held(tmp_path)
    assert json.loads((tmp_path / LOCK_FILE).read_text())["host"] == "elsewhere"  # theirs is left to them
    require_held(tmp_path)


def test_the_time_of_a_held_lock_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "RENEWAL_S", 0.02)
    with locked(tmp_path, "training", "wait"):
        os.utime(tmp_path / LOCK_FILE, (1, 1))
        deadline = time.monotonic() + 30
        while (tmp_path / LOCK_FILE).stat().st_mtime == 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_the_same_process_may_ask_twice(tmp_path: Path) -> None:
    with locked(tmp_path / "run", "training", "wait"):
        with locked(tmp_path / "run", "training", "wait"):
            pass
        assert (tmp_path / "run" / LOCK_FILE).exists()
    assert not (tmp_path / "run").exists()


def test_no_secret_of_the_command_line_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--options", "model.token=hf_secret"])
    assert "hf_secret" not in json.dumps(asdict(Owner.this_process("training")))


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(30, "Read-only file system")])
def test_a_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def refuse(*arguments: object) -> int:
        raise error

    monkeypatch.setattr(os, "open", refuse)
    refused = pytest.raises(UserError, match=r"cannot be locked: .*; choose another folder$")
    with refused, locked(tmp_path, "training", "choose another folder"):
        pass


def test_a_disk_that_is_full_in_the_middle_of_the_lock_is_no_other_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, room = os.write, [20]

    def until_full(descriptor: int, content: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        taken, room[0] = min(len(content), room[0]), 0
        return write(descriptor, content[:taken])

    monkeypatch.setattr(os, "write", until_full)
    with pytest.raises(UserError, match="no space left on the disk"), locked(tmp_path / "run", "training", "x"):
        pass
    assert not list((tmp_path / "run").glob("*")) and not list((tmp_path / "run").glob(".*"))


def test_the_first_process_takes_it_for_all_and_all_are_told(tmp_path: Path, holder: subprocess.Popen) -> None:
    refusals: list[str | None] = []

    def exchange(value: str | None) -> list[str | None]:
        refusals.append(value)
        return [refusals[0]]

    group: Callable = lambda first: locked_by_first(  # noqa: E731
        tmp_path / "run", "training", "wait", first=first, exchange=exchange
    )
    for first in (True, False):
        with pytest.raises(FolderInUse, match=f"in use by process {holder.pid}"), group(first):
            pass
    assert refusals[1] is None  # the second one has not looked itself

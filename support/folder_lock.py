"""One process at a time in a folder, on one machine or on several that share it.

The lock is a file in the folder that names its owner: host, process, when it began. A second process stops with one
sentence that says so. The lock goes when its owner ends, with an error or by a signal too; after `kill -9` or a power
cut the file stays, and the next process takes it over:

- on the same machine as soon as the owner's process is gone, or its number is another process' (a process that is
  merely stopped is not gone);
- from another machine or container, whose processes cannot be seen, once the owner has not renewed the file's time
  for `SILENCE_S`. Both times are the file server's, so that clocks need not agree.

Only what every file system has is used: exclusive creation, no hard links and no `flock`. An owner that was silent for
so long (a suspended machine) finds out that it has lost its folder before it writes again: `require_held`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from support.command_line import UserError, disk_problem

LOCK_FILE = ".lock"
RENEWAL_S = 30.0
SILENCE_S = 600.0  # many renewals: a model may load for minutes, and NFS shows times a minute late
RECHECK_S = 5.0  # a process stopped for less cannot have lost its lock
WRITING_S = 1.0  # between a file's creation and its content
HELD_HERE: dict[Path, FolderLock] = {}


class FolderInUse(UserError):
    """Another process works in the folder."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who holds a lock."""

    token: str
    """Of this lock alone."""
    what: str
    """`training`, `evaluation`."""
    host: str
    boot: str | None
    """The kernel's id since it started: two machines may have one name."""
    namespace: str | None
    """In which process numbers count: a container has its own."""
    pid: int
    started: str | None
    """When the process began: its number may be another's later."""
    since: str

    @classmethod
    def this_process(cls, what: str) -> Owner:
        pid = os.getpid()
        return cls(
            token=uuid.uuid4().hex,
            what=what,
            **_machine(),
            pid=pid,
            started=_started(pid),
            since=datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        )

    @classmethod
    def read(cls, path: Path) -> Owner | None:
        """The owner that a lock file names; None where it holds nothing that can be read.

        Raises:
            FileNotFoundError: there is no such file.
        """
        try:
            content = json.loads(path.read_bytes())
            return cls(**{field.name: content[field.name] for field in fields(cls)})
        except (ValueError, KeyError, TypeError):
            return None

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    def ended(self) -> bool | None:
        """Whether its process is gone; None where that cannot be seen from here."""
        if os.name != "posix" or {name: getattr(self, name) for name in _machine()} != _machine():
            return None
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:  # another user's
            pass
        started = _started(self.pid)
        return started != self.started if started and self.started else None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.what}, since {self.since})"


def _machine() -> dict[str, str | None]:
    boot = namespace = None
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return {"host": socket.gethostname(), "boot": boot, "namespace": namespace}


def _started(pid: int) -> str | None:
    """When a process began, or `ended` for one that is dead and not yet collected; None where it is not told."""
    try:
        state, *others = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        with suppress(OSError, subprocess.SubprocessError):  # a system without /proc
            command, english = ["ps", "-o", "lstart=", "-p", str(pid)], os.environ | {"LC_ALL": "C"}
            shown = subprocess.run(
                command, capture_output=True, encoding="utf-8", errors="replace", timeout=10, env=english
            ).stdout
            return shown.strip() or None
        return None
    return "ended" if state in (b"Z", b"X") else others[18].decode()


class FolderLock:
    """The lock of one folder; see `locked`."""

    def __init__(self, folder: Path, what: str, advice: str) -> None:
        self.folder = folder
        self.path = folder / LOCK_FILE
        self.owner = Owner.this_process(what)
        self.advice = advice
        self.took_over: str | None = None
        self._made: list[Path] = []
        self._ends = threading.Event()
        self._checked = time.monotonic()

    def take(self) -> None:
        """Take the lock.

        Raises:
            FolderInUse: another process has it.
            UserError: the folder cannot be written.
        """
        try:
            self._make_folder()
            while not self._create():
                with suppress(FileNotFoundError):
                    self._clear_dead()
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be locked: {disk_problem(error)}; {self.advice}") from error
        HELD_HERE[self.folder] = self
        threading.Thread(target=self._renew, name="folder lock", daemon=True).start()

    def release(self) -> None:
        """Give the lock back, and delete the folder if it was made for it and stayed empty. Never raises."""
        if os.getpid() != self.owner.pid:  # a forked worker
            return
        self._ends.set()
        HELD_HERE.pop(self.folder, None)
        with suppress(OSError):
            if self._is_ours():
                self.path.unlink()
            for folder in self._made:
                folder.rmdir()

    def require_held(self) -> None:
        """Before something is written: raise `FolderInUse` if another process has taken the folder over meanwhile."""
        now = time.monotonic()
        if now - self._checked > RECHECK_S:
            with suppress(OSError):  # a share that is away for a moment is no other owner
                if not self._is_ours():
                    raise FolderInUse(
                        f"{self.folder}: {_owner_of(self.path)} has taken this folder over, because this process gave "
                        f"no sign of life for {SILENCE_S / 60:.0f} minutes; nothing more was written there"
                    )
            self._checked = now

    def _make_folder(self) -> None:
        missing = [place for place in (self.folder, *self.folder.parents) if not place.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._made = missing

    def _create(self) -> bool:
        """Create the file; False where there is one."""
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            rest = self.owner.to_json()
            while rest:  # the last bytes of a full disk are taken before the next call fails
                rest = rest[os.write(descriptor, rest) :]
        except OSError:
            self.path.unlink()
            raise
        finally:
            os.close(descriptor)
        return self._is_ours()  # on a network, what counts is what the server has

    def _is_ours(self) -> bool:
        try:
            found = Owner.read(self.path)
        except FileNotFoundError:
            return False
        return found is not None and found.token == self.owner.token

    def _clear_dead(self) -> None:
        """Delete the lock of an owner that is dead; nothing where it has been given back meanwhile.

        Raises:
            FolderInUse: it is alive, or may be.
        """
        owner = Owner.read(self.path)
        if owner is None:
            time.sleep(WRITING_S)
            owner = Owner.read(self.path)
        ended = owner.ended() if owner else None
        silent_s = self._age_s(self.path)
        if not (ended or (ended is None and silent_s > SILENCE_S)):
            raise FolderInUse(self._refusal(owner, silent_s, seen=ended is False))
        with self._alone(), suppress(FileNotFoundError):  # two that find it dead might delete each other's new one
            if Owner.read(self.path) != owner or (not ended and self._age_s(self.path) <= SILENCE_S):
                return
            self.path.unlink()
        how = (
            "has ended without giving it back"
            if ended
            else f"has given no sign of life for {silent_s / 60:.0f} minutes"
        )
        self.took_over = f"{self.folder}: {owner or 'the process that had this folder'} {how}; taking the folder over"

    def _refusal(self, owner: Owner | None, silent_s: float, *, seen: bool) -> str:
        who = owner or "another process"
        sign = "" if seen else f", whose last sign of life is {max(silent_s, 0):.0f} s old,"
        sure = f"if you are sure that it has ended, delete {self.path}"
        return f"{self.folder} is in use by {who}{sign} and only one process may write there: {self.advice}; {sure}"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While a dead owner's file is deleted. Held for milliseconds: an older one was left by a kill."""
        guard = self.path.with_name(f"{LOCK_FILE}.takeover")
        with suppress(FileNotFoundError):
            if self._age_s(guard) > 2 * RENEWAL_S:
                guard.unlink()
        try:
            os.close(os.open(guard, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            message = f"{self.folder} is being taken over by another process at this moment: {self.advice}"
            raise FolderInUse(message) from None
        try:
            yield
        finally:
            guard.unlink(missing_ok=True)

    def _age_s(self, path: Path) -> float:
        """Seconds since a file was written or renewed, by the clock of the machine that has the disk."""
        probe = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            probe.write_bytes(b"")
            return probe.stat().st_mtime - path.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._ends.wait(RENEWAL_S):
            with suppress(OSError):
                if self._is_ours():
                    self._touch()

    def _touch(self) -> None:
        try:
            os.utime(self.path)
        except OSError:  # a file system without it
            self.path.write_bytes(self.owner.to_json())


def _owner_of(path: Path) -> str:
    try:
        return str(Owner.read(path) or "another process")
    except FileNotFoundError:
        return "another process"


@contextmanager
def locked(folder: str | Path, what: str, advice: str, *, say: Callable[[str], None] = print) -> Iterator[None]:
    """Hold a folder, which is made if it does not exist; it may be held by this process already.

    Args:
        what: what it is held for, for the others' messages: `training`.
        advice: what another process' user should do, for the error.
        say: is told where a dead owner's lock was taken over.

    Raises:
        FolderInUse: another process holds it.
        UserError: it cannot be made or written.
    """
    path = Path(folder).resolve()
    if path in HELD_HERE and HELD_HERE[path].owner.pid == os.getpid():
        yield
        return
    lock = FolderLock(path, what, advice)
    with ExitStack() as stack:
        stack.callback(lock.release)  # first: a signal may come while the lock is taken
        stack.enter_context(_released_by_signals(lock))
        lock.take()
        if lock.took_over:
            say(lock.took_over)
        yield


def require_held(folder: str | Path) -> None:
    """`FolderLock.require_held` where this process has locked the folder; else nothing."""
    lock = HELD_HERE.get(Path(folder).resolve())
    if lock is not None:
        lock.require_held()


@contextmanager
def locked_by_first(
    folder: str | Path,
    what: str,
    advice: str,
    *,
    first: bool,
    exchange: Callable[[Any], list[Any]],
    say: Callable[[str], None] = print,
) -> Iterator[None]:
    """`locked`, by the first of several processes for all of them; all raise where it is refused.

    `exchange` gives every process' value to every process.
    """
    refusal: UserError | None = None
    with ExitStack() as stack:
        if first:
            try:
                stack.enter_context(locked(folder, what, advice, say=say))
            except UserError as error:
                refusal = error
        message = exchange(None if refusal is None else str(refusal))[0]
        if message is not None:
            raise refusal or FolderInUse(message)
        yield


@contextmanager
def _released_by_signals(lock: FolderLock) -> Iterator[None]:
    """Give the lock back when a signal ends the process, where nothing else handles it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: object) -> None:
        lock.release()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [getattr(signal, name) for name in names if signal.getsignal(getattr(signal, name)) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            if signal.getsignal(number) is end:
                signal.signal(number, signal.SIG_DFL)

"""Lock files of other processes, for tests."""

import os
import time
from dataclasses import replace
from pathlib import Path

from support.folder_lock import LOCK_FILE, Owner


def left_by(folder: Path, silent_s: float = 0.0, **changes: object) -> None:
    """Write a lock file: this process', with changes, last renewed so long ago."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOCK_FILE).write_bytes(replace(Owner.this_process("training"), **changes).to_json())
    then = time.time() - silent_s
    os.utime(folder / LOCK_FILE, (then, then))

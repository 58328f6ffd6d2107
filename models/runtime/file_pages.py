"""Memory of weights' files that are mapped while a model is loaded.

A file's pages stay in the process once they were read. Where weights are rounded as they come, the file would so count
beside the model to the end of loading; nothing needs it any longer, and its pages can be read again.
"""

import ctypes
import mmap
import re
from collections.abc import Callable, Sequence
from pathlib import Path

WEIGHTS = ".safetensors"
_SMAPS = Path("/proc/self/smaps")
_HEAD = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ *(.*)$")  # the last is empty for memory without a file


def release(files: Sequence[str | Path]) -> int:
    """Give back the pages of these files that this process has mapped and not written to; bytes of the mappings.

    Linux only; elsewhere nothing happens. Mappings with pages that were written to are left alone: their content is
    in no file.
    """
    wanted = {str(Path(file).resolve()) for file in files}
    return _release(wanted.__contains__)


def release_weights() -> int:
    """`release` for every file of weights. A tensor that is still in its file reads its pages again."""
    return _release(lambda file: file.endswith(WEIGHTS))


def _release(wanted: Callable[[str], bool]) -> int:
    advice = getattr(mmap, "MADV_DONTNEED", None)
    if advice is None or not _SMAPS.exists():
        return 0
    library = ctypes.CDLL(None, use_errno=True)
    released, place = 0, None
    for line in _SMAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        head = _HEAD.match(line)
        if head:
            place = (int(head[1], 16), int(head[2], 16)) if wanted(head[3]) else None
        elif place and line.startswith("Anonymous:") and line.split()[1] == "0":
            start, stop = place
            if library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), ctypes.c_int(advice)) == 0:
                released += stop - start
    return released

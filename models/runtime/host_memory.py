"""The process' memory while weights are loaded: no fragmented heap, and no files that stay in memory.

**Heap.** Avoid heap fragmentation while loading. After glibc has freed large blocks, it takes blocks of up to 32 MiB
from its heap. Loading frees large tensors between weights that stay, which leaves gaps between these: with an encoder
that is rounded to 8 bits while it is loaded, 1 to 4 GiB for a model of 1 GiB, another amount in each run. Blocks that
are mapped one by one go back to the system when they are freed. After loading they would be slow: every layer's output
would be requested from the system.

**Files.** The pages of a mapped file stay in the process once they were read. Where weights are rounded while they are
loaded, the file would count as well until loading ends. Nothing needs it any more, and its pages can be read again.
"""

import ctypes
import functools
import mmap
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# Of malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3

WHILE_LOADING = 1 << 20
AFTERWARDS = 1 << 25
"""The largest threshold that glibc itself chooses, too."""

LEAST_WEIGHTS = 1 << 28
"""Bytes of files below which the gaps are small, and glibc's own thresholds better."""

WEIGHTS = ".safetensors"
_SMAPS = Path("/proc/self/smaps")
_HEAD = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ *(.*)$")  # the last is empty for memory without a file


@contextmanager
def large_blocks_mapped(weights: Iterable[str]) -> Iterator[None]:
    """While the context is open, blocks of a mebibyte or more go back to the system when they are freed.

    `weights` are the files, folders or hub names that are loaded. Where they are small, with another C library, and
    where the environment configures malloc (MALLOC_…, GLIBC_TUNABLES), nothing happens.
    """
    library = _glibc()
    if library is None or not _are_large(weights):
        yield
        return
    library.mallopt(M_MMAP_THRESHOLD, WHILE_LOADING)
    try:
        yield
    finally:
        library.mallopt(M_MMAP_THRESHOLD, AFTERWARDS)
        library.mallopt(M_TRIM_THRESHOLD, 2 * AFTERWARDS)


def _are_large(weights: Iterable[str]) -> bool:
    """Whether they take `LEAST_WEIGHTS` or more on disk; hub names, whose size is unknown, count as large."""
    total = 0
    for path in map(Path, weights):
        if not path.exists():
            return True
        total += sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]) if file.is_file())
    return total >= LEAST_WEIGHTS


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" and not chosen else None


def release_pages(files: Sequence[str | Path]) -> int:
    """Free the pages of these files that this process has mapped and not written to; returns the mappings' bytes.

    Linux only; elsewhere nothing happens. Mappings with written pages are left alone: their content is in no file.
    """
    wanted = {str(Path(file).resolve()) for file in files}
    return _release(wanted.__contains__)


def release_weight_pages() -> int:
    """`release_pages` for every file of weights. A tensor that is still in its file reads its pages again."""
    return _release(lambda file: file.endswith(WEIGHTS))


def _release(wanted: Callable[[str], bool]) -> int:
    advice = getattr(mmap, "MADV_DONTNEED", None)
    if advice is None or not _SMAPS.exists():
        return 0
    library = ctypes.CDLL(None, use_errno=True)
    released, mapping = 0, None
    for line in _SMAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        head = _HEAD.match(line)
        if head:
            mapping = (int(head[1], 16), int(head[2], 16)) if wanted(head[3]) else None
        elif mapping and line.startswith("Anonymous:") and line.split()[1] == "0":
            start, stop = mapping
            if library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), ctypes.c_int(advice)) == 0:
                released += stop - start
    return released

"""How the C library hands out memory while weights are loaded.

Once it has seen large blocks freed, glibc takes blocks of up to 32 MiB from its heap. Loading frees large tensors
between weights that stay, which so leave holes between them: with an encoder that is rounded to 8 bits while it is
loaded, 1 to 4 GiB beside a model of 1 (they differ from run to run). Blocks of their own go back to the system when
they are freed. For what comes after loading they are slow: every layer's output would be taken from the system anew.
"""

import ctypes
import functools
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Of malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3

WHILE_LOADING = 1 << 20
AFTERWARDS = 1 << 25
"""Where glibc's own threshold ends, too."""


LEAST_WEIGHTS = 1 << 28
"""Bytes of files below which the holes are small, and glibc's own thresholds the better ones."""


@contextmanager
def large_blocks_apart(weights: Iterable[str]) -> Iterator[None]:
    """While the context is open, blocks of a mebibyte or more go back to the system when they are freed.

    `weights` are the files, folders or hub names that are loaded. Where they are small, with another C library, and
    where the environment sets it up (MALLOC_…, GLIBC_TUNABLES), nothing happens.
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
    """Whether they take `LEAST_WEIGHTS` or more on the disk; of hub names it is not known, so they count as large."""
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

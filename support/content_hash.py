"""Hashes of files' contents, by which a result knows that what it depends on has not changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.units import MIB

READERS = 4
"""Threads: reading and hashing both leave the interpreter alone."""
WHOLE_BYTES = 64 * MIB
"""Weights up to this size are read whole."""
SAMPLE_BYTES = 64 * 1024
SAMPLE_EVERY_BYTES = 4 * MIB


class ContentHashes:
    """Hashes of files, each read once as long as its size and time stay the same."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], str] = {}

    def of_files(self, paths: Iterable[str | Path]) -> dict[str, str]:
        """Path -> hash of the whole content, or what it is if it is no file that can be read."""
        distinct = list(dict.fromkeys(map(str, paths)))
        with ThreadPoolExecutor(READERS) as readers:
            return dict(zip(distinct, readers.map(self.of_file, distinct), strict=True))

    def of_file(self, path: str | Path) -> str:
        """Hash of the whole content; `absent` or the error's number where there is none."""
        return self._remembered("whole", path, _whole)

    def of_weights(self, path: str | Path) -> str:
        """Hash of a large file: size, time, the first and the last MiB, and 64 KiB of every 4 MiB between them.

        The first MiB holds a safetensors file's header. Other weights of the same shapes differ in every block. What
        this does not notice: a change of few bytes between two samples that also keeps the file's time.
        """
        return self._remembered("weights", path, _sampled)

    def _remembered(self, kind: str, path: str | Path, read) -> str:
        try:
            stat = os.stat(path)
            key = (kind, str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)
            if key not in self._known:
                self._known[key] = read(Path(path), stat)
            return self._known[key]
        except FileNotFoundError:
            return "absent"
        except OSError as error:
            return f"error {error.errno}"
        except UnicodeEncodeError:  # a locale without UTF-8, in which no such file can be opened
            raise
        except ValueError:
            return "no file's name"


def _whole(path: Path, _stat: os.stat_result) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sampled(path: Path, stat: os.stat_result) -> str:
    if stat.st_size <= WHOLE_BYTES:
        return _whole(path, stat)
    digest = hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns}".encode())
    with path.open("rb") as file:
        digest.update(file.read(MIB))
        for start in range(SAMPLE_EVERY_BYTES, stat.st_size - MIB, SAMPLE_EVERY_BYTES):
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES))
        file.seek(-MIB, os.SEEK_END)
        digest.update(file.read())
    return digest.hexdigest()


def digest_of(parts: Mapping[str, str] | Iterable[object]) -> str:
    """One hash of several, in their order (of a mapping: of its names)."""
    values = [item for name in sorted(parts) for item in (name, parts[name])] if isinstance(parts, Mapping) else parts
    digest = hashlib.sha256()
    for value in values:
        text = str(value).encode("utf-8", "surrogatepass")
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()

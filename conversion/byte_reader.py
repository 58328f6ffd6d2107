"""A binary file read from its start, every length checked against the file's end before it is used."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from support.command_line import UserError


class ByteReader:
    """A little-endian file of numbers, texts and tensors. The tensors' bytes stay in the file until they are used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        size = path.stat().st_size
        # copies on writing: torch warns of arrays that it must not write to
        self._bytes = np.memmap(path, mode="c", dtype=np.uint8) if size else np.empty(0, np.uint8)

    @property
    def left(self) -> int:
        """Bytes between here and the file's end."""
        return len(self._bytes) - self.position

    def take(self, count: int, what: str) -> np.ndarray:
        """The next `count` bytes, as uint8; `what` they are, for the error where the file ends before."""
        if not 0 <= count <= self.left:
            raise UserError(
                f"{self.path} is truncated or damaged: {what} needs {count:,} bytes at byte {self.position:,}, and "
                f"{self.left:,} are left; copy or download it again"
            )
        self.position += count
        return self._bytes[self.position - count : self.position]

    def numbers(self, types: str, what: str) -> tuple[int, ...]:
        """The next numbers, by their letters in `struct`."""
        return struct.unpack(f"<{types}", self.take(struct.calcsize(f"<{types}"), what).tobytes())

    def text(self, count: int, what: str) -> str:
        """The next `count` bytes as UTF-8."""
        at = self.position
        raw = self.take(count, what).tobytes()
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.path} is damaged: {what} at byte {at:,} is no text ({raw[:20]!r}); copy or download it again"
            ) from error

"""The quantised types of ggml that whisper.cpp writes: blocks of 32 values, decoded as ggml-quants.c does.

A block has a scale `d` (float16), with `_1` types a least value `m` (float16), with 5-bit types one word with the fifth
bits, then the values: a byte each, or 16 bytes whose low halves are the values 0-15 and whose high halves 16-31.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 32  # values


@dataclass(frozen=True, kw_only=True)
class BlockType:
    """How one quantised type stores a block."""

    name: str
    bits: int
    has_least: bool
    """Values are `d * q + m`; else `d * (q - 2 ** (bits - 1))`, and of 8 bits `d * q` with a sign."""

    @property
    def block_bytes(self) -> int:
        return 2 + 2 * self.has_least + BLOCK * self.bits // 8

    def decode(self, raw: np.ndarray) -> Tensor:
        """Bytes of whole blocks -> values, one behind the other, float32."""
        blocks = raw.reshape(-1, self.block_bytes)
        scale = _half(blocks, 0)
        values = self._integers(blocks[:, 2 + 2 * self.has_least :]) * scale
        if self.has_least:
            values += _half(blocks, 2)
        return torch.from_numpy(values.reshape(-1))

    def _integers(self, content: np.ndarray) -> np.ndarray:
        """Content of blocks [blocks, bytes] -> integers as float32 [blocks, 32]."""
        if self.bits == 8:
            return content.view(np.int8).astype(np.float32)
        halves = content[:, -BLOCK // 2 :]
        integers = np.concatenate([halves & 0x0F, halves >> 4], axis=1)
        if self.bits == 5:
            fifth = np.unpackbits(content[:, :4], axis=1, bitorder="little")  # bit j belongs to value j
            integers |= fifth << 4
        return integers.astype(np.float32) - (0 if self.has_least else 2 ** (self.bits - 1))


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """A float16 of every block [blocks, 1], as float32."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


BLOCK_TYPES = {
    2: BlockType(name="q4_0", bits=4, has_least=False),
    3: BlockType(name="q4_1", bits=4, has_least=True),
    6: BlockType(name="q5_0", bits=5, has_least=False),
    7: BlockType(name="q5_1", bits=5, has_least=True),
    8: BlockType(name="q8_0", bits=8, has_least=False),
}
"""By ggml's number of the type."""

OTHER_TYPES = {
    10: "q2_k",
    11: "q3_k",
    12: "q4_k",
    13: "q5_k",
    14: "q6_k",
    15: "q8_k",
    30: "bfloat16",
}
"""Names of types that are not read, for errors."""

"""The quantised types of ggml, in blocks of 32 or 256 values, dequantised by the package gguf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conversion.gguf_file import require_gguf_package


@dataclass(frozen=True, kw_only=True)
class BlockType:
    """One quantised type."""

    name: str
    values: int
    """In a block."""
    bytes: int
    number: Any
    """As the package has it."""

    def decode(self, raw: np.ndarray) -> Tensor:
        """Bytes of whole blocks -> values, one behind the other, float32."""
        from gguf import dequantize

        return torch.from_numpy(np.array(dequantize(np.array(raw), self.number), dtype=np.float32))


def block_type(number: int) -> BlockType | str:
    """A type by ggml's number; for one that nobody dequantises, how a message names it."""
    require_gguf_package()
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if number not in set(GGMLQuantizationType):
        return f"number {number}"
    kind = GGMLQuantizationType(number)
    values, size = GGML_QUANT_SIZES[kind]
    result = BlockType(name=kind.name.lower(), values=values, bytes=size, number=kind)
    try:
        result.decode(np.zeros(size, np.uint8))
    except NotImplementedError:
        return result.name
    return result

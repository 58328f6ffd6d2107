"""Tensors of a source, whose bytes are read and decoded when they are written, one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor in a file."""

    shape: tuple[int, ...]
    type: str
    """As it is stored: float32, float16, bfloat16, int8, q5_0, …"""
    load: Callable[[], Tensor]
    """The values: of a floating type, in `shape`. What was quantised is float32."""

    @property
    def size(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    def rows(self, start: int, stop: int) -> StoredTensor:
        """A part along the first dimension."""
        return replace(self, shape=(stop - start, *self.shape[1:]), load=lambda: self.load()[start:stop])

    def fits(self, dtype: torch.dtype) -> bool:
        """Whether `dtype` holds every value exactly; what was quantised is not looked at."""
        if f"torch.{self.type}" == str(dtype):
            return True
        if self.type not in ("float32", "float64"):
            return False
        values = self.load()
        return torch.equal(values.to(dtype).to(values.dtype), values)


def stored(tensor: Tensor) -> StoredTensor:
    """A tensor that is there already, or that lies in a mapped file."""
    return StoredTensor(shape=tuple(tensor.shape), type=str(tensor.dtype).removeprefix("torch."), load=lambda: tensor)


def exact_dtype(tensors: Iterable[StoredTensor]) -> torch.dtype:
    """float16 or bfloat16 where it holds every value exactly, else float32."""
    tensors = sorted(tensors, key=lambda tensor: tensor.size)  # the small ones, of float32 more often, decide quickly
    for dtype in (torch.float16, torch.bfloat16):
        if all(tensor.fits(dtype) for tensor in tensors):
            return dtype
    return torch.float32


def main_type(tensors: Iterable[StoredTensor]) -> str:
    """The type that most values have, as a user would name the file."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.type] = counts.get(tensor.type, 0) + tensor.size
    return max(counts, key=counts.__getitem__)

"""Units that every program shares: samples a second, bytes, and how a number type is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GIB = 2**30
MIB = 1 << 20
SAMPLE_RATE = 16_000  # Hz, of every waveform in this program


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""An encoder's output, and masks made of lengths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import BoolTensor, LongTensor, Tensor


def length_mask(lengths: LongTensor, size: int) -> BoolTensor:
    """[B] lengths -> [B, size], True inside each row's length."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def key_mask(lengths: LongTensor, size: int, padded: bool | None = None) -> BoolTensor | None:
    """`length_mask` for the keys of an attention; None where no row is padded: it then uses a faster kernel.

    `padded`: whether any row is; None checks, which waits for the device.
    """
    mask = length_mask(lengths, size)
    padded = not bool(mask.all()) if padded is None else padded
    return mask if padded else None


def zero_after(values: Tensor, lengths: LongTensor) -> Tensor:
    """[B, N, ...] with zeros where the second axis is past a row's length."""
    mask = length_mask(lengths, values.shape[1])
    return values.masked_fill(~mask.view(*mask.shape, *[1] * (values.ndim - 2)), 0)


@dataclass(frozen=True)
class Frames:
    """One encoder's output for a batch."""

    frames: Tensor  # [B, N, D]; without meaning after a clip's end
    lengths: LongTensor  # [B]

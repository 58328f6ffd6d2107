"""Matrices of an adapter file in 8 bits a number, with a 16-bit scale for each row: a connector in half its size.

In the file such a matrix has its own name, as int8, and `<name>.row_scale`. Reading gives float32 matrices back, so the
rest of the program knows nothing of it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

ROW_SCALE = ".row_scale"
LARGEST = 127
SMALLEST_MATRIX = 4096  # numbers; smaller ones would save nothing that counts


def round_rows(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The file's entries for a tensor of a connector: a large matrix in 8 bits, anything else in float16."""
    if not tensor.is_floating_point():
        return {name: tensor}
    if tensor.ndim != 2 or tensor.numel() < SMALLEST_MATRIX:
        return {name: tensor.to(torch.float16)}
    scales = (tensor.float().abs().amax(dim=1) / LARGEST).clamp(min=torch.finfo(torch.float16).tiny).to(torch.float16)
    values = (tensor.float() / scales.float()[:, None]).round().clamp(-LARGEST, LARGEST)
    return {name: values.to(torch.int8), name + ROW_SCALE: scales}


def restore_rows(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors, those in 8 bits as float32."""
    restored = {name: tensor for name, tensor in state.items() if not name.endswith(ROW_SCALE)}
    for name, scales in state.items():
        matrix = name.removesuffix(ROW_SCALE)
        if name.endswith(ROW_SCALE) and matrix in state:
            restored[matrix] = state[matrix].float() * scales.float()[:, None]
    return restored

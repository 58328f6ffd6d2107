"""GPTQ: round a layer's weights one input at a time, and correct the inputs after it for the error.

Frantar et al., 2022, arXiv:2210.17323: with H the second moments of the layer's inputs, rounding column i by an error e
changes the best values of the columns after it by e times row i of the upper Cholesky factor of H's inverse. Columns
are processed in blocks, so that most of the work is matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.quantization.gptq import GPTQSettings, StoredGPTQ
from support.command_line import UserError

BLOCK = 128  # columns rounded before the rest is updated
SHRINKS = 20
"""Ranges that are tried for each group, from its whole one down to `SHRINK_TO` of it."""
SHRINK_TO = 0.7
ERROR_NORM = 2.4  # for comparing ranges, as in the paper's code: between squares and the largest error


@dataclass(frozen=True)
class Rounded:
    """A weight `[out, in]` as integers, as in a file, and the numbers that these give."""

    integers: Tensor  # uint8 [out, in]
    zeros: Tensor  # int32 [groups, out]
    scales: Tensor  # float16 [groups, out]
    g_idx: Tensor  # int32 [in]
    weight: Tensor  # float32 [out, in]

    def stored(self, settings: GPTQSettings, bias: Tensor | None = None) -> StoredGPTQ:
        """The layer in the form of a file."""
        return StoredGPTQ.of(self.integers, self.zeros, self.scales, self.g_idx, settings, bias=bias)


def solve(weight: Tensor, hessian: Tensor, settings: GPTQSettings, *, damp: float = 0.01) -> Rounded:
    """Round `weight` `[out, in]` for inputs whose second moments are `hessian` `[in, in]`.

    `damp` times the mean of the diagonal is added to it. Where that does not make it positive definite (few calibration
    tokens), ten times as much is added, and so on up to the mean itself.

    Raises:
        UserError: inputs that are not finite.
    """
    values = weight.detach().float().clone()
    inputs = values.shape[1]
    moments = hessian.float().clone()
    diagonal = moments.diagonal()
    if not bool(torch.isfinite(diagonal).all()):
        raise UserError("GPTQ: the layer's inputs are not finite; calibrate in float32 or bfloat16")
    diagonal[diagonal == 0] = 1  # an input that is always zero: its weights are rounded independently
    order = (
        torch.argsort(diagonal, descending=True) if settings.desc_act else torch.arange(inputs, device=values.device)
    )
    values, moments = values[:, order], moments[order][:, order]
    factor = _inverse_factor(moments, damp)
    size = inputs if settings.group_size == -1 else settings.group_size
    integers = torch.empty_like(values, dtype=torch.uint8)
    rounded = torch.empty_like(values)
    all_scales, all_zeros = [], []
    for start in range(0, inputs, BLOCK):
        stop = min(start + BLOCK, inputs)
        block, errors = values[:, start:stop].clone(), torch.zeros_like(values[:, start:stop])
        for column in range(start, stop):
            here = column - start
            if column % size == 0:
                inside = block[:, here : here + size]
                beyond = values[:, stop : column + size]  # of a group larger than a block; current at its start
                scales, zeros = find_range(torch.cat([inside, beyond], dim=1), settings)
                all_scales.append(scales)
                all_zeros.append(zeros)
            integers[:, column] = _round(block[:, here], scales, zeros, settings.bits)
            rounded[:, column] = (integers[:, column] - zeros) * scales
            error = (block[:, here] - rounded[:, column]) / factor[column, column]
            block[:, here:] -= error[:, None] * factor[column, column:stop]
            errors[:, here] = error
        values[:, stop:] -= errors @ factor[start:stop, stop:]
    back = torch.argsort(order)
    return Rounded(
        integers=integers[:, back],
        zeros=torch.stack(all_zeros).int(),
        scales=torch.stack(all_scales).half(),
        g_idx=settings.group_of(inputs).to(back.device)[back],
        weight=rounded[:, back],
    )


def round_to_nearest(weight: Tensor, settings: GPTQSettings) -> Rounded:
    """Round each weight to the nearest value of its group, without regard to inputs: the baseline for GPTQ."""
    values = weight.detach().float()
    inputs = values.shape[1]
    size = inputs if settings.group_size == -1 else settings.group_size
    ranges = [find_range(values[:, start : start + size], settings) for start in range(0, inputs, size)]
    scales, zeros = (torch.stack(parts) for parts in zip(*ranges, strict=True))
    g_idx = settings.group_of(inputs).to(values.device)
    spread_scales, spread_zeros = scales[g_idx.long()].T, zeros[g_idx.long()].T
    integers = _round(values, spread_scales, spread_zeros, settings.bits)
    return Rounded(integers, zeros.int(), scales.half(), g_idx, (integers - spread_zeros) * spread_scales)


def find_range(group: Tensor, settings: GPTQSettings) -> tuple[Tensor, Tensor]:
    """Scale and zero point, `[out]` each, for weights `[out, in a group]`: those of the best of several ranges.

    Scales are exact in float16 and bfloat16, so that every kernel uses the same; zero points are at least 1, for format
    v1.
    """
    steps = 2**settings.bits - 1
    low, high = group.amin(dim=1).clamp(max=0), group.amax(dim=1).clamp(min=0)
    if settings.sym:
        high = torch.maximum(-low, high)
        low = -high
    empty = (high - low) == 0
    low, high = torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)
    best = torch.full_like(high, torch.inf)
    best_scales, best_zeros = torch.ones_like(high), torch.ones_like(high)
    for shrink in torch.linspace(1.0, SHRINK_TO, SHRINKS).tolist():
        scales = _exact_in_fp16_and_bf16((high - low) * (shrink / steps))
        if settings.sym:
            zeros = torch.full_like(scales, (steps + 1) / 2)
        else:
            zeros = torch.round(-low * shrink / scales).clamp(1, steps)
        integers = _round(group, scales[:, None], zeros[:, None], settings.bits)
        errors = ((integers - zeros[:, None]) * scales[:, None] - group).abs().pow(ERROR_NORM).sum(dim=1)
        better = errors < best
        best = torch.where(better, errors, best)
        best_scales, best_zeros = torch.where(better, scales, best_scales), torch.where(better, zeros, best_zeros)
    return best_scales, best_zeros


def output_error(weight: Tensor, rounded: Tensor, hessian: Tensor) -> float:
    """Relative error of the layer's outputs: the norm of their change over the norm of the outputs."""
    weight, hessian = weight.float(), hessian.float()
    change = weight - rounded
    error = ((change @ hessian) * change).sum().clamp(min=0)
    whole = ((weight @ hessian) * weight).sum().clamp(min=torch.finfo(torch.float32).tiny)
    return float((error / whole).sqrt())


def _inverse_factor(moments: Tensor, damp: float) -> Tensor:
    """The upper Cholesky factor of the inverse of `moments`, damped."""
    mean = moments.diagonal().mean()
    while True:
        damped = moments.clone()
        damped.diagonal().add_(damp * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper
        assert damp < 1, "second moments plus their mean on the diagonal are positive definite"
        damp = min(1.0, damp * 10)


def _round(values: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> Tensor:
    return torch.round(values / scales + zeros).clamp(0, 2**bits - 1).to(torch.uint8)


def _exact_in_fp16_and_bf16(scales: Tensor) -> Tensor:
    """The nearest numbers above zero that both types can represent."""
    smallest = torch.finfo(torch.float16).tiny
    return scales.clamp(smallest, torch.finfo(torch.float16).max / 2).bfloat16().float()

"""Quantised linear layers as shapes alone: the tensors that each back-end stores for a weight.

For models on the meta device. Quantised weights themselves are loaded by the back-end's package (backends.py).
"""

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

Stored = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Name of a stored tensor -> its shape and type; `weight` is the packed weight."""

NF4_BLOCK = 64  # weights under one scale
NF4_SCALE_BLOCK = 256  # scales that are themselves quantised under one float32
GROUP = 128  # weights of a row under one scale, the default of GPTQ and torchao's int4
WORD_BITS = 32


def stored_tensors(
    back_end: str, rows: int, columns: int, dtype: torch.dtype, *, bits: int = 4, group_size: int = GROUP
) -> Stored:
    """What `back_end` stores for a `[rows, columns]` weight; `dtype` is the compute type, which some scales have.

    - `nf4` (bitsandbytes, double quantisation): two weights per byte, a scale of 8 bits per 64 weights, a float32 per
      256 scales, their offset, and the two code books.
    - `int8` (bitsandbytes): a byte per weight, a float32 per row.
    - `gptq`: `bits`, and per group of `group_size` (-1: a row) a scale in float16 and a zero point of a byte.
    - `torchao_int4`: 4 bits, per group a scale and a zero point in bfloat16; `torchao_int8`: a scale per row.

    Raises:
        ValueError: no such back-end.
    """
    count = rows * columns
    if back_end == "nf4":
        blocks = math.ceil(count / NF4_BLOCK)
        return {
            "weight": ((math.ceil(count / 2), 1), torch.uint8),
            "scales": ((blocks,), torch.uint8),
            "scale_scales": ((math.ceil(blocks / NF4_SCALE_BLOCK),), torch.float32),
            "scale_offset": ((1,), torch.float32),
            "codes": ((16 + 256,), torch.float32),
        }
    if back_end == "int8":
        return {"weight": ((rows, columns), torch.int8), "scales": ((rows,), torch.float32)}
    if back_end == "gptq":
        groups = 1 if group_size == -1 else math.ceil(columns / group_size)
        return {
            "weight": ((math.ceil(columns * bits / WORD_BITS), rows), torch.int32),
            "zeros": ((groups, rows), torch.uint8),
            "scales": ((groups, rows), torch.float16),
        }
    if back_end == "torchao_int4":
        groups = math.ceil(columns / group_size)
        return {
            "weight": ((math.ceil(count / 2),), torch.uint8),
            "scales_and_zeros": ((groups, rows, 2), torch.bfloat16),
        }
    if back_end == "torchao_int8":
        return {"weight": ((rows, columns), torch.int8), "scales": ((rows,), dtype)}
    raise ValueError(f"the storage of {back_end!r} is unknown; expected nf4, int8, gptq, torchao_int4 or torchao_int8")


class PackedLinear(nn.Linear):
    """A linear layer with the tensors that a back-end stores for its weight, on the meta device.

    Its forward pass allocates what the back-ends do: the whole weight in the compute type during the product, where a
    kernel `unpacks` it; for int8, the rounded activations and the 32-bit sums.
    """

    def __init__(
        self,
        linear: nn.Linear,
        back_end: str,
        dtype: torch.dtype,
        *,
        bits: int = 4,
        group_size: int = GROUP,
        unpacks: bool = True,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.back_end, self.dtype, self.unpacks = back_end, dtype, unpacks
        stored = stored_tensors(back_end, self.out_features, self.in_features, dtype, bits=bits, group_size=group_size)
        for name, (shape, kind) in stored.items():
            tensor = torch.empty(shape, dtype=kind, device="meta")
            if name == "weight":
                self.weight = nn.Parameter(tensor, requires_grad=False)
                self.weight.quant_state = SimpleNamespace(shape=linear.weight.shape)  # as in bitsandbytes
            else:
                self.register_buffer(name, tensor)
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        shape = (self.out_features, self.in_features)
        product = _PackedProduct.apply(inputs.to(self.dtype), self.weight, shape, self.back_end == "int8", self.unpacks)
        return product if self.bias is None else product + self.bias


class _PackedProduct(torch.autograd.Function):
    """Saves the packed weight and unpacks it again in the backward pass, like the back-ends."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, packed: Tensor, shape: tuple[int, int], in_int8: bool, unpacks: bool
    ) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.shape = shape
        if in_int8:
            rounded = inputs.to(torch.int8)
            sums = rounded.new_empty(*inputs.shape[:-1], shape[0], dtype=torch.int32)
            return sums.to(inputs.dtype)
        if not unpacks:
            return inputs.new_empty(*inputs.shape[:-1], shape[0])
        return inputs @ packed.new_empty(shape, dtype=inputs.dtype).T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        (packed,) = ctx.saved_tensors
        return gradient @ packed.new_empty(ctx.shape, dtype=gradient.dtype), None, None, None, None


def pack_linears(
    model: nn.Module, back_end: str, dtype: torch.dtype, *, skip: nn.Module | None = None, **options: Any
) -> None:
    """Replace every linear layer except `skip`, the output head, by a `PackedLinear` with these `options`."""
    for name, linear in [*model.named_modules()]:
        if isinstance(linear, nn.Linear) and linear is not skip:
            model.set_submodule(name, PackedLinear(linear, back_end, dtype, **options))

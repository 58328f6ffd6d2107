"""Linear layers whose weights are stored quantised, as shapes alone: what each back-end keeps of a weight.

For models on the meta device. A real quantised model is loaded by the back-end's own package (models/quantize.py).
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
GROUP = 128  # weights of a row under one scale, of GPTQ and torchao's int4
INT32_BITS = 32


def stored_tensors(back_end: str, rows: int, columns: int, dtype: torch.dtype) -> Stored:
    """What `back_end` keeps of a `[rows, columns]` weight; `dtype` is the compute type, which some scales have.

    - `nf4` (bitsandbytes, double quantisation): two weights a byte, a scale of 8 bits for 64 weights, a float32 for 256
      scales, their offset, and the two code books.
    - `int8` (bitsandbytes): a byte a weight, a float32 a row.
    - `gptq`: 4 bits, groups of 128: scales in float16, zero points of 4 bits, the group of every column.
    - `torchao_int4`: 4 bits, groups of 128, scale and zero point in bfloat16; `torchao_int8`: a scale a row.

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
        groups = math.ceil(columns / GROUP)
        packed = INT32_BITS // 4
        return {
            "weight": ((math.ceil(columns / packed), rows), torch.int32),
            "zeros": ((groups, math.ceil(rows / packed)), torch.int32),
            "scales": ((groups, rows), torch.float16),
            "group_of_column": ((columns,), torch.int32),
        }
    if back_end == "torchao_int4":
        groups = math.ceil(columns / GROUP)
        return {
            "weight": ((math.ceil(count / 2),), torch.uint8),
            "scales_and_zeros": ((groups, rows, 2), torch.bfloat16),
        }
    if back_end == "torchao_int8":
        return {"weight": ((rows, columns), torch.int8), "scales": ((rows,), dtype)}
    raise ValueError(
        f"how {back_end!r} stores weights is not known; expected nf4, int8, gptq, torchao_int4 or torchao_int8"
    )


class PackedLinear(nn.Linear):
    """A linear layer that holds what a back-end keeps of its weight, on the meta device.

    Its forward takes the memory that the back-ends take: the whole weight in the compute type, for the time of the
    product, or, for int8, the rounded activations and the 32-bit sums.
    """

    def __init__(self, linear: nn.Linear, back_end: str, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.back_end, self.dtype = back_end, dtype
        stored = stored_tensors(back_end, self.out_features, self.in_features, dtype)
        for name, (shape, kind) in stored.items():
            tensor = torch.empty(shape, dtype=kind, device="meta")
            if name == "weight":
                self.weight = nn.Parameter(tensor, requires_grad=False)
                self.weight.quant_state = SimpleNamespace(shape=linear.weight.shape)  # as bitsandbytes says it
            else:
                self.register_buffer(name, tensor)
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        shape = (self.out_features, self.in_features)
        product = _PackedProduct.apply(inputs.to(self.dtype), self.weight, shape, self.back_end == "int8")
        return product if self.bias is None else product + self.bias


class _PackedProduct(torch.autograd.Function):
    """Saves the packed weight and unpacks it again in the backward pass, as the back-ends do."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, packed: Tensor, shape: tuple[int, int], in_int8: bool) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.shape = shape
        if in_int8:
            rounded = inputs.to(torch.int8)
            sums = rounded.new_empty(*inputs.shape[:-1], shape[0], dtype=torch.int32)
            return sums.to(inputs.dtype)
        return inputs @ packed.new_empty(shape, dtype=inputs.dtype).T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (packed,) = ctx.saved_tensors
        return gradient @ packed.new_empty(ctx.shape, dtype=gradient.dtype), None, None, None


def pack_linears(model: nn.Module, back_end: str, dtype: torch.dtype, *, skip: nn.Module | None = None) -> int:
    """Put a `PackedLinear` in the place of every linear layer but `skip`, the output head; returns how many."""
    linears = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and child is not skip
    ]
    for parent, name, linear in linears:
        setattr(parent, name, PackedLinear(linear, back_end, dtype))
    return len(linears)

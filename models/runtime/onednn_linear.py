"""Frozen float32 linear layers on processors for which PyTorch's default library has slow kernels.

PyTorch multiplies float32 matrices on x86 with MKL, which serves other vendors' processors with older kernels: on two
cores of an AMD EPYC it reads the weights of one token's step at 15 GB/s where oneDNN, which PyTorch also carries and
takes for bfloat16, reads them at 35, and does 150 GFLOP/s where oneDNN does 330. So there, and nowhere else, large
frozen layers go through oneDNN. Sums are taken in another order; the last bits of a result differ.
"""

import functools
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LEAST_WEIGHTS = 1 << 18  # below, a call takes longer than what it saves


@functools.cache
def pays() -> bool:
    """Whether this processor is one for which oneDNN is the faster library, and PyTorch has it."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    cpuinfo = Path("/proc/cpuinfo")
    known = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else platform.processor()
    return "AuthenticAMD" in known


def use_onednn(module: nn.Module) -> int:
    """Let the large float32 linear layers on the CPU that `module` holds run through oneDNN; how many do.

    Weights stay where and as they are, and layers remain `nn.Linear`. A weight that takes gradients is multiplied as
    before.
    """
    count = 0
    for layer in module.modules():
        weight = layer.weight if type(layer) is nn.Linear else None
        on_cpu = weight is not None and weight.dtype == torch.float32 and weight.device.type == "cpu"
        if on_cpu and weight.numel() >= LEAST_WEIGHTS:
            layer.__class__ = OneDnnLinear
        count += isinstance(layer, OneDnnLinear)
    return count


class OneDnnLinear(nn.Linear):
    """`nn.Linear` through oneDNN, where its weight is frozen and all is float32 on the CPU."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        fits = (
            weight.dtype == input.dtype == torch.float32
            and weight.device.type == input.device.type == "cpu"
            and input.numel() > 0
            and not torch.is_autocast_enabled("cpu")
        )
        if not fits:
            return super().forward(input)
        if not torch.is_grad_enabled():
            return multiply(input, weight, bias)
        if weight.requires_grad or (bias is not None and bias.requires_grad):
            return super().forward(input)
        return _FrozenLinear.apply(input, weight, bias) if input.requires_grad else multiply(input, weight, bias)


def multiply(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What `F.linear` gives, by oneDNN, without gradients."""
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


class _FrozenLinear(torch.autograd.Function):
    """The operator has no gradient of its own; a frozen layer needs the input's alone."""

    @staticmethod
    def forward(context: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(weight)
        return multiply(input, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = context.saved_tensors
        return multiply(gradient, weight.t(), None), None, None

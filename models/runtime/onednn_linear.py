"""Frozen float32 linear layers on processors for which PyTorch's default library has slow kernels.

PyTorch multiplies float32 matrices on x86 with MKL, which uses older kernels on other vendors' processors: on two cores
of an AMD EPYC it reads the weights of one token's step at 15 GB/s and computes 150 GFLOP/s, while oneDNN, which PyTorch
includes and uses for bfloat16, reads 35 GB/s and computes 330 GFLOP/s. So on these processors, and no others, large
frozen layers use oneDNN. Sums are in another order; the last bits of a result differ.
"""

import functools
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LEAST_WEIGHTS = 1 << 18  # for smaller layers, the call costs more than it saves


@functools.cache
def pays() -> bool:
    """Whether oneDNN is the faster library on this processor, and PyTorch has it."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    cpuinfo = Path("/proc/cpuinfo")
    known = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else platform.processor()
    return "AuthenticAMD" in known


def use_onednn(module: nn.Module) -> int:
    """Let the large float32 linear layers of `module` on the CPU use oneDNN; returns how many do.

    Weights are unchanged and not moved, and layers remain `nn.Linear`. Weights with gradients are multiplied as before.
    """
    count = 0
    for layer in module.modules():
        weight = layer.weight if type(layer) is nn.Linear else None
        on_cpu = weight is not None and weight.dtype == torch.float32 and weight.device.type == "cpu"
        plain = on_cpu and type(weight.data) is Tensor  # torchao's quantised weights say float32 too
        if plain and weight.numel() >= LEAST_WEIGHTS:
            layer.__class__ = OneDnnLinear
        count += isinstance(layer, OneDnnLinear)
    return count


class OneDnnLinear(nn.Linear):
    """`nn.Linear` by oneDNN, where its weight is frozen and everything is float32 on the CPU."""

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
    """`F.linear` by oneDNN, without gradients."""
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


class _FrozenLinear(torch.autograd.Function):
    """The operator has no gradient; a frozen layer needs only the input's."""

    @staticmethod
    def forward(context: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(weight)
        return multiply(input, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = context.saved_tensors
        return multiply(gradient, weight.t(), None), None, None

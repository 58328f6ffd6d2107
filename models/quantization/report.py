"""Which kernel multiplies a quantised weight, and whether it is faster than without quantisation."""

import torch
from torch import nn

from configs.sections import ModelConfig
from models.quantization.backends import Backend
from models.quantization.gptq import GPTQLinear
from models.quantization.layers import is_torchao, quantized_layers
from support.command_line import UserError


def kernel_report(model: nn.Module, backend: Backend, device: torch.device, dtype: torch.dtype) -> str:
    """One line about the language model's weights: back-end, kernels, device, compute type, layers."""
    type_name = str(dtype).removeprefix("torch.")
    layers = quantized_layers(model)
    if not layers:
        return f"none: torch linear, {type_name}, {device.type}"
    groups: dict[str, list[str]] = {}
    for name, layer in layers.items():
        groups.setdefault(_kernel_of(layer, device), []).append(name.rsplit(".", 1)[-1])
    if len(groups) == 1:
        kernels = next(iter(groups))
    else:
        kernels = ", ".join(
            f"{kernel} ({len(names)}: {', '.join(sorted(set(names)))})" for kernel, names in sorted(groups.items())
        )
    return f"{backend.name}: {kernels}, compute {type_name}, {device.type}, {len(layers)} layers"


def check_kernels(model: nn.Module, config: ModelConfig) -> None:
    """Raise UserError if a loaded GPTQ layer has the kernel that is slower than unquantised weights, unless allowed."""
    if config.allow_slow_kernels:
        return
    layers = quantized_layers(model)
    slow = [name for name, layer in layers.items() if isinstance(layer, GPTQLinear) and layer.kernel == "dequantize"]
    if slow:
        raise UserError(
            f"model.quantization 'gptq': {len(slow)} of {len(layers)} layers ({', '.join(slow[:4])}"
            f"{' …' if len(slow) > 4 else ''}) have sizes for which there is only the kernel that unpacks each weight, "
            "slower than unquantised weights; set model.allow_slow_kernels=true if memory matters more."
        )


def _kernel_of(layer: nn.Module, device: torch.device) -> str:
    if isinstance(layer, GPTQLinear):
        if layer.kernel == "packed":
            return "PyTorch's 4-bit product in bfloat16"
        return f"{layer.settings.bits} bits unpacked, then torch matmul"
    weight = layer._parameters.get("weight")
    if is_torchao(weight):
        return f"torchao {type(weight).__name__}"
    if "qweight" in layer._buffers:
        return f"GPTQModel {type(layer).__name__}"
    kind = f"bitsandbytes {type(layer).__name__}"
    if device.type == "cpu" and "4bit" in kind:
        return f"{kind} (dequantise, then torch matmul)"
    if "8bit" in kind:
        return f"{kind} (activations rounded from float16)"
    return kind

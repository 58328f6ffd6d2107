"""Frozen encoders' linear layers in 8 bits: one byte per weight and one scale per output.

Two kernels multiply. On CPUs with 8-bit dot products (VNNI) each row of the input is rounded to 8 bits too, with its
own scale, and the integers are multiplied: several times as fast as float32. On other devices, and where a gradient is
needed, the weight is unpacked before each product: without further rounding, and a little slower than unquantised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from models.runtime.host_memory import release_pages
from support.command_line import UserError

METHOD = "smolt_int8"
"""Our rounding's name in transformers' table."""
LARGEST = 127
RELEASE_EVERY = 128 * 2**20
"""Bytes of weights after which their files' pages are released."""


class Int8Linear(nn.Linear):
    """A linear layer whose weight `[out, in]` is int8 times a float32 scale per output."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, dtype: torch.dtype = torch.float32) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = inputs, outputs
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=torch.int8), requires_grad=False)
        self.register_buffer("scales", torch.empty(outputs))
        self.bias = nn.Parameter(torch.empty(outputs, dtype=dtype), requires_grad=False) if bias else None
        self.kernel: str | None = None
        """`integers` or `dequantize`; None chooses the faster one on the input's device."""

    @torch.no_grad()
    def fill(self, weight: Tensor) -> None:
        """Round `weight` `[out, in]`."""
        weight = weight.float()
        scales = (weight.abs().amax(dim=1) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
        rounded = (weight / scales[:, None]).round_().to(torch.int8)
        self.weight = nn.Parameter(rounded, requires_grad=False)
        self.scales = scales

    @classmethod
    def of(cls, linear: nn.Linear) -> Int8Linear:
        """Round a layer; its bias is shared."""
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        layer.fill(linear.weight)
        layer.bias = linear.bias
        return layer.requires_grad_(False)

    @property
    def multiplies_integers(self) -> bool:
        return (self.kernel or fastest(self.weight.device)) == "integers"

    def forward(self, inputs: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`."""
        if self.multiplies_integers and not (torch.is_grad_enabled() and inputs.requires_grad):
            product = self._of_integers(inputs)
            return product if self.bias is None else product.add_(self.bias.to(product.dtype))
        weight = self.weight * self.scales.to(inputs.dtype)[:, None]  # on a GPU one kernel casts and scales
        return F.linear(inputs, weight, None if self.bias is None else self.bias.to(inputs.dtype))

    def _of_integers(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, self.in_features).float()
        scales = (rows.abs().amax(dim=1, keepdim=True) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
        sums = torch._int_mm((rows / scales).round_().to(torch.int8), self.weight.T)
        product = sums.float().mul_(scales).mul_(self.scales)
        return product.view(*inputs.shape[:-1], self.out_features).to(inputs.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def fastest(device: torch.device) -> str:
    """The faster kernel on a device: `integers`, faster than unquantised weights, or `dequantize`, slower."""
    return "integers" if device.type == "cpu" and torch.cpu._is_vnni_supported() else "dequantize"


def round_linears(module: nn.Module, *, skip: tuple[str, ...] = ()) -> None:
    """Replace each linear layer in `module`, except those named in `skip`, by an `Int8Linear`."""
    for name, linear in [*module.named_modules()]:
        if type(linear) is nn.Linear and name.rpartition(".")[2] not in skip:
            module.set_submodule(name, Int8Linear.of(linear))


def check_device(device: torch.device, *, allow_slow: bool) -> None:
    """Raise UserError where 8-bit encoders would be slower than unquantised ones, unless that is allowed."""
    if fastest(device) == "dequantize" and not allow_slow:
        raise UserError(
            f"model.encoder_quantization 'int8' is slower on {device.type} than unquantised weights"
            f"{', on a processor without 8-bit dot products' if device.type == 'cpu' else ''}. Use "
            "model.encoder_quantization=none, or set model.allow_slow_kernels=true if memory matters more."
        )


def kernel_report(encoder: nn.Module, device: torch.device) -> str:
    """One line about the kernel of an encoder's linear layers."""
    layers = [layer for layer in encoder.modules() if isinstance(layer, Int8Linear)]
    dtype = next(tensor.dtype for tensor in encoder.parameters() if tensor.is_floating_point())
    compute = f"{str(dtype).removeprefix('torch.')}, {device.type}"
    if not layers:
        return f"none: torch linear, {compute}"
    kernels = {
        "integers": "product of integers, inputs rounded row by row",
        "dequantize": "unpacked, then torch matmul",
    }
    return f"int8: {kernels[layers[0].kernel or fastest(device)]}, compute {compute}, {len(layers)} layers"


@register_quantization_config(METHOD)
class RoundingConfig(QuantizationConfigMixin):
    """Round the linear layers of a model of transformers while it is loaded."""

    def __init__(self, **_: Any) -> None:
        self.quant_method = METHOD


@register_quantizer(METHOD)
class Rounding(HfQuantizer):
    """Makes an `Int8Linear` of each linear layer, one weight at a time. Never in memory unquantised as a whole."""

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **_: Any
    ) -> None:
        self._files, self._read = checkpoint_files or [], 0
        for name, linear in [*model.named_modules()]:
            if type(linear) is nn.Linear:
                with torch.device("meta"):
                    layer = Int8Linear(
                        linear.in_features, linear.out_features, bias=linear.bias is not None, dtype=linear.weight.dtype
                    )
                model.set_submodule(name, layer)

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **_: Any) -> bool:
        owner, _, name = param_name.rpartition(".")
        return name == "weight" and isinstance(model.get_submodule(owner), Int8Linear)

    def get_quantize_ops(self) -> ConversionOps:
        return _Round(self._was_read)

    def _was_read(self, count: int) -> None:
        """Count the bytes read from the files; release their pages from time to time."""
        self._read += count
        if self._read > RELEASE_EVERY:
            release_pages(self._files)
            self._read = 0

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


class _Round(ConversionOps):
    def __init__(self, was_read: Callable[[int], None]) -> None:
        self._was_read = was_read

    def convert(
        self,
        input_dict: dict[str, list[Tensor]],
        model: PreTrainedModel | None = None,
        full_layer_name: str | None = None,
        missing_keys: set[str] | None = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        (weight,) = input_dict.values()
        owner = full_layer_name.rpartition(".")[0]
        layer = model.get_submodule(owner)
        weight = weight[0] if isinstance(weight, list) else weight
        if weight.shape != layer.weight.shape:  # reported by the caller with all others
            return {full_layer_name: weight}
        layer.fill(weight)
        self._was_read(weight.nbytes)
        layer._is_hf_initialized = True
        if missing_keys is not None:
            missing_keys -= {f"{owner}.weight", f"{owner}.scales"}
        return {}

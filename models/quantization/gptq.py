"""Linear layers in the AutoGPTQ format: how they are stored, and how they multiply.

A file has for each layer, whose weight is `[out, in]` (Frantar et al., 2022, arXiv:2210.17323):

    qweight  [in * bits / 32, out]       int32, consecutive inputs from the low bits up
    qzeros   [groups, out * bits / 32]   int32, each zero point minus one (format `gptq`) or unchanged (`gptq_v2`)
    scales   [groups, out]               float16
    g_idx    [in]                        int32, the group of each input
    bias     [out]                       where the layer has one

and a weight is `scales[group] * (qweight - zero[group])`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from support.command_line import UserError

WORD = 32
SUPPORTED_BITS = (2, 4, 8)
PACKED_GROUPS = (32, 64, 128, 256)  # of PyTorch's 4-bit product
FORMATS = ("gptq", "gptq_v2")

Kernel = Literal["packed", "dequantize"]


@dataclass(frozen=True, kw_only=True)
class GPTQSettings:
    """A folder's `quantization_config`: the settings of its layers."""

    bits: int = 4
    group_size: int = 128
    """Inputs under one scale; -1 is all of them."""
    desc_act: bool = False
    """Columns were quantised in the order of decreasing activations, so groups are not consecutive inputs."""
    sym: bool = True
    """Zero points are in the middle of the range."""
    format: str = "gptq"
    """`gptq` (v1) or `gptq_v2`."""

    def __post_init__(self) -> None:
        if self.bits not in SUPPORTED_BITS:
            raise UserError(f"GPTQ weights of {self.bits} bits cannot be read; expected {SUPPORTED_BITS}")
        if self.group_size != -1 and self.group_size < 1:
            raise UserError(f"GPTQ group_size is {self.group_size}; expected -1 or above 0")
        if self.format not in FORMATS:
            raise UserError(f"GPTQ checkpoint_format is {self.format!r}; expected one of {', '.join(FORMATS)}")

    @classmethod
    def from_config(cls, stored: dict[str, Any]) -> GPTQSettings:
        """Read a folder's `quantization_config`, written by AutoGPTQ, optimum or GPTQModel."""
        fields = {name: stored[name] for name in ("bits", "group_size", "desc_act", "sym") if name in stored}
        written = stored.get("checkpoint_format") or stored.get("format") or "gptq"
        return cls(**fields, format=str(written).lower())

    def to_config(self) -> dict[str, Any]:
        """`quantization_config` as AutoGPTQ writes it and GPTQModel reads it."""
        fields = dataclasses.asdict(self)
        written = fields.pop("format")
        return {
            "quant_method": "gptq",
            **fields,
            "checkpoint_format": written,
            "lm_head": False,
            "true_sequential": True,
            "static_groups": False,
        }

    def groups(self, inputs: int) -> int:
        """Number of groups of a layer with so many inputs."""
        return 1 if self.group_size == -1 else -(-inputs // self.group_size)

    def group_of(self, inputs: int) -> Tensor:
        """`[in]` int32: the group of each input without `desc_act`."""
        size = inputs if self.group_size == -1 else self.group_size
        return torch.arange(inputs, dtype=torch.int32) // size


def pack(values: Tensor, bits: int) -> Tensor:
    """`[rows, columns]` of unsigned `bits`-bit integers -> int32 `[rows * bits / 32, columns]`, low bits first."""
    rows, columns = values.shape
    per_word = WORD // bits
    if rows % per_word:
        raise ValueError(f"{rows} values of {bits} bits do not fill words of {WORD} bits")
    words = values.new_zeros(rows // per_word, columns, dtype=torch.int64)
    for place, part in enumerate(values.long().view(-1, per_word, columns).unbind(1)):
        words |= part << (bits * place)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def unpack(words: Tensor, bits: int) -> Tensor:
    """The inverse of `pack`, as uint8 `[rows, columns]`."""
    per_word = WORD // bits
    values = torch.empty(words.shape[0], per_word, words.shape[1], dtype=torch.uint8, device=words.device)
    for place in range(per_word):
        values[:, place] = (words >> (bits * place)) & (2**bits - 1)
    return values.flatten(0, 1)


class StoredGPTQ(nn.Module):
    """A layer in the form of a file, for loading and saving. It does not multiply."""

    def __init__(self, inputs: int, outputs: int, settings: GPTQSettings, *, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features, self.settings = inputs, outputs, settings
        bits, groups = settings.bits, settings.groups(inputs)
        if inputs * bits % WORD or outputs * bits % WORD:
            raise UserError(f"GPTQ: a layer of {inputs} by {outputs} does not fill words of {WORD} bits at {bits} bits")
        self.register_buffer("qweight", torch.empty(inputs * bits // WORD, outputs, dtype=torch.int32))
        self.register_buffer("qzeros", torch.empty(groups, outputs * bits // WORD, dtype=torch.int32))
        self.register_buffer("scales", torch.empty(groups, outputs, dtype=torch.float16))
        self.register_buffer("g_idx", torch.empty(inputs, dtype=torch.int32))
        self.register_buffer("bias", torch.empty(outputs, dtype=dtype) if bias else None)

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        integers: Tensor,
        zeros: Tensor,
        scales: Tensor,
        g_idx: Tensor,
        settings: GPTQSettings,
        *,
        bias: Tensor | None = None,
    ) -> StoredGPTQ:
        """Pack integers `[out, in]`, zero points and scales `[groups, out]` and groups `[in]`.

        Raises:
            UserError: a zero point of 0 in format `gptq`, which stores each minus one.
        """
        outputs, inputs = integers.shape
        with torch.device("meta"):
            layer = cls(inputs, outputs, settings, bias=bias is not None, dtype=torch.float16)
        if settings.format == "gptq":
            if int(zeros.min()) < 1:
                raise UserError("GPTQ format v1 stores zero points minus one and so cannot hold 0; choose them from 1")
            zeros = zeros - 1
        layer.qweight = pack(integers.T, settings.bits)
        layer.qzeros = pack(zeros.T, settings.bits).T.contiguous()
        layer.scales = scales.half()
        layer.g_idx = g_idx.int()
        layer.bias = bias
        return layer

    def zeros(self) -> Tensor:
        """Zero points `[groups, out]` uint8.

        Some writers label v1 files as v2; symmetric zero points show which format a file really has.
        """
        bits = self.settings.bits
        stored = unpack(self.qzeros.T, bits).T
        minus_one = self.settings.format == "gptq"
        if self.settings.sym:
            middle = 2 ** (bits - 1)
            if bool((stored == middle).all()):
                minus_one = False
            elif bool((stored == middle - 1).all()):
                minus_one = True
        return ((stored + 1) & (2**bits - 1)).contiguous() if minus_one else stored.contiguous()

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.settings}"


class GPTQLinear(nn.Linear):
    """A linear layer over packed integers, with a gradient for its input.

    Two kernels multiply. `packed`: PyTorch's 4-bit product, on CPUs with AVX2 or AVX-512 and in bfloat16, faster than
    unquantised weights because it reads an eighth of the bytes. `dequantize`: unpack the weight into the compute type,
    then multiply; on any device, with any bits, and exact in float32, but it unpacks in every call. The backward pass
    unpacks in both. With `desc_act`, inputs are first permuted into the groups' order.
    """

    def __init__(self, stored: StoredGPTQ, *, kernel: Kernel = "dequantize") -> None:
        nn.Module.__init__(self)
        settings = stored.settings
        self.in_features, self.out_features, self.settings, self.kernel = (
            stored.in_features, stored.out_features, settings, kernel,
        )  # fmt: skip
        g_idx = stored.g_idx.long()
        order = torch.argsort(g_idx, stable=True)
        self.group_size = self.in_features if settings.group_size == -1 else settings.group_size
        if not torch.equal(g_idx[order].cpu(), settings.group_of(self.in_features).long()):
            raise UserError(f"GPTQ: g_idx does not give every group {self.group_size} inputs")
        in_order = torch.equal(order, torch.arange(self.in_features, device=order.device))
        self.register_buffer("order", None if in_order else order.int())
        self.register_buffer("scales", stored.scales)
        self.register_buffer("zeros", stored.zeros())
        self.bias = None if stored.bias is None else nn.Parameter(stored.bias, requires_grad=False)
        self.register_buffer("scales_and_zeros", None)
        if kernel == "packed":
            integers = unpack(stored.qweight, settings.bits)[order].T.contiguous()
            weight = _to_cpu_layout(integers)
            scales = stored.scales.float()
            shift = (2 ** (settings.bits - 1) - self.zeros.float()) * scales
            self.scales_and_zeros = torch.stack([scales, shift], dim=-1).bfloat16().contiguous()  # [groups, out, 2]
        elif in_order:
            weight = stored.qweight
        else:
            weight = pack(unpack(stored.qweight, settings.bits)[order], settings.bits)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight.quant_state = SimpleNamespace(shape=torch.Size([self.out_features, self.in_features]))

    def forward(self, inputs: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`."""
        if self.order is not None:
            inputs = inputs.index_select(-1, self.order)
        product = _Product.apply(inputs, self) if torch.is_grad_enabled() else self.multiply(inputs)
        return product if self.bias is None else product + self.bias

    def multiply(self, inputs: Tensor) -> Tensor:
        """The product for inputs in the groups' order, without bias."""
        if self.kernel != "packed":
            return inputs @ self._transposed(inputs.dtype)
        rows = inputs.reshape(-1, self.in_features).bfloat16()
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.weight, self.group_size, self.scales_and_zeros)
        return product.view(*inputs.shape[:-1], self.out_features).to(inputs.dtype)

    def _transposed(self, dtype: torch.dtype) -> Tensor:
        """The weight `[in, out]` in `dtype`, inputs in the groups' order."""
        values = self._integers().to(dtype)
        scales, zeros = self.scales.to(dtype), self.zeros.to(dtype)
        if self.in_features % self.group_size == 0:
            grouped = values.view(-1, self.group_size, self.out_features)
            grouped.sub_(zeros[:, None]).mul_(scales[:, None])
            return values
        group = torch.arange(self.in_features, device=values.device) // self.group_size
        return values.sub_(zeros[group]).mul_(scales[group])

    def _integers(self) -> Tensor:
        """uint8 `[in, out]`, inputs in the groups' order."""
        if self.kernel == "packed":
            return _from_cpu_layout(self.weight, self.in_features).T
        return unpack(self.weight, self.settings.bits)

    @torch.no_grad()
    def stored(self) -> StoredGPTQ:
        """The layer in the form of a file, in format `gptq`, bit for bit."""
        settings = dataclasses.replace(self.settings, format="gptq")
        group_of = settings.group_of(self.in_features).to(self.weight.device)
        return StoredGPTQ.of(
            self._in_input_order(self._integers()).T,
            self.zeros.int(),
            self.scales,
            self._in_input_order(group_of),
            settings,
            bias=None if self.bias is None else self.bias.detach(),
        )

    def _in_input_order(self, values: Tensor) -> Tensor:
        """`[in, ...]` from the groups' order to the inputs' order."""
        if self.order is None:
            return values
        own = torch.empty_like(values)
        own[self.order.long()] = values
        return own

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, kernel={self.kernel}"


class _Product(torch.autograd.Function):
    """Saves only the packed weight, and unpacks it again for the gradient."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: GPTQLinear) -> Tensor:
        ctx.layer = layer
        if torch.is_autocast_enabled(inputs.device.type) and inputs.dtype == torch.float32:
            inputs = inputs.to(torch.get_autocast_dtype(inputs.device.type))
        return layer.multiply(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer._transposed(gradient.dtype).T, None


def best_kernel(settings: GPTQSettings, inputs: int, outputs: int, device: torch.device) -> Kernel:
    """`packed` where PyTorch's 4-bit product supports the layer and is fast, else `dequantize`."""
    size = inputs if settings.group_size == -1 else settings.group_size
    block = 0 if device.type != "cpu" else cpu_block()
    fits = settings.bits == 4 and size in PACKED_GROUPS and inputs % size == 0 and block and outputs % block == 0
    return "packed" if fits else "dequantize"


@cache
def cpu_block() -> int:
    """Rows that PyTorch's 4-bit product for CPUs packs together; 0 where it has no fast kernel on this processor.

    PyTorch does not say how it packs, so the known layouts are tested on numbers.
    """
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return 0
    numbers = torch.randint(0, 16, (128, 32), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    try:
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)
    except (AttributeError, RuntimeError):  # this PyTorch has none
        return 0
    for block in (64, 32):
        if torch.equal(_unblock(packed, 32, block), numbers.byte()):
            return block
    return 0


def _to_cpu_layout(integers: Tensor) -> Tensor:
    """uint8 `[out, in]` -> uint8 `[out, in / 2]` in the layout of `_weight_int4pack_mm_for_cpu`."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers.int(), 1)


def _from_cpu_layout(packed: Tensor, inputs: int) -> Tensor:
    return _unblock(packed, inputs, cpu_block())


def _unblock(packed: Tensor, inputs: int, block: int) -> Tensor:
    """Blocks of rows, input by input: the first half of a block's rows in the low bits, the second in the high bits."""
    pairs = packed.reshape(-1, inputs, block // 2)
    return torch.cat([pairs & 15, pairs >> 4], dim=-1).transpose(1, 2).reshape(-1, inputs)

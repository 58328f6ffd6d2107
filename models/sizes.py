"""How large each part of a model is: parameters and bytes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from models.quantization.layers import stored_bytes


@dataclass(frozen=True)
class PartSize:
    """One row of the table: how large a part of the model is."""

    part: str
    parameters: int
    trainable: int
    bytes: int
    """With its buffers, and what quantised weights keep besides their integers."""


def part_sizes(model: nn.Module) -> list[PartSize]:
    """Sizes of each encoder, of the connector, of the language model, of its LoRA, and their total; in this order."""
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        parts.setdefault(_part_of(name), []).append(parameter)
    others: dict[str, dict[int, Tensor]] = {part: {} for part in parts}
    for name, module in model.named_modules():
        others.setdefault(_part_of(name), {}).update(
            (tensor.untyped_storage()._cdata, tensor) for tensor in _besides_parameters(module)
        )
    rows = [
        PartSize(
            part,
            sum(map(_weights_behind, parameters)),
            sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
            sum(map(stored_bytes, parameters)) + sum(tensor.nbytes for tensor in others[part].values()),
        )
        for part, parameters in parts.items()
    ]
    sums = [sum(getattr(row, field) for row in rows) for field in ("parameters", "trainable", "bytes")]
    return [*rows, PartSize("total", *sums)]


def _part_of(name: str) -> str:
    """Which row a parameter or module belongs to, by its name in the model."""
    if name.startswith("encoders.encoders."):
        return name.split(".")[2]
    return "lora" if "lora_" in name else name.split(".")[0]


def _weights_behind(tensor: Tensor) -> int:
    """How many weights a tensor represents: bitsandbytes packs two 4-bit ones in a byte, and records their shape."""
    state = getattr(tensor, "quant_state", None)
    return tensor.numel() if state is None else state.shape.numel()


def _besides_parameters(module: nn.Module) -> list[Tensor]:
    """A module's own buffers, and the scales of its quantised weight."""
    tensors = [buffer for buffer in module._buffers.values() if buffer is not None]
    weight = module._parameters.get("weight")
    state = getattr(weight, "quant_state", None)
    for holder in (state, getattr(state, "state2", None)):
        tensors += [value for value in vars(holder).values() if isinstance(value, Tensor)] if holder else []
    scales = getattr(weight, "SCB", None)
    return [*tensors, scales] if isinstance(scales, Tensor) else tensors

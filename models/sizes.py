"""How large each part of a model is: parameters and bytes."""

from dataclasses import dataclass

from torch import Tensor

from models.quantization.layers import stored_bytes


@dataclass(frozen=True)
class PartSize:
    """One row of the parameter table: how large a part of the model is."""

    part: str
    parameters: int
    trainable: int
    bytes: int


def part_of(name: str) -> str:
    """Which row of the parameter table a parameter belongs to."""
    if name.startswith("encoders.encoders."):
        return name.split(".")[2]
    if "lora_" in name:
        return "lora"
    return name.split(".")[0]


def size_of(part: str, tensors: list[Tensor]) -> PartSize:
    return PartSize(
        part,
        sum(_logical_numel(tensor) for tensor in tensors),
        sum(tensor.numel() for tensor in tensors if tensor.requires_grad),
        sum(stored_bytes(tensor) for tensor in tensors),
    )


def _logical_numel(tensor: Tensor) -> int:
    """Weights behind a tensor: a bitsandbytes 4-bit tensor packs two in a byte and knows the shape it had."""
    state = getattr(tensor, "quant_state", None)
    return tensor.numel() if state is None else state.shape.numel()

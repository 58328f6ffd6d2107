"""Which layers of a model hold their weights in fewer bits, and how many bytes those take."""

from collections.abc import Iterator

from torch import Tensor, nn


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer, for every layer whose weights are held in fewer bits; the same names with LoRA as without."""
    layers = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")  # its own, not the one that a LoRA wrapper shows of its base layer
        held = getattr(weight, "quant_state", None) is not None or type(weight).__name__ == "Int8Params"
        if held or is_torchao(weight) or "qweight" in module._buffers:
            layers[name.removesuffix(".base_layer")] = module
    return layers


def is_torchao(weight: Tensor | None) -> bool:
    """Whether a weight is one of torchao's tensors, itself or inside a parameter."""
    return type(weight).__module__.startswith("torchao") or type(getattr(weight, "data", None)).__module__.startswith(
        "torchao"
    )


def stored_bytes(tensor: Tensor) -> int:
    """Bytes that a parameter takes; a torchao tensor says those of the numbers it stands for, so its parts count."""
    if hasattr(tensor, "__tensor_flatten__") and is_torchao(tensor):
        return sum(stored_bytes(part) for _, part in parts_of(tensor))
    return tensor.numel() * tensor.element_size()


def parts_of(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Name and value of each tensor that a torchao tensor is made of."""
    names, _ = tensor.__tensor_flatten__()
    return ((name, getattr(tensor, name)) for name in names)

"""Which layers of a model are quantised, and how many bytes their weights take."""

from collections.abc import Iterator

from torch import Tensor, nn


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer, for every layer with quantised weights; names are the same with and without LoRA."""
    layers = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")  # its own, not the one that a LoRA wrapper shows of its base layer
        bitsandbytes = getattr(weight, "quant_state", None) is not None or type(weight).__name__ == "Int8Params"
        if bitsandbytes or is_torchao(weight) or "qweight" in module._buffers:
            layers[name.removesuffix(".base_layer")] = module
    return layers


def is_torchao(weight: Tensor | None) -> bool:
    """Whether a weight is one of torchao's tensors, itself or inside a parameter."""
    return type(weight).__module__.startswith("torchao") or type(getattr(weight, "data", None)).__module__.startswith(
        "torchao"
    )


def stored_bytes(tensor: Tensor) -> int:
    """Bytes that a parameter takes. A torchao tensor reports those of its unquantised form, so its parts are added."""
    if hasattr(tensor, "__tensor_flatten__") and is_torchao(tensor):
        return sum(stored_bytes(part) for _, part in parts_of(tensor))
    return tensor.numel() * tensor.element_size()


def parts_of(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Name and value of each tensor inside a torchao tensor."""
    names, _ = tensor.__tensor_flatten__()
    return ((name, getattr(tensor, name)) for name in names)

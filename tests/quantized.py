"""What quantised layers multiply with, for tests: one weight, and a hash of all of them."""

import hashlib

import torch
from torch import Tensor, nn

from models.quantization.gptq import GPTQLinear, StoredGPTQ
from models.quantization.layers import is_torchao, parts_of, quantized_layers


def weights_fingerprint(model: nn.Module) -> str:
    """A hash of all quantised weights and their scales: equal exactly where the numbers that run are equal."""
    digest = hashlib.sha256()
    for name, layer in sorted(quantized_layers(model).items()):
        digest.update(name.encode())
        for key, tensor in sorted(_numbers_of(layer).items()):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _numbers_of(layer: nn.Module) -> dict[str, Tensor]:
    """Everything that a quantised layer multiplies with, by name."""
    weight = layer._parameters.get("weight")
    if isinstance(layer, (GPTQLinear, StoredGPTQ)) or "qweight" in layer._buffers:
        return {name: tensor for name, tensor in layer.state_dict().items() if "lora_" not in name}
    if is_torchao(weight):
        return dict(parts_of(weight))
    state = getattr(weight, "quant_state", None)
    scales = state.as_dict(packed=True) if state is not None else {"scales": getattr(weight, "SCB", None)}
    return {"weight": weight.data} | {name: value for name, value in scales.items() if isinstance(value, Tensor)}


def dequantized_weight(layer: nn.Module) -> Tensor:
    """The float32 weight `[out, in]` that a quantised, or plain, linear layer multiplies with."""
    if isinstance(layer, GPTQLinear):
        return layer._in_input_order(layer._transposed(torch.float32)).T
    weight = layer.weight
    if is_torchao(weight):
        return weight.dequantize().float()
    if type(weight).__name__ == "Int8Params":
        return weight.data.float() * (weight.SCB[:, None] / 127)
    if getattr(weight, "quant_state", None) is not None:
        import bitsandbytes.functional as bnb

        return bnb.dequantize_4bit(weight.data, weight.quant_state).float()
    return weight.detach().float()

"""One table of quantisation back-ends for the language model, and what each can do where.

Serving kernels are not training kernels: a back-end that runs is not yet one through which LoRA learns, nor one that is
faster than unquantised weights. The table says so, `resolve_backend` checks it before anything is loaded, and
`kernel_report` names the kernel that will really run.
"""

import hashlib
import importlib.util
import logging
from dataclasses import dataclass

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from configs.schema import ModelConfig

# On CPUs with AVX512-BF16 bitsandbytes says, when it is imported, that it found no package for the very kernel that
# `make_trainable` keeps it from using.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to hold the language model's frozen weights."""

    name: str
    bits: int | None
    """Bits a weight takes; None: those of the compute type."""
    devices: tuple[str, ...]
    min_sm: int
    """Lowest CUDA compute capability, as 10 x major + minor."""
    dtypes: tuple[torch.dtype, ...]
    """Compute types."""
    trainable: bool
    """Gradients of LoRA layers on top are right, also after an evaluation pass."""
    mergeable: bool
    """LoRA can be added into the weights without rounding them again."""
    package: str | None
    slower_on: tuple[str, ...]
    """Devices where it is slower than unquantised weights."""


FLOATS = (torch.float32, torch.float16, torch.bfloat16)
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            name="none",
            bits=None,
            devices=("cpu", "cuda"),
            min_sm=0,
            dtypes=FLOATS,
            trainable=True,
            mergeable=True,
            package=None,
            slower_on=(),
        ),
        Backend(
            name="nf4",
            bits=4,
            devices=("cpu", "cuda"),
            min_sm=60,
            dtypes=FLOATS,
            trainable=True,
            mergeable=False,
            package="bitsandbytes",
            slower_on=("cpu",),
        ),
        Backend(
            name="int8",
            bits=8,
            devices=("cpu", "cuda"),
            min_sm=75,  # int8 matrix units; below, bitsandbytes falls back to a slow path
            dtypes=FLOATS,
            trainable=True,
            mergeable=False,
            package="bitsandbytes",
            slower_on=("cpu",),
        ),
    )
}


def stored_backend(llm_config: PreTrainedConfig) -> str | None:
    """The back-end that a folder's weights are already quantised with, if any."""
    stored = getattr(llm_config, "quantization_config", None)
    if stored is None:
        return None
    stored = stored if isinstance(stored, dict) else stored.to_dict()
    if stored.get("load_in_4bit"):
        return "nf4"
    if stored.get("load_in_8bit"):
        return "int8"
    return str(stored.get("quant_method", "unknown"))


def resolve_backend(
    config: ModelConfig, stored: str | None, *, device: torch.device, dtype: torch.dtype, trainable: bool
) -> Backend:
    """The back-end to use, checked against the table.

    Raises ValueError where it does not exist, clashes with already quantised weights, does not run on the device,
    cannot be trained through, or is slower there than unquantised weights without `model.allow_slow_kernels`.
    """
    requested = config.quantization  # the schema has turned the family's `qlora` and `low_resource` into it
    name = stored or requested
    if stored is not None and requested not in ("none", stored):
        raise ValueError(
            f"model.quantization is {requested!r}, but {config.llama_path} holds weights already quantised as "
            f"{stored!r}; remove the option, or give the unquantised model."
        )
    if name not in BACKENDS:
        raise ValueError(f"model.quantization {name!r} has no back-end here; known: {', '.join(sorted(BACKENDS))}.")
    backend = BACKENDS[name]
    if backend.package is not None and importlib.util.find_spec(backend.package) is None:
        raise ValueError(f"model.quantization {name!r} needs the package {backend.package!r}; install it.")
    if device.type not in backend.devices:
        raise ValueError(f"model.quantization {name!r} runs on {' and '.join(backend.devices)}, not on {device}.")
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if 10 * major + minor < backend.min_sm and not config.allow_slow_kernels:
            raise ValueError(
                f"model.quantization {name!r} needs compute capability {backend.min_sm / 10}, "
                f"{torch.cuda.get_device_name(device)} has {major}.{minor}. Use another back-end, or set "
                "model.allow_slow_kernels=true to run its slow fallback."
            )
    if dtype not in backend.dtypes:
        raise ValueError(f"model.quantization {name!r} does not compute in {dtype}.")
    if trainable and not backend.trainable:
        raise ValueError(f"model.quantization {name!r} cannot be trained through; use it for evaluation only.")
    if device.type in backend.slower_on and not config.allow_slow_kernels:
        raise ValueError(
            f"model.quantization {name!r} is slower on {device.type} than unquantised weights. Use "
            "model.quantization=none, or set model.allow_slow_kernels=true if memory matters more."
        )
    return backend


def loading_arguments(backend: Backend, stored: str | None, dtype: torch.dtype) -> dict[str, object]:
    """What `from_pretrained` needs beside the path. Output head and embeddings stay unquantised."""
    if stored is not None or backend.name == "none":
        return {}
    if backend.name == "nf4":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=["lm_head"],
        )
    else:
        quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"])
    return {"quantization_config": quantization}


def make_trainable(model: nn.Module) -> None:
    """Keep quantised layers in the form through which gradients flow.

    On CPUs with AVX512-BF16 a bitsandbytes 4-bit layer repacks its weights in the first forward without gradients; from
    then on the gradient that reaches LoRA below it is silently zero.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        if type(module).__name__ == "Linear8bitLt":
            # It warns on every call that it computes in float16; `kernel_report` says so once.
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer, for every layer whose weights are held in fewer bits; the same names with LoRA as without."""
    layers = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")  # its own, not the one that a LoRA wrapper shows of its base layer
        if getattr(weight, "quant_state", None) is not None or type(weight).__name__ == "Int8Params":
            layers[name.removesuffix(".base_layer")] = module
    return layers


def kernel_report(model: PreTrainedModel, backend: Backend, device: torch.device, dtype: torch.dtype) -> str:
    """One line on what multiplies the language model's weights: back-end, kernel, device, compute type, layer count."""
    type_name = str(dtype).removeprefix("torch.")
    layers = quantized_layers(model)
    if not layers:
        return f"none: torch linear, {type_name}, {device.type}"
    kernels = sorted({_kernel_of(layer, device) for layer in layers.values()})
    return f"{backend.name}: {', '.join(kernels)}, compute {type_name}, {device.type}, {len(layers)} layers"


def _kernel_of(layer: nn.Module, device: torch.device) -> str:
    kind = f"bitsandbytes {type(layer).__name__}"
    if device.type == "cpu" and "4bit" in kind:
        return f"{kind} (dequantise, then torch matmul)"
    if "8bit" in kind:
        return f"{kind} (activations rounded from float16)"
    return kind


def weights_fingerprint(model: nn.Module) -> str:
    """A hash of all quantised weights and their scales: equal exactly where the numbers that run are equal."""
    digest = hashlib.sha256()
    for name, layer in sorted(quantized_layers(model).items()):
        weight = layer.weight
        digest.update(name.encode())
        digest.update(weight.data.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        state = getattr(weight, "quant_state", None)
        scales = state.as_dict(packed=True) if state is not None else {"scales": getattr(weight, "SCB", None)}
        for key, value in sorted(scales.items()):
            if isinstance(value, torch.Tensor):
                digest.update(key.encode())
                digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]

"""The table of quantisation back-ends for the language model, and what each can do on which device.

Serving kernels are not training kernels: a back-end that runs may give LoRA no gradient, or be slower than unquantised
weights. The table says so, `resolve_backend` checks it before anything is loaded, and `kernel_report` names the kernels
that actually run.
"""

import importlib.util
import logging
from dataclasses import dataclass

import torch
from torch import nn
from transformers import BitsAndBytesConfig, GPTQConfig, PreTrainedConfig, TorchAoConfig

from configs.architectures import stored_quantization
from configs.sections import ModelConfig
from models.quantization.gptq import GPTQSettings, cpu_block
from models.quantization.gptq_folder import reader_arguments
from support.command_line import UserError

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to store the language model's frozen weights."""

    name: str
    bits: int | None
    """Bits per weight; None: those of the compute type."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    min_sm: int = 60
    """Lowest CUDA compute capability, as 10 x major + minor."""
    dtypes: tuple[torch.dtype, ...] = FLOATS
    """Compute types."""
    trainable: bool = True
    """Gradients of LoRA layers on it are correct, also after an evaluation pass."""
    mergeable: bool = False
    """LoRA can be added into the weights without rounding them again."""
    package: str | None = None
    slower_on: tuple[str, ...] = ()
    """Devices where it is slower than unquantised weights; for `gptq` see `slow_reason`."""


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(name="none", bits=None, min_sm=0, mergeable=True),
        Backend(name="nf4", bits=4, package="bitsandbytes", slower_on=("cpu",)),
        # On devices without int8 matrix units bitsandbytes uses a slow fallback.
        Backend(name="int8", bits=8, min_sm=75, package="bitsandbytes", slower_on=("cpu",)),
        # gptq.py reads, multiplies and writes it; gptqmodel adds kernels for CUDA.
        Backend(name="gptq", bits=4),
        Backend(
            name="torchao_int4",
            bits=4,
            devices=("cuda",),
            min_sm=80,
            dtypes=(torch.bfloat16,),
            trainable=False,  # the product has no backward pass
            package="torchao",
        ),
        # It unpacks each weight before its product, unless the model is compiled.
        Backend(name="torchao_int8", bits=8, package="torchao", slower_on=("cpu", "cuda")),
    )
}
UNQUANTISED = ("lm_head",)
"""Modules that stay unquantised, besides the embeddings."""


def stored_backend(llm_config: PreTrainedConfig) -> str | None:
    """The back-end of a folder's weights, if they are already quantised."""
    return stored_quantization(_stored_config(llm_config))


def _stored_config(llm_config: PreTrainedConfig) -> dict | None:
    stored = getattr(llm_config, "quantization_config", None)
    return stored if stored is None or isinstance(stored, dict) else stored.to_dict()


def named_backend(config: ModelConfig, stored: str | None) -> Backend:
    """The back-end that a configuration and its folder ask for, wherever it may run.

    Raises UserError where it does not exist, or clashes with already quantised weights.
    """
    requested = config.quantization  # the schema has turned the family's `qlora` and `low_resource` into it
    name = stored or requested
    if stored is not None and requested not in ("none", stored):
        raise UserError(
            f"model.quantization is {requested!r}, but {config.llama_path} holds weights already quantised as "
            f"{stored!r}; remove the option, or give the unquantised model."
        )
    if name not in BACKENDS:
        raise UserError(f"model.quantization {name!r} has no back-end here; known: {', '.join(sorted(BACKENDS))}.")
    return BACKENDS[name]


def resolve_backend(
    config: ModelConfig, stored: str | None, *, device: torch.device, dtype: torch.dtype, trainable: bool
) -> Backend:
    """The back-end to use, checked against the table.

    Raises UserError as `named_backend` does, and where it does not run on the device, cannot be trained through, or is
    slower there than unquantised weights without `model.allow_slow_kernels`.
    """
    backend = named_backend(config, stored)
    name = backend.name
    if name == "gptq" and stored is None:
        raise UserError(
            f"model.quantization is 'gptq', but {config.llama_path} holds unquantised weights; make a GPTQ folder of "
            "them with tools/quantize.py and name it in model.llama_path, or set model.quantization=none."
        )
    if backend.package is not None and importlib.util.find_spec(backend.package) is None:
        raise UserError(f"model.quantization {name!r} needs the package {backend.package!r}; install it.")
    if device.type not in backend.devices:
        raise UserError(f"model.quantization {name!r} runs on {' and '.join(backend.devices)}, not on {device}.")
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if 10 * major + minor < backend.min_sm and not config.allow_slow_kernels:
            raise UserError(
                f"model.quantization {name!r} needs compute capability {backend.min_sm / 10}, "
                f"{torch.cuda.get_device_name(device)} has {major}.{minor}. Use another back-end, or set "
                "model.allow_slow_kernels=true to run its slow fallback."
            )
    if dtype not in backend.dtypes:
        possible = ", ".join(str(kind).removeprefix("torch.") for kind in backend.dtypes)
        raise UserError(f"model.quantization {name!r} does not compute in {dtype}; set model.dtype to {possible}.")
    if trainable:
        require_trainable(backend)
    reason = slow_reason(config, backend, device)
    if reason is not None and not config.allow_slow_kernels:
        raise UserError(
            f"model.quantization {name!r} is slower on {device.type} than unquantised weights{reason}. Use "
            "model.quantization=none, or set model.allow_slow_kernels=true if memory matters more."
        )
    return backend


def require_trainable(backend: Backend) -> None:
    """Raise UserError for a back-end that gives LoRA no gradient."""
    if not backend.trainable:
        able = ", ".join(name for name, entry in BACKENDS.items() if entry.trainable)
        raise UserError(
            f"model.quantization {backend.name!r} cannot be trained through; use it for evaluation only, or one of "
            f"{able}."
        )


def gptq_kernel(config: ModelConfig, device: torch.device) -> str:
    """The kernel that `model.gptq_kernel` selects on the device."""
    if config.gptq_kernel != "auto":
        return config.gptq_kernel
    if device.type == "cuda":
        extras = all(importlib.util.find_spec(package) for package in ("gptqmodel", "optimum"))
        return "gptqmodel" if extras else "dequantize"
    return "packed" if cpu_block() else "dequantize"


def slow_reason(config: ModelConfig, backend: Backend, device: torch.device) -> str | None:
    """Reason clause, or None: why the back-end is slower than none on the device (it may be empty).

    For GPTQ it depends on the kernel: PyTorch's 4-bit product and GPTQModel's are faster, unpacking each weight is not.
    """
    if backend.name != "gptq":
        return "" if device.type in backend.slower_on else None
    kernel = gptq_kernel(config, device)
    if kernel == "dequantize":
        fix = "the packages gptqmodel and optimum bring kernels that are not" if device.type == "cuda" else ""
        return f" with the kernel that unpacks each weight{f'; {fix}' if fix else ''}"
    return None


def loading_arguments(
    backend: Backend,
    stored: str | None,
    dtype: torch.dtype,
    *,
    config: ModelConfig,
    llm_config: PreTrainedConfig,
    device: torch.device,
) -> dict[str, object]:
    """Arguments of `from_pretrained` besides the path. Output head and embeddings stay unquantised.

    Raises:
        UserError: a GPTQ folder with unknown settings, or GPTQModel is asked for and not installed.
    """
    if backend.name == "gptq":
        return _gptq_arguments(config, llm_config, device)
    if stored is not None or backend.name == "none":
        return {}
    if backend.name == "nf4":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=config.nf4_double_quant,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=list(UNQUANTISED),
        )
    elif backend.name == "int8":
        quantization = BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=config.int8_threshold, llm_int8_skip_modules=list(UNQUANTISED)
        )
    else:
        quantization = TorchAoConfig(_torchao_type(backend, config), modules_to_not_convert=list(UNQUANTISED))
    return {"quantization_config": quantization}


def _gptq_arguments(config: ModelConfig, llm_config: PreTrainedConfig, device: torch.device) -> dict[str, object]:
    kernel = gptq_kernel(config, device)
    if kernel != "gptqmodel":
        return reader_arguments(llm_config, config.gptq_kernel)
    missing = [package for package in ("gptqmodel", "optimum") if importlib.util.find_spec(package) is None]
    if missing or device.type != "cuda":
        problem = f"needs the packages {' and '.join(missing)}" if missing else f"is for CUDA, not for {device}"
        raise UserError(f"model.gptq_kernel: gptqmodel {problem}; set it to auto, or see docs/quantisation.md.")
    settings = GPTQSettings.from_config(_stored_config(llm_config))
    return {"quantization_config": GPTQConfig(bits=settings.bits, backend=config.gptq_backend)}


def _torchao_type(backend: Backend, config: ModelConfig) -> object:
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

    if backend.name == "torchao_int8":
        return Int8WeightOnlyConfig(set_inductor_config=False)
    # The layout of PyTorch's own kernel; the default one needs another package.
    return Int4WeightOnlyConfig(
        group_size=config.torchao_group_size, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
    )


def compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Let a folder that was quantised before compute in `dtype`, whatever type its config.json names.

    Such a folder keeps the type that it was made with, in the library's own loading; a V100 has no bfloat16.
    """
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:  # bitsandbytes' 4 bits: the type of the weights once they are unpacked
            state.dtype = module.compute_dtype = dtype
            module.compute_type_is_set = True
        for name, parameter in module.named_parameters(recurse=False):
            is_packed = name == "weight" and (state is not None or type(module).__name__ == "Linear8bitLt")
            if parameter.is_floating_point() and not is_packed:
                parameter.data = parameter.data.to(dtype)


def make_trainable(model: nn.Module) -> None:
    """Keep quantised layers in the form that has gradients.

    On CPUs with AVX512-BF16 a bitsandbytes 4-bit layer repacks its weights in the first forward pass without gradients;
    after that the gradient of the LoRA layers below it is silently zero.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        if type(module).__name__ == "Linear8bitLt":
            # It warns on every call that it computes in float16; `kernel_report` says so once.
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)

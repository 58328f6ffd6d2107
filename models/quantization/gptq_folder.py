"""Folders in the AutoGPTQ format, read and written by transformers' own loading and saving.

Our quantiser is registered with transformers, so names, shards, revisions and tied weights are handled as for any other
folder, and the packages that transformers needs for GPTQ (optimum, gptqmodel) are not required.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from models.quantization.gptq import GPTQLinear, GPTQSettings, Kernel, StoredGPTQ, best_kernel
from support.command_line import UserError

METHOD = "smolt_gptq"
"""Our reader's name in transformers' table; in files it is `gptq`."""


@register_quantization_config(METHOD)
class GPTQReaderConfig(QuantizationConfigMixin):
    """A folder's settings and the kernel; written to files in AutoGPTQ's form."""

    def __init__(self, kernel: str = "auto", **stored: Any) -> None:
        self.quant_method = METHOD
        self.settings = GPTQSettings.from_config(stored)
        self.kernel = kernel

    def to_dict(self) -> dict[str, Any]:
        return self.settings.to_config()


@register_quantizer(METHOD)
class GPTQReader(HfQuantizer):
    """Loads tensors of files into `StoredGPTQ`, and makes a `GPTQLinear` of each."""

    requires_calibration = True

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **_: Any
    ) -> None:
        settings = self.quantization_config.settings
        quantized = _quantized_names(checkpoint_files or [])
        for name, linear in [*model.named_modules()]:
            if not isinstance(linear, nn.Linear):
                continue
            if quantized is None and linear is model.get_output_embeddings():
                continue
            if quantized is not None and _tail(name) not in quantized:
                continue
            has_bias = linear.bias is not None
            with torch.device("meta"):
                layer = StoredGPTQ(
                    linear.in_features, linear.out_features, settings, bias=has_bias, dtype=linear.weight.dtype
                )
            model.set_submodule(name, layer)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        wanted = self.quantization_config.kernel
        for name, layer in [*model.named_modules()]:
            if isinstance(layer, StoredGPTQ) and not layer.qweight.is_meta:  # the caller names missing ones
                model.set_submodule(name, runnable(layer, wanted))
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def runnable(layer: StoredGPTQ, kernel: str = "auto") -> GPTQLinear:
    """The layer with this kernel; `auto` is the fastest one for it.

    Raises:
        UserError: `packed` does not support this layer on this device.
    """
    best: Kernel = best_kernel(layer.settings, layer.in_features, layer.out_features, layer.qweight.device)
    if kernel == "packed" and best != "packed":
        raise UserError(
            f"model.gptq_kernel: packed does not take a layer of {layer.in_features} by {layer.out_features} with "
            f"{layer.settings} on {layer.qweight.device}; set it to auto"
        )
    return GPTQLinear(layer, kernel=best if kernel == "auto" else kernel)


def reader_arguments(llm_config: PreTrainedConfig, kernel: str) -> dict[str, object]:
    """Arguments of `from_pretrained` with which our reader loads a GPTQ folder."""
    stored = llm_config.quantization_config
    stored = stored if isinstance(stored, dict) else stored.to_dict()
    settings = GPTQSettings.from_config(stored).to_config()
    llm_config.quantization_config = settings | {"quant_method": METHOD, "kernel": kernel}
    return {"config": llm_config}


def save_folder(model: PreTrainedModel, folder: str | Path, settings: GPTQSettings) -> None:
    """Write a model whose quantised layers are `StoredGPTQ` or `GPTQLinear` as an AutoGPTQ folder, format v1.

    `model` is unchanged afterwards. The caller writes the tokenizer's files.
    """
    folder = Path(folder)
    originals = {name: layer for name, layer in model.named_modules() if isinstance(layer, GPTQLinear)}
    described = getattr(model.config, "quantization_config", None)
    quantizer = getattr(model, "hf_quantizer", None)
    try:
        for name, layer in originals.items():
            model.set_submodule(name, layer.stored())
        model.config.quantization_config = GPTQReaderConfig(**settings.to_config())
        if quantizer is not None:
            del model.hf_quantizer
        model.save_pretrained(folder)
    finally:
        for name, layer in originals.items():
            model.set_submodule(name, layer)
        if quantizer is not None:
            model.hf_quantizer = quantizer
        if described is None:
            del model.config.quantization_config
        else:
            model.config.quantization_config = described
    # AutoGPTQ also writes its settings to a separate file.
    text = json.dumps(settings.to_config(), indent=2)
    (folder / "quantize_config.json").write_text(text + "\n", encoding="utf-8")


def _quantized_names(files: list[str]) -> set[str] | None:
    """Tails of the names of the layers that are packed in these files; None for files of another format."""
    names: set[str] = set()
    for file in files:
        if not str(file).endswith(".safetensors"):
            return None
        with safe_open(file, framework="pt") as opened:
            names |= {_tail(key.removesuffix(".qweight")) for key in opened.keys() if key.endswith(".qweight")}  # noqa: SIM118
    return names or None


def _tail(name: str) -> str:
    """From `layers.` on: the part before it differs between a file and the module it is loaded into."""
    start = name.find("layers.")
    return name[start:] if start >= 0 else name.rsplit(".", 1)[-1]

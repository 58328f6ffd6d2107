"""A language model's folder in 4 bits, in AutoGPTQ's format, for times and bytes alone: weights are rounded to the
nearest value of their group, without calibration. tools/quantize.py makes folders to use.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM

from configs.sections import ModelConfig
from models.hub import located
from models.quantization.gptq import GPTQSettings, StoredGPTQ
from models.quantization.gptq_folder import save_folder

GROUP_SIZE, SMALL_GROUP_SIZE = 128, 32
MIDDLE = 8  # of 4 bits
SMALLEST_SCALE = 1e-4  # scales are float16
WEIGHT_FILES = ("*.safetensors*", "*.bin*", "config.json", "generation_config.json")


def write_in_4_bits(config: ModelConfig, folder: str | Path, *, small: bool = False) -> ModelConfig:
    """Write the unquantised language model of `config` in 4 bits; the configuration that reads it."""
    source = Path(located(config.llama_path)[0])
    group_size = SMALL_GROUP_SIZE if small else GROUP_SIZE
    made = write_gptq(source, Path(folder) / f"{source.name}_gptq", group_size=group_size)
    return dataclasses.replace(config, llama_path=str(made), quantization="gptq")


@torch.no_grad()
def write_gptq(source: str | Path, folder: str | Path, *, group_size: int = GROUP_SIZE) -> Path:
    """Write the language model of `source` to `folder` in 4 bits, with its tokenizer, unless that folder exists."""
    source, folder = Path(source), Path(folder)
    if folder.exists():
        return folder
    settings = GPTQSettings(group_size=group_size)
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    head = model.get_output_embeddings()
    for name, layer in [*model.named_modules()]:
        if isinstance(layer, nn.Linear) and layer is not head:
            model.set_submodule(name, rounded(layer, settings))
    draft = folder.with_name(folder.name + ".part")
    shutil.rmtree(draft, ignore_errors=True)
    save_folder(model, draft, settings)
    weights = {path.name for pattern in WEIGHT_FILES for path in source.glob(pattern)}
    for path in source.iterdir():
        if path.is_file() and path.name not in weights:
            shutil.copy2(path, draft)
    draft.rename(folder)
    return folder


def rounded(layer: nn.Linear, settings: GPTQSettings) -> StoredGPTQ:
    """The layer with each weight rounded to the nearest of its group's sixteen evenly spaced values."""
    outputs, inputs = layer.weight.shape
    groups = settings.groups(inputs)
    size = inputs if settings.group_size == -1 else settings.group_size
    values = F.pad(layer.weight.float(), (0, groups * size - inputs)).unflatten(
        1, (groups, size)
    )  # [out, groups, size]
    scales = (values.abs().amax(dim=2) / (MIDDLE - 1)).clamp(min=SMALLEST_SCALE)
    integers = (values / scales[:, :, None]).round_().add_(MIDDLE).clamp_(0, 2 * MIDDLE - 1)
    zeros = torch.full((groups, outputs), MIDDLE, dtype=torch.int32)
    integers = integers.flatten(1)[:, :inputs].to(torch.uint8)
    return StoredGPTQ.of(integers, zeros, scales.T, settings.group_of(inputs), settings, bias=layer.bias)

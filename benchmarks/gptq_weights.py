"""A language model's folder in 4 bits, in AutoGPTQ's format: for times and bytes, which ask for no calibration.

Weights are rounded to the nearest value of their group; tools/quantize.py makes folders that are meant to be right.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks import bare_machine  # noqa: F401 - before the program, whose readers of recordings may be absent
from configs.schema import ModelConfig
from models.gptq import GPTQSettings
from models.gptq_folder import save_folder
from models.gptq_solver import round_to_nearest

GROUP_SIZE, SMALL_GROUP_SIZE = 128, 32
WEIGHT_FILES = ("*.safetensors*", "*.bin*", "config.json", "generation_config.json")


def write_in_4_bits(config: ModelConfig, folder: str | Path, *, small: bool = False) -> ModelConfig:
    """The configuration that reads the language model of `config`, unquantised files that are there, in 4 bits."""
    source = Path(config.llama_path)
    group_size = SMALL_GROUP_SIZE if small else GROUP_SIZE
    made = write_gptq(source, Path(folder) / f"{source.name}_gptq", group_size=group_size)
    return dataclasses.replace(config, llama_path=str(made), quantization="gptq")


@torch.no_grad()
def write_gptq(source: str | Path, folder: str | Path, *, group_size: int = GROUP_SIZE) -> Path:
    """Write the language model of `source` to `folder` in 4 bits, with its tokenizer; a folder there is kept."""
    source, folder = Path(source), Path(folder)
    if folder.exists():
        return folder
    settings = GPTQSettings(group_size=group_size)
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    head = model.get_output_embeddings()
    for name, layer in [*model.named_modules()]:
        if isinstance(layer, nn.Linear) and layer is not head:
            model.set_submodule(name, round_to_nearest(layer.weight, settings).stored(settings, layer.bias))
    draft = folder.with_name(folder.name + ".part")
    shutil.rmtree(draft, ignore_errors=True)
    save_folder(model, draft, settings)
    weights = {path.name for pattern in WEIGHT_FILES for path in source.glob(pattern)}
    for path in source.iterdir():
        if path.is_file() and path.name not in weights:
            shutil.copy2(path, draft)
    draft.rename(folder)
    return folder

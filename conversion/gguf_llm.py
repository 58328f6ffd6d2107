"""A language model in GGUF (llama.cpp's format) to a folder that transformers and `model.llama_path` read.

Weights are dequantised as the package `gguf` does it, which is what llama.cpp multiplies with; every tensor of the file
must have its place in the model, and every weight of the model its tensor. Nothing of the file is run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from conversion.gguf_config import ROPE_FREQUENCIES, config_of
from conversion.gguf_file import GGUFFile, read_gguf
from conversion.gguf_tokenizer import tokenizer_of
from support.command_line import UserError
from support.files import new_folder

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SHOWN = 5  # tensors that an error names
ROTATED = re.compile(r"\.attn_([qk])\.(weight|bias)$")


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was found in a file, and what was written."""

    name: str
    architecture: str
    parameters: int
    types: dict[str, int]
    """Type of tensors -> how many."""
    dtype: str
    """The type that they were written in."""
    vocabulary: int
    has_template: bool
    license: str

    def __str__(self) -> str:
        types = ", ".join(f"{count} {name}" for name, count in self.types.items())
        return (
            f"{self.name}: {self.architecture}, {self.parameters:,} parameters ({types}), written in {self.dtype}; "
            f"{self.vocabulary:,} tokens; {'a' if self.has_template else 'no'} chat template; "
            f"license: {self.license or 'not stated'}"
        )


def convert_gguf(source: Path, folder: Path, dtype: str = "auto") -> Converted:
    """Write the folder of a GGUF language model, whole or not at all.

    Args:
        dtype: `float32`, `float16`, `bfloat16`; `auto` is the type of the file's matrices, and float16 where they are
            quantised: what that rounds away is far below what quantisation has.

    Raises:
        UserError: the file is no GGUF language model of a known architecture, is damaged, or lacks tensors; or the
            folder has files in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; expected the name of a new folder, or of an empty one")
    file = read_gguf(source)
    config, tokenizer = config_of(file), tokenizer_of(file)
    dtype = _stored_dtype(file) if dtype == "auto" else dtype
    model = _model(file, config, DTYPES[dtype])
    with new_folder(folder) as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    return Converted(
        name=str(file.metadata.get("general.name") or source.name),
        architecture=file.architecture,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        types=file.types(),
        dtype=dtype,
        vocabulary=len(tokenizer),
        has_template=tokenizer.chat_template is not None,
        license=str(file.metadata.get("general.license", "")),
    )


def _stored_dtype(file: GGUFFile) -> str:
    matrices = {tensor.tensor_type.name for tensor in file.tensors.values() if len(tensor.shape) > 1}
    if matrices <= {"F32"}:
        return "float32"
    return "bfloat16" if matrices <= {"F32", "BF16"} else "float16"


def _model(file: GGUFFile, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model with the file's weights, on the CPU."""
    config.dtype = dtype
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    places = _places(file, model)
    state = {place: _weights(file, name, config).to(dtype) for name, place in places.items()}
    overflowing = [name for name, place in places.items() if not torch.isfinite(state[place]).all()]
    if overflowing:
        raise UserError(
            f"{file.path}: {overflowing[0]} has values that are not finite in {str(dtype).removeprefix('torch.')}; "
            "write it in float32 (--dtype float32), or download it again"
        )
    wrong = [place for place, shape in _shapes(model).items() if place in state and state[place].shape != shape]
    if wrong:
        raise UserError(
            f"{file.path}: {wrong[0]} is {list(state[wrong[0]].shape)}, expected {list(_shapes(model)[wrong[0]])} by "
            "the sizes that the file states"
        )
    model.load_state_dict(state, strict=False, assign=True)  # what is there was compared above; buffers stay computed
    model.tie_weights()
    ends = {key: getattr(config, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ends)
    return model


def _shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    """The model's own weights; a tied output head is the embedding table again."""
    tied = model.config.tie_word_embeddings
    return {key: value.shape for key, value in model.state_dict().items() if not (tied and key == "lm_head.weight")}


def _places(file: GGUFFile, model: PreTrainedModel) -> dict[str, str]:
    """Tensor of the file -> weight of the model, each exactly once."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = next(key for key, name in MODEL_ARCH_NAMES.items() if name == file.architecture)
    names = get_tensor_name_map(architecture, model.config.num_hidden_layers)
    found = {}
    for key in _shapes(model):
        stem, _, suffix = key.rpartition(".")
        found[f"{names.get_name(stem)}.{suffix}"] = key
    missing = sorted(found.keys() - file.tensors.keys())
    unknown = sorted(file.tensors.keys() - found.keys() - {ROPE_FREQUENCIES})
    for what, listed in (("lacks", missing), ("holds, without a place in the model,", unknown)):
        if listed:
            more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
            raise UserError(
                f"{file.path} {what} {len(listed)} tensors: {', '.join(listed[:SHOWN])}{more}; expected a whole "
                f"{file.architecture} model"
            )
    return found


def _weights(file: GGUFFile, name: str, config: PreTrainedConfig) -> Tensor:
    """One tensor in float32, in transformers' conventions."""
    weights = file.weights(name)
    rotated = ROTATED.search(name)
    if rotated and file.architecture == "llama":
        heads = config.num_attention_heads if rotated[1] == "q" else config.num_key_value_heads
        return _halves_apart(weights, heads)
    if file.architecture.startswith("gemma") and name.endswith("norm.weight"):
        return weights - 1  # llama.cpp stores what is multiplied with
    return weights


def _halves_apart(weights: Tensor, heads: int) -> Tensor:
    """llama.cpp rotates neighbouring rows of a head as a pair, transformers a row and the one half a head on."""
    pairs = weights.reshape(heads, weights.shape[0] // heads // 2, 2, *weights.shape[1:])
    return pairs.transpose(1, 2).reshape(weights.shape)

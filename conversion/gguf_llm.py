"""A language model in GGUF (llama.cpp's format) to a folder that transformers and `model.llama_path` read.

Weights are dequantised as the package `gguf` does it, which is what llama.cpp multiplies with; every tensor of the file
must have its place in the model, and every weight of the model its tensor. Nothing of the file is run.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerFast

from conversion.gguf_config import ROPE_FREQUENCIES, config_of
from conversion.gguf_file import GGUFFile, is_gguf, read_gguf
from conversion.gguf_tokenizer import tokenizer_of
from conversion.stored_tensors import StoredTensor, exact_dtype
from conversion.weights_folder import write_weights
from models.device import META
from support.command_line import UserError

PLAIN_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
SHOWN = 5  # tensors that an error names
HEAD = "lm_head.weight"
ROTATED = re.compile(r"\.attn_([qk])\.(weight|bias)$")

recognises = is_gguf


def convert(source: Path, folder: Path, dtype: str | None, report: Callable[[str], None]) -> None:
    """Fill an empty folder: weights, configurations, tokenizer with chat template.

    Args:
        dtype: of the weights; None for one that keeps every value, float32 where they are quantised.

    Raises:
        UserError: the file is no GGUF language model of a known architecture, is damaged, or lacks tensors.
    """
    file = read_gguf(source)
    config, tokenizer = config_of(file), tokenizer_of(file)
    tensors = _stored(file, config)
    chosen = getattr(torch, dtype) if dtype else exact_dtype(tensors.values())
    report(_found(file, tokenizer, sum(tensor.size for tensor in tensors.values())))
    config.dtype = chosen
    config.save_pretrained(folder)
    ends = {key: getattr(config, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**ends).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_weights(folder, tensors, chosen, source)
    report(f"{len(tensors)} tensors in {str(chosen).removeprefix('torch.')}")


def _found(file: GGUFFile, tokenizer: PreTrainedTokenizerFast, parameters: int) -> str:
    types = ", ".join(f"{count} {name}" for name, count in file.types().items())
    splits = file.metadata.get("tokenizer.ggml.pre")
    return (
        f"{file.path}: {file.metadata.get('general.name', 'a model without a name')}, GGUF of {file.architecture}, "
        f"{parameters:,} parameters (tensors: {types}); {len(tokenizer):,} tokens"
        f"{f', split as {splits!r}' if splits else ''}; {'a' if tokenizer.chat_template else 'no'} chat template; "
        f"license: {file.metadata.get('general.license', 'not stated')}"
    )


def _stored(file: GGUFFile, config: PreTrainedConfig) -> dict[str, StoredTensor]:
    """The file's tensors under transformers' names; each is read when it is written."""
    with META:
        model = AutoModelForCausalLM.from_config(config)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop(HEAD, None)  # the embedding table again
    tensors = {}
    for name, key in _places(file, list(shapes), config).items():
        found = file.shape(name)
        if found != shapes[key]:
            raise UserError(
                f"{file.path}: {name} is {list(found)}, expected {list(shapes[key])} by the sizes that the file states"
            )
        kind = file.tensors[name].tensor_type.name
        load = partial(_weights, file, name, config)
        tensors[key] = StoredTensor(shape=found, type=PLAIN_TYPES.get(kind, kind.lower()), load=load)
    return tensors


def _places(file: GGUFFile, keys: list[str], config: PreTrainedConfig) -> dict[str, str]:
    """Tensor of the file -> weight of the model, each exactly once."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = next(key for key, name in MODEL_ARCH_NAMES.items() if name == file.architecture)
    names = get_tensor_name_map(architecture, config.num_hidden_layers)
    found = {}
    for key in keys:
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

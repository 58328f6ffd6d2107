"""Small GGUF files: a tiny language model written as llama.cpp's converter writes the full-size ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from transformers import AutoModelForCausalLM

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2", "gemma3_text": "gemma3"}
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA_LAYER = LAYER | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
TEMPLATE = "{% for message in messages %}USER: {{ message['content'] }}\nASSISTANT:{% endfor %}"


def write_gguf(
    path: Path,
    folder: Path,
    *,
    quantization: str = "F32",
    metadata: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    without: str | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write the language model of a folder (`tiny.write_llm`) as a GGUF file.

    Args:
        quantization: the type of its matrices.
        metadata: keys without the architecture's name, in the place of the model's own; None leaves one out.
        tokenizer: keys of `tokenizer.ggml`, in the place of the folder's tokenizer.
        without: a tensor that is left out.
        extra: tensors that are added.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    name = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, name)
    writer.add_string("general.name", "tiny")
    writer.add_string("general.license", "mit")
    keys = _sizes(config) | dict(metadata or {})
    for key, value in keys.items():
        _add(writer, f"{name}.{key}", value)
    words = dict(byte_level(folder)) | dict(tokenizer or {})
    for key, value in words.items():
        _add(writer, f"tokenizer.{key}" if key == "chat_template" else f"tokenizer.ggml.{key}", value)
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        _add_tensor(writer, *_as_gguf(key, tensor.numpy(), config), quantization, without)
    for key, values in (extra or {}).items():
        writer.add_tensor(key, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _sizes(config: Any) -> dict[str, Any]:
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": getattr(config, "head_dim", None),
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.sliding_window": getattr(config, "sliding_window", None),
        "rope.freq_base": rope["rope_theta"],
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
    }


def byte_level(folder: Path) -> dict[str, Any]:
    """Keys of `tokenizer.ggml` for the byte-level BPE of a folder."""
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["id"] for token in stored["added_tokens"]}
    tokens = sorted(stored["model"]["vocab"], key=stored["model"]["vocab"].__getitem__)
    return {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [3 if index in special else 1 for index in range(len(tokens))],
        "merges": [" ".join(merge) for merge in stored["model"]["merges"]],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "padding_token_id": 3,
        "unknown_token_id": 0,
        "chat_template": TEMPLATE,
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def _as_gguf(key: str, values: np.ndarray, config: Any) -> tuple[str, np.ndarray]:
    """llama.cpp's name of a weight, and its values in llama.cpp's order."""
    gemma = config.model_type.startswith("gemma")
    stem, _, suffix = key.rpartition(".")
    if gemma and stem.endswith("norm"):
        values = values + 1
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.{suffix}", values
    _, _, number, inner = stem.split(".", 3)
    if config.model_type == "llama" and inner in ("self_attn.q_proj", "self_attn.k_proj"):
        heads = config.num_attention_heads if inner == "self_attn.q_proj" else config.num_key_value_heads
        halves = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
        values = halves.swapaxes(1, 2).reshape(values.shape)
    return f"blk.{number}.{(GEMMA_LAYER if gemma else LAYER)[inner]}.{suffix}", values


def _add_tensor(writer: gguf.GGUFWriter, name: str, values: np.ndarray, quantization: str, without: str | None) -> None:
    if name == without:
        return
    kind = GGMLQuantizationType[quantization if values.ndim > 1 else "F32"]
    writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)

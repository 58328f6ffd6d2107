"""The transformers configuration of a GGUF language model, from what the file says of itself."""

from __future__ import annotations

import math

import numpy as np
from transformers import AutoConfig, PreTrainedConfig

from conversion.gguf_file import GGUFFile
from support.command_line import UserError

MODEL_TYPES = {
    "llama": "llama",  # Mistral too, which llama.cpp treats as one
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
"""`general.architecture` -> `model_type`: the families that this program assembles and tests."""
GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}
"""llama.cpp knows the one size whose queries are scaled by width / heads by its layers."""
ROPE_FREQUENCIES = "rope_freqs.weight"
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA3_FACTORS = (8.0, 32.0)  # Llama 3.1 and 3.3; 3.2
GGUF_NAMES = {"pad_token_id": "padding_token_id", "unk_token_id": "unknown_token_id"}
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def config_of(file: GGUFFile) -> PreTrainedConfig:
    """The configuration.

    Raises:
        UserError: the architecture, or a way of scaling positions, is none that is converted.
    """
    kind = MODEL_TYPES.get(file.architecture)
    if kind is None:
        raise UserError(
            f"{file.path} holds a model of architecture {file.architecture!r}; expected a language model of "
            f"{', '.join(MODEL_TYPES)}"
        )
    heads, width, layers = (_number(file, key) for key in ("attention.head_count", "embedding_length", "block_count"))
    if not (0 < heads <= width and 0 < layers <= len(file.tensors)):
        raise UserError(f"{file.path} states {layers} layers with {heads} heads of {width}; no model has such sizes")
    settings = {
        "vocab_size": len(file.required_entry("tokenizer.ggml.tokens")),
        "hidden_size": width,
        "intermediate_size": _number(file, "feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": _number(file, "attention.head_count_kv", heads),
        "head_dim": _number(file, "attention.key_length", _number(file, "rope.dimension_count", width // heads)),
        "max_position_embeddings": _number(file, "context_length"),
        "rms_norm_eps": _positive(file, "attention.layer_norm_rms_epsilon"),
        "rope_theta": _positive(file, "rope.freq_base", 10_000.0),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **{key: token_id(file, key) for key in ("bos_token_id", "pad_token_id")},
        "eos_token_id": end_ids(file),
    }
    scaling = _rope_scaling(file, settings)
    if scaling:
        settings["rope_scaling"] = scaling
    if kind == "qwen2":
        del settings["head_dim"]  # always width / heads
    if kind.startswith("gemma"):
        settings |= _gemma_settings(file, settings)
    try:
        return AutoConfig.for_model(kind, **settings)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{file.path}: its sizes make no {kind} model: {str(error).strip().splitlines()[-1]}"
        ) from error


def token_id(file: GGUFFile, key: str) -> int | None:
    """The file's `bos_token_id`, `pad_token_id` and so on; None where it has none."""
    value = file.metadata.get(f"tokenizer.ggml.{GGUF_NAMES.get(key, key)}")
    return None if value is None or not 0 <= value < len(file.metadata["tokenizer.ggml.tokens"]) else int(value)


def end_ids(file: GGUFFile) -> int | list[int] | None:
    """The ids that end an answer: one, or several for models that end turns in several ways."""
    found = list(dict.fromkeys(found for key in END_KEYS if (found := token_id(file, key)) is not None))
    return found[0] if len(found) == 1 else found or None


def _number(file: GGUFFile, key: str, default: int | None = None) -> int:
    value = file.required(key) if default is None else file.value(key, default)
    if not isinstance(value, int):  # a list: pruned layer by layer
        raise UserError(f"{file.path}: {file.architecture}.{key} is {str(value)[:60]}; expected one whole number")
    return value


def _positive(file: GGUFFile, key: str, default: float | None = None) -> float:
    value = file.required(key) if default is None else file.value(key, default)
    if not isinstance(value, float) or not 0 < value < math.inf:
        raise UserError(f"{file.path}: {file.architecture}.{key} is {str(value)[:60]}; expected a number above 0")
    return value


def _rope_scaling(file: GGUFFile, settings: dict) -> dict | None:
    kind = str(file.value("rope.scaling.type", "none"))
    if ROPE_FREQUENCIES in file.tensors:
        return _llama3_scaling(file, settings)
    if kind == "none":
        return None
    factor = _positive(file, "rope.scaling.factor", 1.0)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        original = file.value("rope.scaling.original_context_length")
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    raise UserError(f"{file.path}: positions are scaled by {kind!r}; expected none, linear, yarn or Llama 3's way")


def _llama3_scaling(file: GGUFFile, settings: dict) -> dict:
    """Llama 3.1 to 3.3 store the divisors of the rotary frequencies; the settings that give them."""
    stored = file.weights(ROPE_FREQUENCIES).numpy().astype(np.float64)
    for factor in LLAMA3_FACTORS:
        if np.allclose(_llama3_divisors(settings, factor), stored, rtol=1e-3):
            return {"rope_type": "llama3", "factor": factor, **LLAMA3_ROPE}
    raise UserError(
        f"{file.path}: {ROPE_FREQUENCIES} are none of Llama 3's frequencies (factors "
        f"{' and '.join(f'{factor:g}' for factor in LLAMA3_FACTORS)}); such positions are not converted"
    )


def _llama3_divisors(settings: dict, factor: float) -> np.ndarray:
    """As llama.cpp's converter computes them."""
    half = np.arange(0, settings["head_dim"], 2) / settings["head_dim"]
    wavelengths = 2 * np.pi * settings["rope_theta"] ** half
    original = LLAMA3_ROPE["original_max_position_embeddings"]
    low, high = LLAMA3_ROPE["low_freq_factor"], LLAMA3_ROPE["high_freq_factor"]
    smooth = (original / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(wavelengths < original / high, 1.0, np.where(wavelengths > original / low, factor, between))


def _gemma_settings(file: GGUFFile, settings: dict) -> dict:
    large = settings["num_hidden_layers"] == GEMMA_27B_LAYERS[file.architecture]
    scaled_by = settings["hidden_size"] // settings["num_attention_heads"] if large else settings["head_dim"]
    found = {"query_pre_attn_scalar": scaled_by, "hidden_activation": "gelu_pytorch_tanh"}
    for ours, theirs in (
        ("sliding_window", "attention.sliding_window"),
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ):
        if file.value(theirs) is not None:
            found[ours] = file.value(theirs)
    return found

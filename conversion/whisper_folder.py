"""A Whisper model of any source to a folder of transformers: what all of its formats share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from conversion.stored_tensors import StoredTensor, exact_dtype, main_type
from conversion.weights_folder import write_weights
from conversion.whisper_names import layer_count
from conversion.whisper_tokens import WhisperTokens
from models.device import META
from support.command_line import UserError

SHOWN = 6  # tensors that an error names
EMBEDDING, HEAD = "model.decoder.embed_tokens.weight", "proj_out.weight"


@dataclass(frozen=True, kw_only=True)
class WhisperSource:
    """What was read from a source; nothing of the weights is in memory yet."""

    path: Path
    format: str
    """With its version, as the user is told."""
    tensors: dict[str, StoredTensor]
    """By transformers' names. The output layer is missing where it is the embedding."""
    encoder_heads: int
    decoder_heads: int
    tokens: WhisperTokens | None
    """None where they are not known: then the decoder can be used, but `generate` has no settings."""
    settings: dict
    """Of generation: what the source itself states."""
    write_tokenizer: Callable[[Path], None] | None
    no_tokenizer: str = ""
    """Why there is none."""


def write_whisper(source: WhisperSource, folder: Path, dtype: str | None, report: Callable[[str], None]) -> None:
    """Fill an empty folder: weights, configurations, tokenizer. UserError where the model is not whole."""
    config = _config(source)
    _check(source, config)
    types = main_type(source.tensors.values())
    report(f"{source.path}: {source.format}, {_described(config, source.tokens)}, {types}")
    chosen = getattr(torch, dtype) if dtype else exact_dtype(source.tensors.values())
    config.dtype = chosen
    config.save_pretrained(folder)
    _write_generation_config(source, config, folder)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(folder)
    if source.write_tokenizer:
        source.write_tokenizer(folder)
    else:
        report(f"no tokenizer written: {source.no_tokenizer}")
    write_weights(folder, source.tensors, chosen, source.path)
    report(f"{len(source.tensors)} tensors in {str(chosen).removeprefix('torch.')}")


def _config(source: WhisperSource) -> WhisperConfig:
    """The sizes, as the tensors have them."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        tensor = source.tensors.get(name)
        if tensor is None:
            raise UserError(f"{source.path} lacks {name}; expected a whole Whisper, encoder and decoder")
        if len(tensor.shape) != rank or 0 in tensor.shape:
            raise UserError(f"{source.path}: {name} is {list(tensor.shape)}; expected {rank} sizes above 0")
        return tensor.shape

    vocabulary, width = shape(EMBEDDING, 2)
    for side, heads in (("encoder", source.encoder_heads), ("decoder", source.decoder_heads)):
        if heads < 1 or width % heads:
            raise UserError(f"{source.path}: {heads} heads of the {side} do not divide the width {width}")
    special = source.tokens.settings() if source.tokens else {"decoder_start_token_id": 0}  # which must be a number
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    return WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=shape("model.encoder.conv1.weight", 3)[1],
        d_model=width,
        encoder_layers=layer_count(source.tensors, "encoder"),
        decoder_layers=layer_count(source.tensors, "decoder"),
        encoder_attention_heads=source.encoder_heads,
        decoder_attention_heads=source.decoder_heads,
        encoder_ffn_dim=shape("model.encoder.layers.0.fc1.weight", 2)[0],
        decoder_ffn_dim=shape("model.decoder.layers.0.fc1.weight", 2)[0],
        max_source_positions=shape("model.encoder.embed_positions.weight", 2)[0],
        max_target_positions=shape("model.decoder.embed_positions.weight", 2)[0],
        tie_word_embeddings=HEAD not in source.tensors,
        architectures=["WhisperForConditionalGeneration"],
        **{name: special.get(name) for name in names},
    )


def _check(source: WhisperSource, config: WhisperConfig) -> None:
    """Every tensor of transformers' model is there, in its shape, and no other."""
    with META:
        model = WhisperForConditionalGeneration(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del expected[HEAD]
    found = {name: tensor.shape for name, tensor in source.tensors.items()}
    faults = [f"{name} is missing" for name in expected if name not in found]
    faults += [f"{name} is unknown" for name in found if name not in expected]
    faults += [
        f"{name} is {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    if faults:
        more = f" and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UserError(
            f"{source.path} is no whole Whisper: {', '.join(faults[:SHOWN])}{more}; copy or download it again, "
            "or it is another model"
        )


def _described(config: WhisperConfig, tokens: WhisperTokens | None) -> str:
    languages = "" if tokens is None else " (multilingual)" if tokens.multilingual else " (English only)"
    return (
        f"Whisper with {config.encoder_layers} + {config.decoder_layers} layers, width {config.d_model}, "
        f"{config.num_mel_bins} mel bins, {config.vocab_size:,} tokens{languages}"
    )


def _write_generation_config(source: WhisperSource, config: WhisperConfig, folder: Path) -> None:
    settings = {"max_length": config.max_target_positions, **source.settings}
    if source.tokens:
        settings = source.tokens.settings() | settings
    GenerationConfig(**settings).save_pretrained(folder)

"""The table of audio encoders: how each is named in `model`, and how it is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from models.encoders.base import AudioEncoder
from models.encoders.beats import BEATs
from models.encoders.ced import CED
from models.encoders.huggingface import HFEncoder
from models.encoders.whisper import WhisperEncoder
from support.command_line import UserError

if TYPE_CHECKING:
    from configs.sections import ModelConfig


@dataclass(frozen=True, kw_only=True)
class EncoderEntry:
    """One row of the table: how an encoder is named in `model`, and how it is built."""

    path_key: str
    """The field of `model` that names its weights; the encoder is used where it is set."""
    freeze_key: str
    """The field of `model` that says whether it is frozen."""
    build: Callable[[ModelConfig, torch.dtype, bool], AudioEncoder]
    """From the configuration, the dtype of the weights, and whether to load them."""


def _build_whisper(config: ModelConfig, dtype: torch.dtype, weights: bool) -> AudioEncoder:
    window = config.window if config.legacy == "off" else "full"
    return WhisperEncoder.from_pretrained(
        config.whisper_path,
        window=window,
        dtype=dtype,
        token=config.token or None,
        layers=config.whisper_layers,
        int8=config.encoder_quantization == "int8",
        weights=weights,
    )


def _build_beats(config: ModelConfig, dtype: torch.dtype, weights: bool) -> AudioEncoder:
    # Released systems computed the fbank in float64. BEATs itself stays in float32, see there.
    fbank_dtype = torch.float32 if config.legacy == "off" else torch.float64
    return BEATs.from_checkpoint(
        config.beats_path,
        fbank_dtype=fbank_dtype,
        layers=config.beats_layers,
        int8=config.encoder_quantization == "int8",
        weights=weights,
    )


def _build_ced(config: ModelConfig, dtype: torch.dtype, weights: bool) -> AudioEncoder:
    # The published system with CED: 30 s in one piece, rescaled decibels, tokens in the network's order.
    legacy = {} if config.legacy == "off" else {"target_length": 3001, "rescale": True, "frequency_major": True}
    return CED.from_checkpoint(config.ced_path, dtype=dtype, token=config.token or None, weights=weights, **legacy)


def _hf_entry(name: str, *kinds: str) -> EncoderEntry:
    """An encoder of transformers; `kinds` are the model types that its path may lead to."""

    def build(config: ModelConfig, dtype: torch.dtype, weights: bool) -> AudioEncoder:
        window = config.window if config.legacy == "off" else "full"
        return HFEncoder.from_pretrained(
            getattr(config, f"{name}_path"),
            kinds=kinds,
            window=window,
            dtype=dtype,
            token=config.token or None,
            weights=weights,
        )

    return EncoderEntry(path_key=f"{name}_path", freeze_key=f"freeze_{name}", build=build)


ENCODERS: dict[str, EncoderEntry] = {
    "whisper": EncoderEntry(path_key="whisper_path", freeze_key="freeze_whisper", build=_build_whisper),
    "beats": EncoderEntry(path_key="beats_path", freeze_key="freeze_beats", build=_build_beats),
    "ced": EncoderEntry(path_key="ced_path", freeze_key="freeze_ced", build=_build_ced),
    "wavlm": _hf_entry("wavlm", "wavlm"),
    "hubert": _hf_entry("hubert", "hubert"),
    "wav2vec2": _hf_entry("wav2vec2", "wav2vec2", "wav2vec2-bert"),
    "ast": _hf_entry("ast", "audio-spectrogram-transformer"),
    "parakeet": _hf_entry("parakeet", "parakeet_encoder", "parakeet_ctc", "parakeet_rnnt", "parakeet_tdt"),
}


def build_encoder(
    name: str, config: ModelConfig, dtype: torch.dtype = torch.float32, *, weights: bool = True
) -> AudioEncoder:
    """The encoder called `name`, with the weights that `config` names for it, or without, on the meta device.

    Raises UserError for a name that is not in the table, or without a path.
    """
    if name not in ENCODERS:
        raise UserError(f"encoder {name!r} is not known; expected one of {', '.join(ENCODERS)}")
    entry = ENCODERS[name]
    if not getattr(config, entry.path_key):
        raise UserError(f"encoder {name!r} has no weights; set model.{entry.path_key}")
    try:
        return entry.build(config, dtype, weights)
    except UserError as error:
        raise UserError(f"model.{entry.path_key}: {error}") from error


def frozen_encoders(config: ModelConfig) -> dict[str, bool]:
    """Every encoder that `config` names weights for, in the table's order, and whether it is frozen."""
    named = {name: entry for name, entry in ENCODERS.items() if getattr(config, entry.path_key)}
    return {name: getattr(config, entry.freeze_key) for name, entry in named.items()}

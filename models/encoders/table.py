"""The table of audio encoders: how each is named in `model`, and how it is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from models.encoders.base import AudioEncoder
from models.encoders.beats import BEATs
from models.encoders.ced import CED
from models.encoders.huggingface import HFEncoder
from models.encoders.whisper import WhisperEncoder, Window
from support.command_line import UserError

if TYPE_CHECKING:
    from configs.sections import ModelConfig


@dataclass(frozen=True, kw_only=True)
class EncoderRules:
    """How a model's encoders treat clips, besides what its configuration says; the defaults are this program's own."""

    window: Window | None = None
    """How much audio Whisper and AST take, in place of `model.window`."""
    fbank_dtype: torch.dtype = torch.float32
    """Type in which BEATs' fbank is computed."""
    ced_options: Mapping[str, Any] = field(default_factory=dict)
    """Of `CED.from_checkpoint`: `target_length`, `rescale`, `frequency_major`."""
    min_samples: int = 1
    """Shorter clips are extended to this with silence, or to more where an encoder needs it."""
    depends_on_batch: bool = False
    """Whether a clip's frames depend on its batch."""


OWN_RULES = EncoderRules()


@dataclass(frozen=True, kw_only=True)
class EncoderEntry:
    """One row of the table: how an encoder is named in `model`, and how it is built."""

    path_key: str
    """The field of `model` that names its weights; an encoder is used if it is set."""
    freeze_key: str
    """The field of `model` that says whether it is frozen."""
    build: Callable[[ModelConfig, EncoderRules, torch.dtype, bool], AudioEncoder]
    """From the configuration, the rules, the dtype of the weights, and whether to load them."""


def _build_whisper(config: ModelConfig, rules: EncoderRules, dtype: torch.dtype, weights: bool) -> AudioEncoder:
    return WhisperEncoder.from_pretrained(
        config.whisper_path,
        window=rules.window or config.window,
        dtype=dtype,
        token=config.token or None,
        layers=config.whisper_layers,
        int8=config.encoder_quantization == "int8",
        weights=weights,
    )


def _build_beats(config: ModelConfig, rules: EncoderRules, dtype: torch.dtype, weights: bool) -> AudioEncoder:
    return BEATs.from_checkpoint(  # in float32 always, see there
        config.beats_path,
        fbank_dtype=rules.fbank_dtype,
        layers=config.beats_layers,
        int8=config.encoder_quantization == "int8",
        weights=weights,
    )


def _build_ced(config: ModelConfig, rules: EncoderRules, dtype: torch.dtype, weights: bool) -> AudioEncoder:
    token = config.token or None
    return CED.from_checkpoint(config.ced_path, dtype=dtype, token=token, weights=weights, **rules.ced_options)


def _hf_entry(name: str, *kinds: str) -> EncoderEntry:
    """An encoder of transformers; `kinds` are the model types that its path may name."""

    def build(config: ModelConfig, rules: EncoderRules, dtype: torch.dtype, weights: bool) -> AudioEncoder:
        return HFEncoder.from_pretrained(
            getattr(config, f"{name}_path"),
            kinds=kinds,
            window=rules.window or config.window,
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
    name: str,
    config: ModelConfig,
    rules: EncoderRules,
    dtype: torch.dtype = torch.float32,
    *,
    weights: bool = True,
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
        return entry.build(config, rules, dtype, weights)
    except UserError as error:
        raise UserError(f"model.{entry.path_key}: {error}") from error


def frozen_encoders(config: ModelConfig) -> dict[str, bool]:
    """Every encoder that `config` names weights for, in the table's order, and whether it is frozen."""
    named = {name: entry for name, entry in ENCODERS.items() if getattr(config, entry.path_key)}
    return {name: getattr(config, entry.freeze_key) for name, entry in named.items()}

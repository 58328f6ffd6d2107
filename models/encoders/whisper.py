"""Whisper's encoder for clips of any length up to 30 s, without influence between the clips of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder as TransformersWhisperEncoder

from configs.architectures import find_architecture
from models.device import META
from models.encoders.base import AudioEncoder, Features, kept_layers
from models.encoders.features import HOP, WINDOW, log_mel, log_mel_frames
from models.frames import key_mask, length_mask, zero_after
from models.hub import load_config, load_weights
from models.quantization.int8 import RoundingConfig, round_linears
from models.runtime.spans import span
from support.units import SAMPLE_RATE

CONV_STRIDE = 2  # of the second convolution: log-mel frames per frame

Window = Literal["clip", "full"]


class WhisperEncoder(AudioEncoder, TransformersWhisperEncoder):
    """transformers' Whisper encoder as an `AudioEncoder`, with the library's state dict and configuration.

    What differs:
    - It takes waveforms and computes the log-mel spectrogram itself, on its device.
    - `window="clip"` encodes each clip at its real length, with as many of the positions as it needs: a 10 s clip costs
      a third of a padded one. `window="full"` pads or cuts to 30 s exactly as the feature extractor does; every clip
      then has 1,500 frames, those of the silence included, as in Whisper's training.
    - In a batch of mixed lengths, there are zeros after each clip's end before both convolutions, and keys after its
      end are masked in every attention.
    - Layers are never dropped in training.
    """

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^(model\.)?decoder\.", r"^proj_out\."]

    def __init__(self, config: WhisperConfig, window: Window) -> None:
        if window not in ("clip", "full"):
            raise ValueError(f"Whisper: window is {window!r}; expected 'clip' or 'full'")
        super().__init__(config)
        kept = "|".join(map(str, range(config.encoder_layers)))  # loading reports nothing about the others
        self._keys_to_ignore_on_load_unexpected |= {rf"^layers\.(?!({kept})\.)"}
        self.window = window
        self.dim = config.d_model
        self.frame_rate_hz = SAMPLE_RATE / HOP / CONV_STRIDE
        self.min_samples = WINDOW
        self.max_samples = config.max_source_positions * CONV_STRIDE * HOP

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        window: Window = "clip",
        dtype: torch.dtype = torch.float32,
        token: str | None = None,
        layers: int | None = None,
        int8: bool = False,
        weights: bool = True,
    ) -> WhisperEncoder:
        """Load the encoder alone from a Whisper folder or a hub name, `owner/name` or `owner/name@revision`.

        Full models and bare encoders are read. Weights are loaded in `dtype`, whatever the file's type; with `int8`,
        those of linear layers in 8 bits. `layers` keeps so many layers, from the bottom; the others are not read.
        Without `weights` the encoder is made on the meta device, from the facts of configs/architectures.

        Raises UserError if there is no Whisper model, or if it lacks weights of the encoder.
        """
        path = str(folder)
        if weights:
            config = load_config(WhisperConfig, path, token)
        else:
            config = WhisperConfig(**find_architecture(path, "whisper").config)
        config.encoder_layers = kept_layers("Whisper", layers, config.encoder_layers)
        if not weights:
            with META:
                encoder = cls(config, window).to(dtype)
                if int8:
                    round_linears(encoder)
            return encoder.eval()
        return load_weights(
            super().from_pretrained,
            path,
            token,
            part="encoder",
            config=config,
            window=window,
            dtype=dtype,
            key_mapping={r"^(model\.)?encoder\.": ""},
            **({"quantization_config": RoundingConfig()} if int8 else {}),
        ).eval()

    def frame_count(self, samples: int) -> int:
        if self.window == "full":
            return self.config.max_source_positions
        return self.content_frames(samples)

    def content_frames(self, samples: int) -> int:
        return -(-log_mel_frames(samples) // CONV_STRIDE)

    def settings(self) -> dict[str, Any]:
        config = self.config
        sizes = (config.d_model, config.encoder_layers, config.encoder_attention_heads, config.num_mel_bins)
        return {"encoder": "whisper", "window": self.window, "sizes": sizes, "activation": config.activation_function}

    def forward(
        self, waveforms: Tensor, lengths: LongTensor, features: Features | None = None
    ) -> tuple[Tensor, LongTensor]:
        """[B, T], [B] samples -> frames [B, N, D], frame_lengths [B]."""
        if self.window == "clip":
            self.check_lengths(lengths.tolist())
        return self.encode_features(*(features or self.features(waveforms, lengths)))

    def features(self, waveforms: Tensor, lengths: LongTensor) -> Features:
        """[B, T], [B] samples -> log-mel spectrogram [B, M, F], feature_lengths [B], on this encoder's device."""
        device = self.conv1.weight.device
        with span("features", self.name):
            return log_mel(
                waveforms.to(device),
                lengths.to(device),
                bins=self.num_mel_bins,
                full_samples=self.max_samples if self.window == "full" else None,
            )

    def encode_features(self, features: Tensor, feature_lengths: LongTensor) -> tuple[Tensor, LongTensor]:
        """Log-mel spectrogram [B, M, F], zero after each length -> frames [B, N, D], frame_lengths [B].

        F may be any number up to `max_source_positions * 2` (3,000 in every released model).
        """
        longest = self.config.max_source_positions * CONV_STRIDE
        frames = self.through_network(self._encode, features, feature_lengths, axis=2, longest=longest)
        return frames[:, : -(-features.shape[-1] // CONV_STRIDE)], -(-feature_lengths // CONV_STRIDE)

    def _encode(self, features: Tensor, feature_lengths: LongTensor, padded: bool | None = None) -> Tensor:
        """Frames [B, N, D]; `padded`: whether the spectrogram is longer than any of its clips, None to check."""
        hidden = F.gelu(self.conv1(features.to(self.conv1.weight.dtype)))  # [B, D, F]
        hidden = hidden.masked_fill(~length_mask(feature_lengths, hidden.shape[-1])[:, None], 0)
        hidden = F.gelu(self.conv2(hidden)).transpose(1, 2)  # [B, N, D]
        hidden = hidden + self.embed_positions.weight[: hidden.shape[1]]
        hidden = F.dropout(hidden, p=self.dropout, training=self.training)

        frame_lengths = -(-feature_lengths // CONV_STRIDE)
        keys = key_mask(frame_lengths, hidden.shape[1], padded)
        mask = None if keys is None else keys[:, None, None]  # [B, 1, 1, N]
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return zero_after(self.layer_norm(hidden), frame_lengths)

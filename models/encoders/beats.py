"""BEATs: an audio transformer over 16 x 16 patches of a fbank (Chen et al., 2022, arXiv:2212.09058).

Written for inference and fine-tuning; reads and writes the released files, `{'cfg': …, 'model': state dict}`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn

from configs.architectures import find_architecture
from models.device import META
from models.encoders.base import AudioEncoder, Features, kept_layers, load_strictly
from models.encoders.beats_network import BEATsConfig, TransformerEncoder
from models.encoders.features import FBANK_BINS, HOP, WINDOW, fbank_frames, fbank_lengths, kaldi_fbank
from models.frames import length_mask, zero_after
from models.quantization.int8 import Int8Linear, round_linears
from models.runtime.spans import span
from models.tensor_file import TensorFileError, read_tensor_file
from support.command_line import UserError
from support.units import SAMPLE_RATE

MAX_S = 30  # attention's memory grows with the square of this; released systems have no longer clips


class BEATs(AudioEncoder):
    """Frames [B, N, D] in time order: 8 tokens for every 16 fbank frames (160 ms), from low to high mel bins.

    Weights and computation stay in float32 under any autocast: attention logits and the deep-norm residuals overflow in
    float16. Layers are never dropped in training. The classifier of a fine-tuned file is left out.
    """

    def __init__(
        self,
        config: BEATsConfig,
        *,
        fbank_dtype: torch.dtype = torch.float32,
        layers: int | None = None,
    ) -> None:
        """`layers` keeps that many of the layers, from the bottom."""
        super().__init__()
        self.config = config
        self.fbank_dtype = fbank_dtype
        patch, width = config.input_patch_size, config.encoder_embed_dim
        self.tokens_per_step = FBANK_BINS // patch
        self.dim = width
        self.frame_rate_hz = SAMPLE_RATE / HOP / patch * self.tokens_per_step
        self.min_samples = WINDOW + (patch - 1) * HOP
        self.max_samples = MAX_S * SAMPLE_RATE

        self.patch_embedding = nn.Conv2d(1, config.embed_dim, patch, stride=patch, bias=config.conv_bias)
        self.layer_norm = nn.LayerNorm(config.embed_dim)
        self.post_extract_proj = nn.Linear(config.embed_dim, width) if config.embed_dim != width else None
        self.encoder = TransformerEncoder(config)
        # The residuals' weight depends on the depth that the network was trained with, so `config` keeps it.
        self.encoder.layers = self.encoder.layers[: kept_layers("BEATs", layers, config.encoder_layers)]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise for pre-training, as BEATs' code does for a deep-norm model."""
        config = self.config
        gain = (8 * config.encoder_layers) ** -0.25 if config.deep_norm else 1.0
        for layer in self.encoder.layers:
            attention = layer.self_attn
            for linear, scale in (
                (attention.q_proj, 1.0),
                (attention.k_proj, 1.0),
                (attention.v_proj, gain),
                (attention.out_proj, gain),
                (layer.fc1, gain),
                (layer.fc2, gain),
            ):
                nn.init.xavier_normal_(linear.weight, gain=scale)
                nn.init.zeros_(linear.bias)
            if attention.relative_attention_bias is not None:
                nn.init.normal_(attention.relative_attention_bias.weight, std=0.02)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        fbank_dtype: torch.dtype = torch.float32,
        layers: int | None = None,
        int8: bool = False,
        weights: bool = True,
    ) -> BEATs:
        """Load a released file, pre-trained or fine-tuned, without executing pickled code.

        `fbank_dtype=torch.float64` computes the fbank as released systems did. `layers` keeps that many layers, from
        the bottom. `int8` rounds the linear layers to 8 bits.
        Without `weights` the model is made on the meta device: by the file's `cfg`, or where there is no such file by
        the facts of configs/architectures.

        Raises UserError for a file that is not a BEATs checkpoint, naming what does not fit.
        """
        if weights or Path(path).is_file():
            file = _read(path)
        else:
            file = {"cfg": find_architecture(str(path), "beats").config}
        try:
            config = BEATsConfig.from_released(file["cfg"])
        except UserError as error:
            raise UserError(f"BEATs: {str(path)!r}: {error}") from error
        with META:
            model = cls(config, fbank_dtype=fbank_dtype, layers=layers)
        if weights:
            kept = len(model.encoder.layers)
            state = {
                name: value
                for name, value in _current_names(file["model"]).items()
                if not name.startswith("predictor.") and _layer_of(name) < kept
            }
            load_strictly(model, state, f"BEATs: {str(path)!r}")
        model = model.float().eval()
        if int8:
            model.round_to_int8()
        return model

    def round_to_int8(self) -> None:
        """Round the linear layers to 8 bits, except the gates of the position bias: they are small and sensitive."""
        round_linears(self, skip=("grep_linear",))

    def save_checkpoint(self, path: str | Path) -> None:
        """Write the released form, `{'cfg': dict, 'model': state dict}`.

        Raises ValueError for a network without its upper layers, or with rounded weights.
        """
        if len(self.encoder.layers) != self.config.encoder_layers or any(
            isinstance(module, Int8Linear) for module in self.modules()
        ):
            raise ValueError("BEATs: the released form has all layers and no rounded weights; load the file whole")
        weights = {name: value.detach().cpu().clone() for name, value in self.state_dict().items()}
        config = dataclasses.replace(self.config, finetuned_model="predictor.weight" in weights)
        torch.save({"cfg": dataclasses.asdict(config), "model": weights}, path)

    def frame_count(self, samples: int) -> int:
        return fbank_frames(samples) // self.config.input_patch_size * self.tokens_per_step

    def settings(self) -> dict[str, Any]:
        kept = len(self.encoder.layers)
        described = {"encoder": "beats", "fbank_dtype": str(self.fbank_dtype), **dataclasses.asdict(self.config)}
        return described if kept == self.config.encoder_layers else described | {"layers_kept": kept}

    def forward(
        self, waveforms: Tensor, lengths: LongTensor, features: Features | None = None
    ) -> tuple[Tensor, LongTensor]:
        """[B, T], [B] samples -> frames [B, N, D], frame_lengths [B]."""
        device = self.patch_embedding.weight.device
        waveforms, lengths = waveforms.to(device), lengths.to(device)
        self.check_lengths(lengths.tolist())
        with torch.autocast(device.type, enabled=False):
            fbank, fbank_sizes = features or self.features(waveforms, lengths)
            frame_lengths = fbank_sizes // self.config.input_patch_size * self.tokens_per_step
            frames = self.through_network(self._encode, fbank, frame_lengths, axis=1)
            return frames[:, : self.frame_count(waveforms.shape[1])], frame_lengths

    def features(self, waveforms: Tensor, lengths: LongTensor) -> Features:
        """[B, T], [B] samples -> normalised fbank [B, F, M], its frames [B] of each clip."""
        with span("features", self.name):
            return kaldi_fbank(waveforms, lengths, dtype=self.fbank_dtype), fbank_lengths(lengths)

    def _encode(self, fbank: Tensor, frame_lengths: LongTensor, padded: bool | None = None) -> Tensor:
        """fbank [B, F, M] -> frames [B, N, D]; `padded`: whether it is longer than any of its clips, None to check."""
        tokens = self.embed_patches(fbank)
        frames = self.encoder(tokens, ~length_mask(frame_lengths, tokens.shape[1]), any_padded=padded)
        return zero_after(frames, frame_lengths)

    def embed_patches(self, fbank: Tensor) -> Tensor:
        """fbank [B, F, M] -> tokens [B, N, D], time-major; an incomplete last step is dropped."""
        tokens = self.patch_embedding(fbank[:, None].to(self.patch_embedding.weight.dtype))  # [B, E, steps, 8]
        tokens = self.layer_norm(tokens.flatten(2).transpose(1, 2))  # [B, N, E]
        if self.post_extract_proj is not None:
            tokens = self.post_extract_proj(tokens)
        return F.dropout(tokens, p=self.config.dropout_input, training=self.training)


def _read(path: str | Path) -> dict[str, Any]:
    """`{'cfg': dict, 'model': {name: tensor}}`; UserError for a file of another form."""
    try:
        file = read_tensor_file(path, mmap=True)
    except TensorFileError as error:
        raise UserError(f"BEATs: cannot read {str(path)!r} as a tensor file: it {error}") from error
    if not _is_released(file):
        found = f"the keys {sorted(map(str, file))[:8]}" if isinstance(file, dict) else f"a {type(file).__name__}"
        raise UserError(f"BEATs: {str(path)!r} holds {found}; expected {{'cfg': dict, 'model': {{name: tensor}}}}")
    return file


def _is_released(file: Any) -> bool:
    if not isinstance(file, dict) or not isinstance(file.get("cfg"), dict) or not isinstance(file.get("model"), dict):
        return False
    return all(isinstance(name, str) and isinstance(value, Tensor) for name, value in file["model"].items())


def _layer_of(name: str) -> int:
    """The layer that a weight belongs to; -1 for one outside the layers."""
    parts = name.split(".")
    return int(parts[2]) if parts[:2] == ["encoder", "layers"] and parts[2].isdecimal() else -1


def _current_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """PyTorch's newer weight norm has other names for its two factors."""
    newer = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    renamed = {}
    for name, value in weights.items():
        for new, old in newer.items():
            name = name.replace(new, old)
        renamed[name] = value
    return renamed

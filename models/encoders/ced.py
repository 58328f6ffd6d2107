"""CED: a vision transformer over 16 x 16 patches of a mel spectrogram (Dinkel et al., 2023, arXiv:2308.11957).

Tiny, mini, small and base differ only in width. Reads the released `.pt` files (a bare state dict) and hub folders.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import BoolTensor, LongTensor, Tensor, nn
from transformers.utils import cached_file

from configs.architectures import find_architecture
from models.device import META
from models.encoders.base import AudioEncoder, Features, load_strictly
from models.encoders.features import DECIBEL_BINS, FBANK_MEAN, FBANK_STD, HOP, decibel_frames, decibel_spectrogram
from models.frames import key_mask, zero_after
from models.hub import CONFIG_FILES, WEIGHT_FILES, located, require_real_files
from models.runtime.spans import span
from models.tensor_file import TensorFileError, read_tensor_file
from support.command_line import UserError
from support.units import SAMPLE_RATE

PATCH = 16
BINS = DECIBEL_BINS // PATCH  # patches, and tokens, per time step
RELEASED_HEAD_DIM = 64
NORM_EPSILON = 1e-6
WITHOUT_EFFECT = ("front_end.", "outputlayer.")  # the spectrogram's filters, which are computed, and the classifier


@dataclass(frozen=True, kw_only=True)
class CEDConfig:
    """Sizes; all but the number of heads follow from the weights' shapes."""

    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    target_length: int = 1012
    """Spectrogram frames that the time positions span: 10.1 s."""
    rescale: bool = False
    """Shift and scale the spectrogram like BEATs' fbank, before a BatchNorm that was trained on plain dB."""
    frequency_major: bool = False
    """Leave frames in the network's order, all time steps of the lowest bins first. One published system has both."""


class CED(AudioEncoder):
    """Frames [B, N, D] in time order: 4 tokens for every 16 spectrogram frames (160 ms), from low to high mel bins.

    What differs from the released code: the 120 dB floor and the reflection at the ends are each clip's own, keys after
    its end are masked, tokens are in time order (the network's own order is frequency first), and BatchNorm uses its
    stored statistics in training too.
    """

    def __init__(self, config: CEDConfig) -> None:
        super().__init__()
        self.config = config
        width = config.embed_dim
        self.dim = width
        self.frame_rate_hz = SAMPLE_RATE / HOP / PATCH * BINS
        self.min_samples = (PATCH - 1) * HOP
        self.max_samples = (config.target_length - 1) * HOP

        self.init_bn = nn.ModuleDict({"1": nn.BatchNorm1d(DECIBEL_BINS)})  # the released name
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(1, width, PATCH, stride=PATCH)})
        self.time_pos_embed = nn.Parameter(0.02 * torch.randn(1, width, 1, config.target_length // PATCH))
        self.freq_pos_embed = nn.Parameter(0.02 * torch.randn(1, width, BINS, 1))
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.train(self.training)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        num_heads: int | None = None,
        target_length: int | None = None,
        rescale: bool = False,
        frequency_major: bool = False,
        dtype: torch.dtype = torch.float32,
        token: str | None = None,
        weights: bool = True,
    ) -> CED:
        """Load a `.pt` file, a folder with `config.json` and `model.safetensors`, or a hub name.

        Args:
            num_heads: where neither the file nor the folder says it; released models have heads of width 64.
            target_length: most spectrogram frames of a clip in one piece; the file's time positions are cut to it, or
                interpolated for more than 10 s.
            rescale, frequency_major: see `CEDConfig`.
            dtype: of the weights; the BatchNorm in front, whose input is in decibels, stays in float32.
            weights: False makes it on the meta device: by a file's tensors, else by the facts of configs/architectures.

        Raises UserError for a file that is not a CED's, naming what does not fit.
        """
        state: dict[str, Tensor] = {}
        if weights or Path(path).is_file():
            state, described = _read(path, token)
            state = {_released_name(name): value for name, value in state.items()}
            state = {name: value for name, value in state.items() if not name.startswith(WITHOUT_EFFECT)}
            described |= _sizes_of(state, described, str(path))
        else:
            described = find_architecture(str(path), "ced").config
        known = {field.name: described[field.name] for field in fields(CEDConfig) if field.name in described}
        config = CEDConfig(**known | {"rescale": rescale, "frequency_major": frequency_major})
        config = replace(
            config, target_length=target_length or config.target_length, num_heads=num_heads or config.num_heads
        )
        with META:
            model = cls(config)
        if weights:
            table = state["time_pos_embed"].float()
            state["time_pos_embed"] = _fit_positions(table, config.target_length // PATCH)
            load_strictly(model, state, f"CED: {str(path)!r}")
        model.to(dtype)
        model.init_bn.float()
        return model.eval()

    def train(self, mode: bool = True) -> CED:
        super().train(mode)
        self.init_bn.eval()  # a batch's own statistics would make a clip's frames depend on its neighbours
        return self

    def frame_count(self, samples: int) -> int:
        return decibel_frames(samples) // PATCH * BINS

    def settings(self) -> dict[str, Any]:
        # The classifier that this never had: without it, frames kept under the old fingerprint would not be found.
        return {"encoder": "ced", "outputdim": 0, **asdict(self.config)}

    def forward(
        self, waveforms: Tensor, lengths: LongTensor, features: Features | None = None
    ) -> tuple[Tensor, LongTensor]:
        """[B, T], [B] samples -> frames [B, N, D], frame_lengths [B]."""
        device = self.time_pos_embed.device
        waveforms, lengths = waveforms.to(device), lengths.to(device)
        self.check_lengths(lengths.tolist())
        spectrogram, spectrogram_lengths = features or self.features(waveforms, lengths)
        steps = spectrogram_lengths // PATCH
        tokens = self.through_network(
            self.encode_spectrogram,
            self.normalise(spectrogram),
            steps,
            axis=2,
            longest=self.config.target_length,
        )
        return self.in_order(tokens, steps, spectrogram.shape[-1] // PATCH)

    def in_order(self, tokens: Tensor, steps: LongTensor, count: int) -> tuple[Tensor, LongTensor]:
        """Tokens of `encode_spectrogram`, time steps [B] of each clip -> frames [B, N, D] of `count` steps, zero after
        each clip's end, and frame_lengths [B]: in time order, or with `frequency_major` in the network's own."""
        frames = tokens.unflatten(1, (BINS, -1))[:, :, :count].transpose(1, 2).flatten(1, 2)
        if self.config.frequency_major:
            position = torch.arange(frames.shape[1], device=frames.device)[None]
            own = steps[:, None].clamp(min=1)  # each clip's own steps, so that the order does not depend on the batch
            index = (position % own * BINS + position // own).clamp(max=frames.shape[1] - 1)
            frames = frames.gather(1, index[..., None].expand_as(frames))
        return zero_after(frames, steps * BINS), steps * BINS

    def features(self, waveforms: Tensor, lengths: LongTensor) -> Features:
        """[B, T], [B] samples -> mel spectrogram [B, M, F] in dB, its frames [B] of each clip."""
        with span("features", self.name):
            return decibel_spectrogram(waveforms, lengths), 1 + lengths // HOP

    def normalise(self, spectrogram: Tensor) -> Tensor:
        """[B, M, F] in dB -> [B, M, F], by the statistics of each bin in the training set."""
        if self.config.rescale:
            spectrogram = (spectrogram - FBANK_MEAN) / (2 * FBANK_STD)
        with torch.autocast(spectrogram.device.type, enabled=False):
            return self.init_bn["1"](spectrogram)

    def encode_spectrogram(self, spectrogram: Tensor, steps: LongTensor, padded: bool | None = None) -> Tensor:
        """Normalised [B, M, F], time steps [B] of each clip -> tokens [B, N, D], frequency-major, as released.

        `padded`: whether the spectrogram is longer than any of its clips, None to check.
        """
        patches = self.patch_embed["proj"](spectrogram[:, None].to(self.patch_embed["proj"].weight.dtype))
        count = patches.shape[-1]
        patches = patches + self.time_pos_embed[..., :count] + self.freq_pos_embed  # [B, D, 4, steps]
        inside = key_mask(steps, count, padded)
        keys = None if inside is None else inside.repeat(1, BINS)[:, None, None]  # [B, 1, 1, N]
        tokens = patches.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens, keys)
        return self.norm(tokens)


class Block(nn.Module):
    """A pre-norm transformer block, under the released names."""

    def __init__(self, config: CEDConfig) -> None:
        super().__init__()
        width, inner = config.embed_dim, round(config.embed_dim * config.mlp_ratio)
        self.heads = config.num_heads
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, tokens: Tensor, keys: BoolTensor | None) -> Tensor:
        """[B, N, D], keys [B, 1, 1, N] True where a token may be attended to, None for all -> [B, N, D]."""
        packed = self.attn["qkv"](self.norm1(tokens)).unflatten(-1, (3, self.heads, -1))
        query, key, value = packed.permute(2, 0, 3, 1, 4)  # [B, heads, N, D / heads] each
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=keys)
        tokens = tokens + self.attn["proj"](mixed.transpose(1, 2).flatten(2))
        return tokens + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(tokens))))


def _read(path: str | Path, token: str | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights, and a folder's config.json (empty for a bare file)."""
    source = Path(path)
    try:
        if source.is_file():
            return _state_dict(read_tensor_file(source)), {}
        require_real_files(str(path), (*CONFIG_FILES, *WEIGHT_FILES))
        name, revision = located(str(path))
        options = {"revision": revision, "token": token}
        described = json.loads(Path(cached_file(name, "config.json", **options)).read_text(encoding="utf-8"))
        return load_file(cached_file(name, "model.safetensors", **options)), described
    except TensorFileError as error:
        raise UserError(f"CED: cannot read {str(path)!r} as a .pt file: it {error}") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(
            f"CED: cannot read {str(path)!r} as a .pt file, a folder with config.json and model.safetensors, or a hub "
            f"name: {error}"
        ) from error


def _state_dict(file: Any) -> dict[str, Tensor]:
    """The state dict of a `.pt` file's content, bare or under `model`."""
    weights = file.get("model", file) if isinstance(file, dict) else file
    if not isinstance(weights, dict):
        raise TensorFileError(f"holds a {type(weights).__name__}; expected a state dict")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise TensorFileError(f"has {name!r:.40}, a {type(value).__name__}; expected tensors under their names")
    return weights


def _sizes_of(state: dict[str, Tensor], described: dict[str, Any], path: str) -> dict[str, Any]:
    """Fields of `CEDConfig` by the weights' shapes; heads and span by the config.json, where it has them."""
    try:
        _, width, _, positions = state["time_pos_embed"].shape
        inner = state["blocks.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise UserError(
            f"CED: {path!r} is no CED; expected time_pos_embed [1, D, 1, T] and blocks.0.mlp.fc1.weight"
        ) from error
    return {
        "embed_dim": width,
        "depth": 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
        "num_heads": described.get("num_heads", max(1, width // RELEASED_HEAD_DIM)),
        "mlp_ratio": inner / width,
        "target_length": described.get("target_length") or _span_of(positions),
    }


def _span_of(positions: int) -> int:
    """Spectrogram frames that a bare file is for: its positions, times the patch, plus a remainder that fills none."""
    released = CEDConfig.target_length
    return released if released // PATCH == positions else positions * PATCH


def _fit_positions(table: Tensor, count: int) -> Tensor:
    """[1, D, 1, T] -> [1, D, 1, count]: the first ones, or all of them interpolated."""
    if count <= table.shape[3]:
        return table[..., :count]
    return F.interpolate(table, (1, count), mode="bilinear", align_corners=False)


def _released_name(name: str) -> str:
    """Hub folders have the network under `encoder.`, and the BatchNorm without its index in a sequence."""
    name = name.removeprefix("encoder.")
    if name.startswith("init_bn.") and not name.startswith("init_bn.1."):
        name = name.replace("init_bn.", "init_bn.1.")
    return name

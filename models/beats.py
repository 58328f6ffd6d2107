"""BEATs: an audio transformer over 16 x 16 patches of a fbank (Chen et al., 2022, arXiv:2212.09058).

Written for inference and fine-tuning; reads and writes the released files, `{'cfg': …, 'model': state dict}`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import BoolTensor, LongTensor, Tensor, nn

from models.audio_encoder import AudioEncoder, kept_layers, length_mask, load_strictly, zero_after
from models.features import FBANK_BINS, HOP, SAMPLE_RATE, WINDOW, fbank_frames, kaldi_fbank
from models.int8 import Int8Linear, round_linears
from models.tensor_file import TensorFileError, read_tensor_file

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh, "linear": lambda values: values}
MAX_S = 30  # attention's memory grows with the square of this; released systems never went beyond

UNSAID = {
    "layer_wise_gradient_decay_ratio": 1.0,
    "deep_norm": False,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "relative_position_embedding": False,
    "max_distance": 1280,
    "gru_rel_pos": False,
    "predictor_dropout": 0.1,
}
"""What BEATs' code takes for a key that a file's `cfg` lacks, where the released files say otherwise."""

Padding = Literal["neutral", "released"]


@dataclass(frozen=True, kw_only=True)
class BEATsConfig:
    """The `cfg` of a released file, under its names; defaults are those of the released AudioSet models."""

    input_patch_size: int = 16
    """Edge of a patch, in fbank frames and in mel bins."""
    embed_dim: int = 512
    """Width of a patch before the projection to the encoder's width."""
    conv_bias: bool = False
    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    activation_fn: str = "gelu"
    layer_wise_gradient_decay_ratio: float = 0.6
    """Gradients are scaled by this before every layer in fine-tuning; 1.0 for training from scratch."""
    layer_norm_first: bool = False
    deep_norm: bool = True
    """Residuals weigh (2 * layers) ** 0.25; post-norm only."""
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    dropout_input: float = 0.0
    conv_pos: int = 128
    """Kernel of the positional convolution, in tokens."""
    conv_pos_groups: int = 16
    relative_position_embedding: bool = True
    num_buckets: int = 320
    max_distance: int = 800
    gru_rel_pos: bool = True
    """The relative position bias is gated by the query."""
    finetuned_model: bool = False
    """The file holds a classifier, `predictor`."""
    encoder_layerdrop: float = 0.0
    """How often the released code leaves a layer out in training. Without effect here, but see `layer_drop`."""
    predictor_dropout: float = 0.0
    predictor_class: int = 527

    @classmethod
    def from_released(cls, cfg: dict[str, Any]) -> BEATsConfig:
        """Keep the keys that shape the network; the others (pre-training's masking) have no effect here.

        Raises ValueError for a value of another type, or a size that is none, naming the key.
        """
        chosen = {}
        for field in dataclasses.fields(cls):
            value = cfg.get(field.name, UNSAID.get(field.name, field.default))
            kind = type(field.default)
            fits = isinstance(value, int | float if kind is float else kind)
            if not fits or isinstance(value, bool) != (kind is bool) or (kind is int and value < 1):
                expected = "a positive int" if kind is int else f"a {kind.__name__}"
                raise ValueError(f"cfg has {field.name} {value!r:.40}; expected {expected}")
            chosen[field.name] = value
        return cls(**chosen)


class BEATs(AudioEncoder):
    """Frames [B, N, D] in time order: 8 tokens for every 16 fbank frames (160 ms), from low to high mel bins.

    Weights and computation stay in float32 under any autocast: attention logits and the deep-norm residuals go beyond
    float16's range. Layers are never dropped in training. A classifier in the file is loaded only on request.
    """

    def __init__(
        self,
        config: BEATsConfig,
        *,
        head: bool = False,
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
        # The layers' residuals weigh by the depth that the network was trained at, so `config` keeps telling it.
        self.encoder.layers = self.encoder.layers[: kept_layers("BEATs", layers, config.encoder_layers)]
        self.predictor = nn.Linear(width, config.predictor_class) if head else None
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
        head: bool = False,
        fbank_dtype: torch.dtype = torch.float32,
        layers: int | None = None,
        int8: bool = False,
    ) -> BEATs:
        """Load a released file, pre-trained or fine-tuned, without executing pickled code.

        `head=True` keeps a fine-tuned file's classifier. `fbank_dtype=torch.float64` computes the fbank as released
        systems did. `layers` keeps that many layers, from the bottom. `int8` rounds the linear layers to 8 bits.

        Raises ValueError for a file that is not a BEATs checkpoint, naming what does not fit.
        """
        try:
            file = read_tensor_file(path, mmap=True)
        except TensorFileError as error:
            raise ValueError(f"BEATs: cannot read {str(path)!r} as a tensor file: it {error}") from error
        if not is_released(file):
            found = f"the keys {sorted(map(str, file))[:8]}" if isinstance(file, dict) else f"a {type(file).__name__}"
            raise ValueError(f"BEATs: {str(path)!r} holds {found}; expected {{'cfg': dict, 'model': {{name: tensor}}}}")
        try:
            config = BEATsConfig.from_released(file["cfg"])
        except ValueError as error:
            raise ValueError(f"BEATs: {str(path)!r}: {error}") from error
        if head and not config.finetuned_model:
            raise ValueError(
                f"BEATs: {str(path)!r} is a pre-trained file, without a classifier; expected a fine-tuned one"
            )
        with torch.device("meta"):
            model = cls(config, head=head, fbank_dtype=fbank_dtype, layers=layers)
        weights = _current_names(file["model"])
        if not head:
            weights = {name: value for name, value in weights.items() if not name.startswith("predictor.")}
        kept = len(model.encoder.layers)
        weights = {name: value for name, value in weights.items() if _layer_of(name) < kept}
        load_strictly(model, weights, f"BEATs: {str(path)!r}")
        model = model.float().eval()
        if int8:
            model.round_to_int8()
        return model

    def round_to_int8(self) -> None:
        """Keep the linear layers in 8 bits, but the gates of the position bias: they are small and matter much."""
        round_linears(self, skip=("grep_linear", "predictor"))

    def save_checkpoint(self, path: str | Path) -> None:
        """Write the released form, `{'cfg': dict, 'model': state dict}`.

        Raises ValueError for a network whose upper layers were left out, or whose weights were rounded.
        """
        if len(self.encoder.layers) != self.config.encoder_layers or any(
            isinstance(module, Int8Linear) for module in self.modules()
        ):
            raise ValueError("BEATs: the released form has all layers and no rounded weights; load the file whole")
        config = dataclasses.replace(self.config, finetuned_model=self.predictor is not None)
        weights = {name: value.detach().cpu().clone() for name, value in self.state_dict().items()}
        torch.save({"cfg": dataclasses.asdict(config), "model": weights}, path)

    def frame_count(self, samples: int) -> int:
        return fbank_frames(samples) // self.config.input_patch_size * self.tokens_per_step

    def settings(self) -> dict[str, Any]:
        kept = len(self.encoder.layers)
        described = {"encoder": "beats", "fbank_dtype": str(self.fbank_dtype), **dataclasses.asdict(self.config)}
        return described if kept == self.config.encoder_layers else described | {"layers_kept": kept}

    def forward(
        self, waveforms: Tensor, lengths: LongTensor, padding: Padding = "neutral"
    ) -> tuple[Tensor, LongTensor]:
        """[B, T], [B] samples -> frames [B, N, D], frame_lengths [B].

        `padding="neutral"`: a clip's frames depend on its own samples alone, and are zero after its end.
        `padding="released"`: as BEATs' code does with a padding mask. A clip's number of valid frames then follows from
        the batch's length by repeated division, and frames after its end are not zero.
        """
        device = self.patch_embedding.weight.device
        waveforms, lengths = waveforms.to(device), lengths.to(device)
        with torch.autocast(device.type, enabled=False):
            if padding == "released":
                fbank = kaldi_fbank(waveforms, torch.full_like(lengths, waveforms.shape[1]), dtype=self.fbank_dtype)
                frame_mask = reduce_padding(~length_mask(lengths, waveforms.shape[1]), fbank.shape[1])
                tokens = self.embed_patches(fbank)
                padded = reduce_padding(frame_mask, tokens.shape[1])
            elif padding == "neutral":
                self.check_lengths(lengths.tolist())
                fbank = kaldi_fbank(waveforms, lengths, dtype=self.fbank_dtype)
                frame_lengths = (1 + (lengths - WINDOW) // HOP) // self.config.input_patch_size * self.tokens_per_step
                frames = self.through_network(self._encode, fbank, frame_lengths, axis=1)
                return frames[:, : self.frame_count(waveforms.shape[1])], frame_lengths
            else:
                raise ValueError(f"BEATs: padding is {padding!r}; expected 'neutral' or 'released'")
            return self.encoder(tokens, padded), (~padded).sum(dim=1)

    def _encode(self, fbank: Tensor, frame_lengths: LongTensor, padded: bool | None = None) -> Tensor:
        """fbank [B, F, M] -> frames [B, N, D]; `padded` says whether it is longer than any of its clips, None looks."""
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

    def class_probabilities(self, waveforms: Tensor, lengths: LongTensor, padding: Padding = "neutral") -> Tensor:
        """[B, T], [B] samples -> [B, classes]: the fine-tuned classifier's independent probabilities."""
        if self.predictor is None:
            raise ValueError("BEATs: no classifier; load a fine-tuned file with from_checkpoint(path, head=True)")
        frames, frame_lengths = self(waveforms, lengths, padding)
        with torch.autocast(frames.device.type, enabled=False):
            logits = self.predictor(F.dropout(frames, p=self.config.predictor_dropout, training=self.training))
            return torch.sigmoid(zero_after(logits, frame_lengths).sum(dim=1) / frame_lengths[:, None])


class TransformerEncoder(nn.Module):
    """Positional convolution and layers, under the released names."""

    def __init__(self, config: BEATsConfig) -> None:
        super().__init__()
        self.config = config
        self.pos_conv = nn.Sequential(PositionalConvolution(config))
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.encoder_layers)])
        self.layer_norm = nn.LayerNorm(config.encoder_embed_dim)
        self.layer_drop = 0.0  # the released rate is `config.encoder_layerdrop`; only `model.legacy: exact` applies it
        for layer in self.layers[1:]:  # one table of relative positions, stored under every layer's name
            layer.self_attn.relative_attention_bias = self.layers[0].self_attn.relative_attention_bias

    def forward(self, tokens: Tensor, padded: BoolTensor, any_padded: bool | None = None) -> Tensor:
        """tokens [B, N, D], padded [B, N] True at padding -> [B, N, D]; only keys are masked.

        `any_padded` says whether there is any padding; None looks.
        """
        config = self.config
        tokens = tokens.masked_fill(padded[..., None], 0)
        tokens = tokens + self.pos_conv(tokens)
        if not config.layer_norm_first:
            tokens = self.layer_norm(tokens)
        tokens = F.dropout(tokens, p=config.dropout, training=self.training)

        position_bias = self.layers[0].self_attn.position_bias(tokens.shape[1])
        # Without padding there is nothing to mask, and ungated models attend by a faster kernel.
        any_padded = bool(padded.any()) if any_padded is None else any_padded
        keys = ~padded[:, None, None] if any_padded else None  # [B, 1, 1, N]
        for layer in self.layers:
            if self.training and self.layer_drop and torch.rand(()).item() <= self.layer_drop:
                continue
            if tokens.requires_grad and config.layer_wise_gradient_decay_ratio != 1.0:
                tokens = _ScaleGradient.apply(tokens, config.layer_wise_gradient_decay_ratio)
            tokens = layer(tokens, position_bias, keys)
        return self.layer_norm(tokens) if config.layer_norm_first else tokens


class PositionalConvolution(nn.Module):
    """A grouped convolution over tokens, weight-normed over all but the kernel axis, then GELU."""

    def __init__(self, config: BEATsConfig) -> None:
        super().__init__()
        width, kernel = config.encoder_embed_dim, config.conv_pos
        self.groups = config.conv_pos_groups
        self.weight_v = nn.Parameter(torch.empty(width, width // self.groups, kernel))
        self.weight_g = nn.Parameter(torch.empty(1, 1, kernel))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.weight_v, std=math.sqrt(4 * (1.0 - config.dropout) / (kernel * width)))
        with torch.no_grad():
            self.weight_g.copy_(torch.linalg.vector_norm(self.weight_v, dim=(0, 1), keepdim=True))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        count, kernel = tokens.shape[1], self.weight_g.shape[-1]
        weight = self.weight_v * (self.weight_g / torch.linalg.vector_norm(self.weight_v, dim=(0, 1), keepdim=True))
        mixed = F.conv1d(tokens.transpose(1, 2), weight, self.bias, padding=kernel // 2, groups=self.groups)
        return F.gelu(mixed[..., :count].transpose(1, 2))  # an even kernel gives one output too many


class Layer(nn.Module):
    """Self-attention and feed-forward, post-norm with weighted residuals or pre-norm."""

    def __init__(self, config: BEATsConfig) -> None:
        super().__init__()
        if config.activation_fn not in ACTIVATIONS:
            raise ValueError(
                f"BEATs: cfg has activation_fn {config.activation_fn!r}; expected one of {', '.join(ACTIVATIONS)}"
            )
        self.config = config
        width, inner = config.encoder_embed_dim, config.encoder_ffn_embed_dim
        self.self_attn = GatedAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.activation = ACTIVATIONS[config.activation_fn]
        self.residual_weight = (2 * config.encoder_layers) ** 0.25 if config.deep_norm else 1.0

    def forward(self, tokens: Tensor, position_bias: Tensor | None, keys: BoolTensor | None) -> Tensor:
        if self.config.layer_norm_first:
            tokens = tokens + self._attend(self.self_attn_layer_norm(tokens), position_bias, keys)
            return tokens + self._feed_forward(self.final_layer_norm(tokens))
        tokens = tokens * self.residual_weight + self._attend(tokens, position_bias, keys)
        tokens = self.self_attn_layer_norm(tokens)
        tokens = tokens * self.residual_weight + self._feed_forward(tokens)
        return self.final_layer_norm(tokens)

    def _attend(self, tokens: Tensor, position_bias: Tensor | None, keys: BoolTensor | None) -> Tensor:
        return F.dropout(self.self_attn(tokens, position_bias, keys), self.config.dropout, self.training)

    def _feed_forward(self, tokens: Tensor) -> Tensor:
        inner = F.dropout(self.activation(self.fc1(tokens)), self.config.activation_dropout, self.training)
        return F.dropout(self.fc2(inner), self.config.dropout, self.training)


class GatedAttention(nn.Module):
    """Attention with a relative position bias that the query scales (the gate of WavLM)."""

    def __init__(self, config: BEATsConfig) -> None:
        super().__init__()
        width = config.encoder_embed_dim
        self.heads = config.encoder_attention_heads
        self.head_dim = width // self.heads
        self.dropout = config.attention_dropout
        self.max_distance = config.max_distance
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.relative_attention_bias = (
            nn.Embedding(config.num_buckets, self.heads) if config.relative_position_embedding else None
        )
        self.gated = config.gru_rel_pos
        if self.gated:
            self.grep_linear = nn.Linear(self.head_dim, 8)
            self.grep_a = nn.Parameter(torch.ones(1, self.heads, 1, 1))

    def position_bias(self, count: int) -> Tensor | None:
        """[1, heads, N, N]; entry (query, key) by the key's distance from the query, in T5's buckets."""
        if self.relative_attention_bias is None:
            return None
        table = self.relative_attention_bias.weight  # [buckets, heads]
        side = table.shape[0] // 2
        exact = side // 2
        # A bias depends on the distance alone: one for each of the 2N - 1, then spread over the square.
        distance = torch.arange(1 - count, count, device=table.device)
        size = distance.abs()
        share = torch.log(size.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        far = (exact + (share * (side - exact)).long()).clamp(max=side - 1)
        bucket = torch.where(size < exact, size, far) + side * (distance > 0)
        index = torch.arange(count, device=table.device)
        return table[bucket][index[None, :] - index[:, None] + count - 1].permute(2, 0, 1)[None]

    def forward(self, tokens: Tensor, position_bias: Tensor | None, keys: BoolTensor | None) -> Tensor:
        """tokens [B, N, D]; keys [B, 1, 1, N] True where a token may be attended to, None for all -> [B, N, D]."""
        split = (*tokens.shape[:2], self.heads, self.head_dim)
        query, key, value = (
            projection(tokens).view(split).transpose(1, 2) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )  # [B, heads, N, D / heads]
        mask: Tensor | None = keys
        if position_bias is not None:
            mask = self._gate(query) * position_bias if self.gated else position_bias
            if keys is not None:
                mask = mask.masked_fill(~keys, -torch.inf)
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _gate(self, query: Tensor) -> Tensor:
        """[B, heads, N, D / heads] -> [B, heads, N, 1]: what the position bias of each query is multiplied by."""
        gate_a, gate_b = torch.sigmoid(self.grep_linear(query).unflatten(-1, (2, 4)).sum(-1)).chunk(2, dim=-1)
        return gate_a * (gate_b * self.grep_a - 1.0) + 2.0


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.scale, None


def is_released(file: Any) -> bool:
    """Whether what a tensor file holds has the form of BEATs' files."""
    if not isinstance(file, dict) or not isinstance(file.get("cfg"), dict) or not isinstance(file.get("model"), dict):
        return False
    return all(isinstance(name, str) and isinstance(value, Tensor) for name, value in file["model"].items())


def _layer_of(name: str) -> int:
    """The layer that a weight belongs to; -1 for one outside the layers."""
    parts = name.split(".")
    return int(parts[2]) if parts[:2] == ["encoder", "layers"] and parts[2].isdecimal() else -1


def reduce_padding(padded: BoolTensor, count: int) -> BoolTensor:
    """[B, n] -> [B, count], BEATs' own rule: drop the last n % count, a run of the rest is padding if all of it is."""
    size = padded.shape[1]
    return padded[:, : size - size % count].unflatten(1, (count, -1)).all(dim=-1)


def _current_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Files saved with PyTorch's newer weight norm name the two factors otherwise."""
    newer = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    renamed = {}
    for name, value in weights.items():
        for new, old in newer.items():
            name = name.replace(new, old)
        renamed[name] = value
    return renamed

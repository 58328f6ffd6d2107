"""The transformer of BEATs under the released names, and the `cfg` that shapes it; `beats.py` is the encoder."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import BoolTensor, Tensor, nn

from support.command_line import UserError

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh, "linear": lambda values: values}

CODE_DEFAULTS = {
    "layer_wise_gradient_decay_ratio": 1.0,
    "deep_norm": False,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "relative_position_embedding": False,
    "max_distance": 1280,
    "gru_rel_pos": False,
    "predictor_dropout": 0.1,
}
"""The values of BEATs' code for keys that a file's `cfg` lacks, where the released files have others."""


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
    """Gradients are scaled by this before every layer, in fine-tuning; 1.0 for training from scratch."""
    layer_norm_first: bool = False
    deep_norm: bool = True
    """Residuals have the weight (2 * layers) ** 0.25; post-norm only."""
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
    """The file has a classifier, `predictor`, of `predictor_class` classes."""
    encoder_layerdrop: float = 0.0
    """Probability that the released code drops a layer in training. Without effect here, but see `layer_drop`."""
    predictor_dropout: float = 0.0
    predictor_class: int = 527

    @classmethod
    def from_released(cls, cfg: dict[str, Any]) -> BEATsConfig:
        """Keep the keys that shape the network; the others (pre-training's masking) have no effect here.

        Raises UserError for a value of another type, or a size below 1, naming the key.
        """
        chosen = {}
        for field in dataclasses.fields(cls):
            value = cfg.get(field.name, CODE_DEFAULTS.get(field.name, field.default))
            kind = type(field.default)
            fits = isinstance(value, int | float if kind is float else kind)
            if not fits or isinstance(value, bool) != (kind is bool) or (kind is int and value < 1):
                expected = "a positive int" if kind is int else f"a {kind.__name__}"
                raise UserError(f"cfg has {field.name} {value!r:.40}; expected {expected}")
            chosen[field.name] = value
        return cls(**chosen)


class TransformerEncoder(nn.Module):
    """Positional convolution and layers, under the released names."""

    def __init__(self, config: BEATsConfig) -> None:
        super().__init__()
        self.config = config
        self.pos_conv = nn.Sequential(PositionalConvolution(config))
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.encoder_layers)])
        self.layer_norm = nn.LayerNorm(config.encoder_embed_dim)
        self.layer_drop = 0.0  # probability of dropping a layer in training; the file's is `encoder_layerdrop`
        for layer in self.layers[1:]:  # all layers share one table of relative positions
            layer.self_attn.relative_attention_bias = self.layers[0].self_attn.relative_attention_bias

    def forward(self, tokens: Tensor, padded: BoolTensor, any_padded: bool | None = None) -> Tensor:
        """tokens [B, N, D], padded [B, N] True at padding -> [B, N, D]; only keys are masked.

        `any_padded`: whether there is any padding, None to check.
        """
        config = self.config
        tokens = tokens.masked_fill(padded[..., None], 0)
        tokens = tokens + self.pos_conv(tokens)
        if not config.layer_norm_first:
            tokens = self.layer_norm(tokens)
        tokens = F.dropout(tokens, p=config.dropout, training=self.training)

        position_bias = self.layers[0].self_attn.position_bias(tokens.shape[1])
        # Without padding there is nothing to mask, and attention of models without gates uses a faster kernel.
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
    """Self-attention and feed-forward, post-norm with weighted residuals, or pre-norm."""

    def __init__(self, config: BEATsConfig) -> None:
        super().__init__()
        if config.activation_fn not in ACTIVATIONS:
            raise UserError(
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
    """Attention with a relative position bias, scaled by a gate on the query (WavLM's)."""

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
        """[1, heads, N, N]: for each (query, key) by the key's distance from the query, in T5's buckets."""
        if self.relative_attention_bias is None:
            return None
        table = self.relative_attention_bias.weight  # [buckets, heads]
        side = table.shape[0] // 2
        exact = side // 2
        # The bias depends on the distance alone: computed for the 2N - 1 distances, then gathered for all pairs.
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
        """[B, heads, N, D / heads] -> [B, heads, N, 1]: the factor of each query's position bias."""
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

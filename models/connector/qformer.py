"""The query transformer: a few learned queries attend to a set of frames.

The architecture is the Q-Former of BLIP-2 (Li et al. 2023, section 3.1) as in SALMONN (Tang et al. 2024, section 3.1):
a post-norm BERT encoder over the queries alone, with cross-attention to the frames in every layer. There are no
positions, so the frames of a window are an unordered set.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-12  # BERT's, not PyTorch's 1e-5: released adapters were trained with it
INITIAL_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class QFormerConfig:
    """The sizes of one Q-Former."""

    encoder_width: int
    """D: the width of the frames."""
    hidden_size: int
    num_heads: int
    """They divide the width."""
    num_layers: int
    intermediate_size: int
    num_queries: int
    dropout: float
    """On attention weights and on every sub-layer's output, while training."""


class MultiHeadAttention(nn.Module):
    """Queries attend to `memory`; with the output projection, residual and LayerNorm of BERT."""

    def __init__(self, config: QFormerConfig, memory_width: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(memory_width, config.hidden_size)
        self.value = nn.Linear(memory_width, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)

    def _heads(self, x: Tensor) -> Tensor:  # [M, S, H] -> [M, heads, S, H / heads]
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, hidden: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> Tensor:
        """`hidden` [M, Q, H], `memory` [M, K, D], `memory_mask` [M, K] True where attended to -> [M, Q, H]."""
        query = self._heads(self.query(hidden))
        attend = self._attend_unprojected if self._is_cheaper_unprojected(hidden, memory) else self._attend
        attended = attend(query, memory, None if memory_mask is None else memory_mask[:, None, None, :])
        attended = self.output(attended.transpose(1, 2).flatten(2))
        return self.norm(F.dropout(attended, self.dropout, self.training) + hidden)

    def _is_cheaper_unprojected(self, hidden: Tensor, memory: Tensor) -> bool:
        """By multiplications for one row: shapes alone decide, so a row's result never depends on its batch."""
        (queries, width), (frames, depth) = hidden.shape[1:], memory.shape[1:]
        projected = 2 * frames * width * (depth + queries)
        return 2 * queries * depth * (width + self.num_heads * frames) < projected

    def _attend(self, query: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """`query` [M, heads, Q, d], `memory` [M, K, D], `mask` [M, 1, 1, K] -> [M, heads, Q, d]."""
        return F.scaled_dot_product_attention(
            query,
            self._heads(self.key(memory)),
            self._heads(self.value(memory)),
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )

    def _attend_unprojected(self, query: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """The same sums in another order: the key projection is applied to the queries, and the value projection to the
        weighted sums of frames, instead of both to every frame. A window has many frames and few queries."""
        rows, heads, queries, size = query.shape
        keys = self.key.weight.unflatten(0, (heads, size))  # [heads, d, D]
        values = self.value.weight.unflatten(0, (heads, size))
        projected = _by_head(query) @ keys  # [heads, M * Q, D]
        scores = _by_row(projected, rows) @ memory.transpose(1, 2)  # [M, heads * Q, K]
        bias = (query * self.key.bias.unflatten(0, (heads, 1, size))).sum(-1, keepdim=True)
        scores = (scores.unflatten(1, (heads, queries)) + bias) * size**-0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        sums = weights.flatten(1, 2) @ memory  # [M, heads * Q, D]
        attended = _by_head(sums.unflatten(1, (heads, queries))) @ values.transpose(1, 2)
        bias = weights.sum(-1, keepdim=True) * self.value.bias.unflatten(0, (heads, 1, size))
        return attended.unflatten(1, (rows, queries)).transpose(0, 1) + bias


def _by_head(x: Tensor) -> Tensor:  # [M, heads, Q, d] -> [heads, M * Q, d]
    return x.transpose(0, 1).flatten(1, 2)


def _by_row(x: Tensor, rows: int) -> Tensor:  # [heads, M * Q, D] -> [M, heads * Q, D]
    return x.unflatten(1, (rows, -1)).transpose(0, 1).flatten(1, 2)


class QFormerLayer(nn.Module):
    """Self-attention among the queries, cross-attention to the frames, feed-forward: each post-norm."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.self_attention = MultiHeadAttention(config, memory_width=config.hidden_size)
        self.cross_attention = MultiHeadAttention(config, memory_width=config.encoder_width)
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)

    def forward(self, hidden: Tensor, frames: Tensor, mask: Tensor | None) -> Tensor:
        hidden = self.self_attention(hidden, hidden)
        hidden = self.cross_attention(hidden, frames, mask)
        output = self.output(F.gelu(self.intermediate(hidden)))
        return self.norm(F.dropout(output, self.dropout, self.training) + hidden)


class QFormer(nn.Module):
    """Learned queries and the layers over them."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.query_tokens = nn.Parameter(torch.empty(1, config.num_queries, config.hidden_size))
        self.input_norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.layers = nn.ModuleList(QFormerLayer(config) for _ in range(config.num_layers))
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.query_tokens, std=INITIAL_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INITIAL_STD)
                nn.init.zeros_(module.bias)

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Frames [M, K, D] -> [M, Q, H].

        `mask` [M, K] is True where a frame is attended to; every row needs at least one. None means all of them.
        """
        hidden = self.input_norm(self.query_tokens.expand(frames.shape[0], -1, -1))
        hidden = F.dropout(hidden, self.config.dropout, self.training)
        for layer in self.layers:
            hidden = layer(hidden, frames, mask)
        return hidden

"""Layers over all audio tokens of a clip: each token sees its neighbours, and the rest of the clip.

The Q-Former looks at one window at a time. Where windows are much shorter than a word, a token alone cannot tell which
piece of a word it is. A layer here is a pre-norm transformer layer (Vaswani et al. 2017) with a depthwise convolution
over neighbouring tokens between attention and feed-forward, as in the Conformer (Gulati et al. 2020, section 2.2). The
convolution gives the order of tokens, so there are no position embeddings and no longest clip.
"""

import torch.nn.functional as F
from torch import Tensor, nn

KERNEL = 15  # tokens: at a token each 0.08 s, half a second to each side
EXPANSION = 4  # of the feed-forward, as in the Transformer


class Context(nn.Module):
    """Context layers, and the LayerNorm that ends a pre-norm stack."""

    def __init__(self, layers: int, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ContextLayer(width, num_heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """`hidden` `[B, A, width]`, `mask` `[B, A]` True for a clip's own tokens -> `[B, A, width]`."""
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return self.norm(hidden)


class ContextLayer(nn.Module):
    """Self-attention, convolution, feed-forward, each with a LayerNorm before it and a residual around it."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.convolution_norm = nn.LayerNorm(width)
        self.depthwise = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.pointwise = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.widened = nn.Linear(width, EXPANSION * width)
        self.narrowed = nn.Linear(EXPANSION * width, width)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """`hidden` `[B, A, width]`, `mask` `[B, A]` True for a clip's own tokens -> `[B, A, width]`."""
        hidden = hidden + self._dropped(self._attend(self.attention_norm(hidden), mask))
        own = self.convolution_norm(hidden).masked_fill(~mask[..., None], 0)
        convolved = self.depthwise(own.transpose(1, 2)).transpose(1, 2)
        hidden = hidden + self._dropped(self.pointwise(F.gelu(convolved)))
        widened = self._dropped(F.gelu(self.widened(self.feed_forward_norm(hidden))))
        return hidden + self._dropped(self.narrowed(widened))

    def _attend(self, hidden: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.query_key_value(hidden).unflatten(-1, (3, self.num_heads, -1)).unbind(dim=2)
        attended = F.scaled_dot_product_attention(
            query.transpose(1, 2),  # [B, heads, A, d]
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=None if len(mask) == 1 else mask[:, None, None],  # a clip alone has no padding
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.attended(attended.transpose(1, 2).flatten(2))

    def _dropped(self, hidden: Tensor) -> Tensor:
        return F.dropout(hidden, self.dropout, self.training)

"""The steps that every search is made of: prefill, decode step, what is done to scores, when a row stops."""

import torch
from torch import Tensor

from models.decoding.kv_cache import KeyValueCache
from models.language.llm import LanguageModel


def run_prompt(
    llm: LanguageModel,
    embeds: Tensor,
    mask: Tensor,
    positions: Tensor,
    cache: KeyValueCache,
    ends: Tensor | None = None,
) -> Tensor:
    """Append a prompt, as `Assembled` describes it, to what the rows of the cache begin with; kernel by kernel."""
    start = cache.span
    hidden = llm(embeds, mask, positions, cache)
    rows = torch.arange(len(embeds), device=hidden.device)
    cache.next_positions = positions[rows, cache.lengths - 1 - start] + 1
    if ends is not None:
        cache.lengths = ends
    return llm.logits(hidden[rows, cache.lengths - 1 - start])


def single_step(llm: LanguageModel, token_ids: Tensor, cache: KeyValueCache) -> Tensor:
    """`decode_step` kernel by kernel."""
    positions = cache.next_positions[:, None]
    cache.next_positions = cache.next_positions + 1
    present = torch.ones_like(positions, dtype=torch.bool)
    return llm.logits(llm(llm.embed(token_ids[:, None]), present, positions, cache)[:, 0])

"""Prefill and decode step, kernel by kernel: nothing is kept from one to the next but the cache."""

import torch
from torch import Tensor

from models.decoding.kv_cache import KeyValueCache
from models.language.llm import LanguageModel
from models.language.sequence import Assembled


def prefill(llm: LanguageModel, assembled: Assembled, cache: KeyValueCache) -> Tensor:
    """Run the prompt behind the slots that the cache already has: logits `[B, V]` of each row's first new token.

    The output head is applied to one position a row.
    """
    start = cache.span
    embeds, mask, positions = (part[:, start:] for part in (assembled.embeds, assembled.mask, assembled.positions))
    return run_prompt(llm, embeds, mask, positions, cache, assembled.ends)


def run_prompt(
    llm: LanguageModel,
    embeds: Tensor,
    mask: Tensor,
    positions: Tensor,
    cache: KeyValueCache,
    ends: Tensor | None = None,
) -> Tensor:
    """`prefill` of the part of a prompt that the cache does not have; the tensors are those of `Assembled`."""
    start = cache.span
    hidden = llm(embeds, mask, positions, cache)
    rows = torch.arange(len(embeds), device=hidden.device)
    cache.next_positions = positions[rows, cache.lengths - 1 - start] + 1
    if ends is not None:
        cache.lengths = ends
    return llm.logits(hidden[rows, cache.lengths - 1 - start])


def decode_step(llm: LanguageModel, token_ids: Tensor, cache: KeyValueCache) -> Tensor:
    """Append `token_ids` `[B]`, one a row: logits `[B, V]` of the token after."""
    positions = cache.next_positions[:, None]
    cache.next_positions = cache.next_positions + 1
    present = torch.ones_like(positions, dtype=torch.bool)
    return llm.logits(llm(llm.embed(token_ids[:, None]), present, positions, cache)[:, 0])

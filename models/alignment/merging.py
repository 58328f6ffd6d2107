"""Fewer audio tokens for the language model: those that say the same become one.

A connector that is aligned by CTC says each piece once, or a few tokens long, and is blank in between (the shortening
of Gaido et al. 2021, "CTC-based compression for direct speech translation", section 2). A second of speech is then some
five tokens in place of a dozen, and the language model's prompt, its cache and its time to the first token shrink with
it. Blanks are not only nothing: where nobody speaks, there may be a sound to describe. So a pause keeps tokens, one for
each `pause` of it, and only the shorter blanks between pieces are left out.
"""

import torch
from torch import BoolTensor, LongTensor, Tensor

from models.alignment.ctc import BLANK


def merge_runs(tokens: Tensor, mask: BoolTensor, classes: LongTensor, pause: int) -> tuple[Tensor, BoolTensor]:
    """Means of the runs of audio tokens that have one class, in their order.

    A run of a piece becomes a token. A run of blanks becomes a token for each `pause` tokens, and the rest of the run
    none. A clip that would keep nothing becomes the mean of all its tokens. Each clip's result depends on its own
    tokens alone.

    Args:
        tokens: `[B, A, H]`.
        mask: `[B, A]`, True first in each row.
        classes: `[B, A]`, `BLANK` or a piece.

    Returns:
        The shorter rows `[B, C, H]`, zero after each end, and their mask `[B, C]`.
    """
    targets = [_targets(row[own], pause) for row, own in zip(classes.cpu(), mask.cpu(), strict=True)]
    counts = [int(target.max()) + 1 for target in targets]
    width = max(counts)
    batch, available, size = tokens.shape
    slots = torch.full((batch, available), width)  # the last slot takes what is left out
    for row, target in enumerate(targets):
        slots[row, : len(target)] = torch.where(target >= 0, target, width)
    slots = slots.to(tokens.device)
    sums = tokens.new_zeros(batch, width + 1, size).scatter_add(1, slots[..., None].expand_as(tokens), tokens)
    sizes = tokens.new_zeros(batch, width + 1).scatter_add(1, slots, torch.ones_like(slots, dtype=tokens.dtype))
    merged = sums[:, :width] / sizes[:, :width, None].clamp(min=1)
    kept = torch.arange(width) < torch.tensor(counts)[:, None]
    return merged, kept.to(tokens.device)


def _targets(classes: LongTensor, pause: int) -> LongTensor:
    """Where each token of a clip goes: a place in the result, or -1."""
    values, lengths = torch.unique_consecutive(classes, return_counts=True)
    places: list[int] = []
    following = 0
    for value, length in zip(values.tolist(), lengths.tolist(), strict=True):
        if value != BLANK:
            places += [following] * length
            following += 1
            continue
        whole = length // pause
        places += [following + part // pause for part in range(whole * pause)] + [-1] * (length - whole * pause)
        following += whole
    if not following:
        return torch.zeros(len(classes), dtype=torch.long)
    return torch.tensor(places)

"""Prompts for a language model alone, and ids that end its answers."""

import torch

from models.language.sequence import Assembled

ENDS = (2, 9, 21, 33, 47, 60, 71, 88, 93)  # several, so that a random model does end some answers
LENGTHS = (3, 37, 17, 26)  # beyond Gemma's window of 16 tokens, and below it


def prompts(llm, lengths=LENGTHS, seed=0):
    """Random prompts of these lengths, right-padded; the padding is junk, which must not matter."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.randint(100, 300, (len(lengths), longest), generator=generator)
    positions = torch.arange(longest).expand(len(lengths), -1)
    with torch.no_grad():
        return Assembled(llm.embed(ids), positions < torch.tensor(lengths)[:, None], positions)


def row_of(assembled, row):
    length = int(assembled.lengths[row])
    cut = slice(row, row + 1), slice(0, length)
    return Assembled(assembled.embeds[cut], assembled.mask[cut], assembled.positions[cut])

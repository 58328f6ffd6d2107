"""The input of the language model: prompt, audio tokens and answer as one sequence a row."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Assembled:
    """Prompt, audio tokens and answer as one sequence a row; rows are right-padded."""

    embeds: Tensor
    """`[B, L, H]`"""
    mask: Tensor
    """`[B, L]` bool, True where a row has content."""
    positions: Tensor
    """`[B, L]`"""
    labels: Tensor | None = None
    """`[B, L]`: the answer's ids at their positions, -100 elsewhere; None for generation."""
    ends: Tensor | None = None
    """`[B]`: where decoding starts, if not after each row's last content."""
    prefixes: tuple[tuple[int, ...], ...] | None = None
    """Ids of the text that each row starts with, from position 0 on; None if its keys and values may not be reused."""

    def __len__(self) -> int:
        return self.embeds.shape[0]

    @property
    def lengths(self) -> Tensor:
        """Content of each row, `[B]`."""
        return self.mask.sum(dim=1)

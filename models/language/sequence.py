"""Prompt, audio tokens and answer as the language model takes them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Assembled:
    """Prompt, audio tokens and answer as the language model takes them; rows are right-padded."""

    embeds: Tensor
    """`[B, L, H]`"""
    mask: Tensor
    """`[B, L]` bool, True where a row has content."""
    positions: Tensor
    """`[B, L]`"""
    labels: Tensor | None = None
    """`[B, L]`: the answer's ids where they stand, -100 elsewhere; None for generation."""
    ends: Tensor | None = None
    """`[B]`: where generation goes on, if not behind each row's last content."""
    prefixes: tuple[tuple[int, ...], ...] | None = None
    """Ids of the text that each row begins with, at positions 0 on, where its keys and values may be reused."""

    def __len__(self) -> int:
        return self.embeds.shape[0]

    @property
    def lengths(self) -> Tensor:
        """Content of each row, `[B]`."""
        return self.mask.sum(dim=1)

"""The CTC head: the distance of each audio token to the pieces' embeddings, and to a blank.

Connectionist temporal classification (Graves et al. 2006) needs, for each audio token, a distribution over the pieces
and a blank. Here it comes from distances to rows of the language model's embedding table: the piece whose embedding is
nearest is the most likely one. So what is learned moves audio tokens to where the language model's own words lie. (CTC
for an encoder whose outputs a language model reads: Gaido et al. 2021, Fathullah et al. 2023; aligning speech to the
language model's own representations: Wang et al. 2023, "BLSP".) The blank is a point of its own, learned.

The squared distance is in units of the embeddings' variance, so the same settings suit every language model. CTC alone
asks only that the right piece is nearer than the others: audio tokens then grow long, and point away from the wrong
pieces more than to the right one (ten times an embedding's length and a cosine of 0.2 were measured), which a language
model cannot read. So their distance to the piece that they stand for is part of the loss (a commitment loss, as in van
den Oord et al. 2017, section 3.2). An aligned audio token is then where the embedding is, in length too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn

from models.alignment.pieces import Pieces

INITIAL_SCALE = 10.0  # nats, about, between a piece's own point and the middle of all
BLANK = 0  # the class; piece i is class i + 1


class Alignment(nn.Module):
    """CTC between audio tokens and rows of an embedding table.

    Its state is the pieces' ids, the blank's point and the scale. `table` holds the pieces' rows, which are in the
    language model's files.
    """

    ids: LongTensor
    table: Tensor

    def __init__(self, ids: LongTensor, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("ids", ids)
        self.register_buffer("table", table.detach().float(), persistent=False)  # [P, H]
        self.blank = nn.Parameter(self.table.mean(dim=0))
        self.scale = nn.Parameter(torch.tensor(INITIAL_SCALE))
        self.pieces: Pieces | None = None
        """How texts are spelled in the pieces; set by who has the tokenizer."""

    def logits(self, tokens: Tensor) -> Tensor:
        """Audio tokens `[..., H]` -> scores `[..., 1 + P]` of the blank and of each piece.

        They are negative squared distances but for the token's own square, which is the same for all classes.
        """
        return self._nearness(tokens) * self.scale

    def _nearness(self, tokens: Tensor) -> Tensor:
        """The squared length of tokens `[..., H]`, from the pieces' middle, less their squared distances to the blank
        and to each piece `[..., 1 + P]`, in units of the embeddings' variance."""
        middle = self.table.mean(dim=0)
        classes = torch.cat([self.blank[None], self.table]) - middle
        with torch.autocast(tokens.device.type, enabled=False):  # a difference of large numbers
            return (2 * (tokens.float() - middle) @ classes.T - classes.square().sum(dim=-1)) / self.variance

    @property
    def variance(self) -> Tensor:
        """The mean squared distance of the pieces' embeddings from their middle."""
        return (self.table - self.table.mean(dim=0)).square().sum(dim=-1).mean()

    def loss(self, tokens: Tensor, mask: Tensor, spellings: Sequence[LongTensor]) -> Tensor:
        """The CTC loss in nats, summed over the clips.

        A clip with fewer tokens than its spelling needs has no path: it counts as 0 and teaches nothing; see `fits`.

        Args:
            tokens: `[B, A, H]`.
            mask: `[B, A]`, True first in each row.
            spellings: positions of pieces, a tensor for each clip.
        """
        return self._ctc(self.logits(tokens), mask, spellings)

    @staticmethod
    def _ctc(logits: Tensor, mask: Tensor, spellings: Sequence[LongTensor]) -> Tensor:
        log_probabilities = logits.log_softmax(dim=-1).transpose(0, 1)  # [A, B, 1 + P]
        device = logits.device
        return F.ctc_loss(
            log_probabilities,
            torch.cat([spelling.to(device) + 1 for spelling in spellings]),
            mask.sum(dim=1),
            torch.tensor([len(spelling) for spelling in spellings], device=device),
            blank=BLANK,
            reduction="sum",
            zero_infinity=True,
        )

    def distance(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The squared distance of each audio token to the class that it stands for, in units of the embeddings'
        variance, summed over the clips' tokens.

        A token stands for every class as much as it is likely; what is likely is not trained by it.
        """
        return self._distance(tokens[mask], self._nearness(tokens[mask]))

    def _distance(self, tokens: Tensor, nearness: Tensor) -> Tensor:
        """`distance` of tokens `[M, H]`, whose nearness to the classes is known, `[M, 1 + P]`."""
        likely = (nearness * self.scale).softmax(dim=-1).detach()
        lengths = (tokens.float() - self.table.mean(dim=0)).square().sum(dim=-1) / self.variance
        return (lengths - (likely * nearness).sum(dim=-1)).sum()

    def losses(self, tokens: Tensor, mask: Tensor, spellings: Sequence[LongTensor]) -> tuple[Tensor, Tensor, Tensor]:
        """`loss`, `distance` and `logits`, for which every token is compared with the classes once."""
        nearness = self._nearness(tokens)
        logits = nearness * self.scale
        return self._ctc(logits, mask, spellings), self._distance(tokens[mask], nearness[mask]), logits

    def classes(self, tokens: Tensor) -> LongTensor:
        """Audio tokens `[..., H]` -> the most likely class `[...]`: `BLANK`, or a piece's position plus 1."""
        return self.logits(tokens).argmax(dim=-1)

    def best_path(self, tokens: Tensor, mask: Tensor) -> list[list[int]]:
        """The most likely class of each token, without repeats and blanks: positions of pieces, a list a clip."""
        classes = self.classes(tokens)
        return [
            [label - 1 for label in torch.unique_consecutive(row[own]).tolist() if label != BLANK]
            for row, own in zip(classes, mask, strict=True)
        ]

    def texts(self, tokens: Tensor, mask: Tensor) -> list[str]:
        """The texts of the best paths."""
        return [self.pieces.text(path) for path in self.best_path(tokens, mask)]


def fits(spelling: Sequence[int], tokens: int) -> bool:
    """Whether CTC has a path: a token for each piece, and a blank between two equal ones."""
    repeats = sum(first == second for first, second in itertools.pairwise(spelling))
    return len(spelling) + repeats <= tokens

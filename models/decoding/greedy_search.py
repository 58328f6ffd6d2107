"""Greedy search and sampling for all slots of a continuous batch at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from models.decoding.hypothesis import Generation, hits_stop_string
from models.decoding.scores import GenerateOptions, choose, process_scores, seeded_rows
from models.language.text import TextProcessor


@dataclass
class _Row:
    """What a slot has generated; it takes part in every step until another request has its slot."""

    generator: torch.Generator | None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False


class GreedySearch:
    """The next token of each slot, which has one row of the cache: the best one, or one that is drawn."""

    def __init__(self, logits: Tensor, text: TextProcessor, options: GenerateOptions) -> None:
        """Choose the first tokens of as many slots as `logits` `[R, V]` has rows."""
        self.text = text
        self.options = options
        self.next_ids = torch.empty(0, dtype=torch.long, device=logits.device)  # [R], to be run by the next step
        self._history = self.next_ids.new_empty(len(logits), 0)  # [R, G], for the repetition penalty
        generators = seeded_rows(options, len(logits), logits.device)
        self._rows = [_Row(generator) for generator in generators * (len(logits) // len(generators))]
        self.advance(logits)

    def advance(self, logits: Tensor) -> None:
        """Append a token to every slot that has not ended."""
        options, rows = self.options, self._rows
        longest = max(len(row.tokens) for row in rows if not row.ended)
        counts = [longest if row.ended else len(row.tokens) for row in rows]
        written = [row.tokens for row in rows]
        scores = process_scores(logits, self._history, self.text.eos_ids, options, counts=counts, written=written)
        generators = [None] if options.seed is None else [row.generator for row in rows]
        ids = choose(scores, options, generators)
        logprobs = F.log_softmax(logits, dim=-1).gather(1, ids[:, None])[:, 0]
        for row, token, logprob in zip(rows, ids.tolist(), logprobs.tolist(), strict=True):
            if not row.ended:
                row.tokens.append(token)
                row.logprobs.append(logprob)
                row.ended = self._ends(row.tokens)
        self.next_ids = ids
        if options.repetition_penalty != 1.0:
            kept = self._history[:, self._history.shape[1] - longest :]
            self._history = torch.cat([kept, ids[:, None]], dim=1)

    def _ends(self, tokens: list[int]) -> bool:
        ending = tokens[-1] in self.text.eos_ids or tokens[-1] == self.options.stop_id
        return ending or len(tokens) == self.options.max_new_tokens or hits_stop_string(tokens, self.text)

    def tokens(self, slot: int) -> list[int]:
        """Generated so far."""
        return self._rows[slot].tokens

    def result(self, slot: int, *, stop: bool = False) -> Generation | None:
        """The hypothesis of a slot that has ended, or that is to `stop` here; None while it is running."""
        row = self._rows[slot]
        if not (row.ended or stop):
            return None
        stopped = stop or row.tokens[-1] == self.options.stop_id
        return Generation.of(row.tokens, row.logprobs, self.text, stopped=stopped)

    def select(self, slots: Sequence[int]) -> None:
        """Keep these slots, in this order; a slot may be repeated, to be replaced by `put`."""
        index = torch.tensor(slots, device=self.next_ids.device)
        self.next_ids, self._history = self.next_ids[index], self._history[index]
        self._rows = [self._rows[slot] for slot in slots]

    def put(self, slots: Sequence[int], other: "GreedySearch") -> None:
        """Replace these slots by those of a search that has just begun."""
        index = torch.tensor(slots, device=self.next_ids.device)
        self.next_ids = self.next_ids.index_copy(0, index, other.next_ids)
        if self.options.repetition_penalty != 1.0:
            # Other rows have more tokens: the own first one fills the rest, and is still penalised only once.
            self._history[index] = other._history
        for slot, row in zip(slots, other._rows, strict=True):
            self._rows[slot] = row

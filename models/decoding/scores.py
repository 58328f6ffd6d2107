"""From scores to tokens: penalties, least length, sampling."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.parsing import check_values
from configs.sections import GenerateConfig


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(GenerateConfig):
    """How to generate: the fields of the `generate` section, a seed for sampling, and an id that ends a row.

    `min_length` counts generated tokens, the end not included. `top_k`, `top_p` and `temperature` act on sampling only.
    """

    seed: int | None = None
    """Seed of each row's own generator, so that a row draws the same in any batch; None draws from torch's global
    generator, for all rows together."""
    stop_id: int | None = None
    """A row ends when it (its best running beam) has generated this id, which `min_length` does not forbid."""

    def __post_init__(self) -> None:
        check_values(self)  # those of a YAML are checked where it is read
        super().__post_init__()


def process_scores(
    scores: Tensor,
    history: Tensor,
    eos_ids: frozenset[int],
    options: GenerateOptions,
    *,
    keep: int = 1,
    counts: Sequence[int] | None = None,
    written: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    """Apply repetition penalty, no repeated n-grams, least length and, for sampling, temperature, top-k and top-p.

    `scores` `[R, V]` are logits or log-probabilities, `history` `[R, G]` the ids generated so far (never the prompt's),
    `keep` how many tokens must stay possible. `counts` is how many tokens each row has generated, by default G; a row
    with fewer fills its history with ids of its own. `written` is what each row has generated where that is not its
    history. In the order, and with the results, of transformers' processors.
    """
    if options.repetition_penalty != 1.0 and history.shape[1]:
        seen = scores.gather(1, history)
        seen = torch.where(seen < 0, seen * options.repetition_penalty, seen / options.repetition_penalty)
        scores = scores.scatter(1, history, seen)
    if options.no_repeat_ngram_size:
        scores = forbid_repeats(scores, history.tolist() if written is None else written, options.no_repeat_ngram_size)
    counts = [history.shape[1]] * len(scores) if counts is None else counts
    if min(counts, default=0) < options.min_length and eos_ids:
        ends = [token for token in sorted(eos_ids) if token < scores.shape[1]]
        forbidden = scores.index_fill(1, torch.tensor(ends, dtype=torch.long, device=scores.device), -torch.inf)
        short = [count < options.min_length for count in counts]
        if all(short):
            scores = forbidden
        else:
            scores = torch.where(torch.tensor(short, device=scores.device)[:, None], forbidden, scores)
    if not options.do_sample:
        return scores
    if options.temperature != 1.0:
        scores = scores / options.temperature
    if options.top_k:
        least = scores.topk(min(max(options.top_k, keep), scores.shape[-1]))[0][:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if options.top_p < 1.0:
        ascending, order = scores.sort(dim=-1)
        out = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - options.top_p
        out[:, -keep:] = False
        scores = scores.masked_fill(out.scatter(1, order, out), -torch.inf)
    return scores


def forbid_repeats(scores: Tensor, written: Sequence[Sequence[int]], size: int) -> Tensor:
    """Make tokens impossible that would complete a sequence of `size` tokens which a row of `written` has already."""
    rows, tokens = [], []
    for row, ids in enumerate(written):
        last = tuple(ids[len(ids) - size + 1 :])
        starts = range(len(ids) - size + 1)
        follow = [ids[start + size - 1] for start in starts if tuple(ids[start : start + size - 1]) == last]
        rows += [row] * len(follow)
        tokens += follow
    if not rows:
        return scores
    index = torch.tensor([rows, tokens], device=scores.device)
    return scores.index_put((index[0], index[1]), scores.new_tensor(-torch.inf))


def choose(scores: Tensor, options: GenerateOptions, generators: Sequence[torch.Generator | None] = (None,)) -> Tensor:
    """Ids `[R]` from processed scores `[R, V]`: the best, or drawn, with one generator for all rows or one a row."""
    if not options.do_sample:
        return scores.argmax(dim=-1)
    return draw(F.softmax(scores, dim=-1), 1, generators)[:, 0]


def draw(probabilities: Tensor, count: int, generators: Sequence[torch.Generator | None]) -> Tensor:
    """`count` different indices `[R, count]` from `[R, V]`, with one generator for all rows or one a row."""
    if len(generators) == 1:
        return torch.multinomial(probabilities, count, generator=generators[0])
    rows = zip(probabilities.split(1), generators, strict=True)
    return torch.cat([torch.multinomial(row, count, generator=own) for row, own in rows])


def seeded_rows(options: GenerateOptions, rows: int, device: torch.device) -> list[torch.Generator | None]:
    """A generator for each row, all with the same seed, so that a row draws what it would draw alone; [None] without a
    seed."""
    return [None] if options.seed is None else [torch.Generator(device).manual_seed(options.seed) for _ in range(rows)]

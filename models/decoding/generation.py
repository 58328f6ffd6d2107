"""From assembled prompts to text: greedy search, sampling, beams, streaming.

All of them go through `prefill` and `decode_step`, the calls that the efficiency report times.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from models.decoding.beam_search import beam_search
from models.decoding.engine import decode_step, prefill
from models.decoding.hypothesis import Generation, Hypothesis, append_token, finished
from models.decoding.kv_cache import KeyValueCache
from models.decoding.scores import GenerateOptions, choose, process_scores, seeded_rows
from models.language.llm import LanguageModel
from models.language.sequence import Assembled
from models.language.text import UNDECODED, TextProcessor

__all__ = ["GenerateOptions", "Generation", "KeyValueCache", "decode_step", "generate", "prefill", "stream"]


@torch.no_grad()
def generate(
    llm: LanguageModel,
    assembled: Assembled,
    text: TextProcessor,
    options: GenerateOptions,
    *,
    halt_id: int | None = None,
) -> list[Generation]:
    """A hypothesis for each row of `assembled`, by greedy search, sampling, or beams, in the rows' order.

    Equal to transformers' `generate` token for token in float32 (without sampling), and the same for a row alone and in
    any batch: where sampling has a seed, it is each row's own.
    With `halt_id` all rows stop where the first row (its best running beam) has that token.
    """
    if len(assembled) == 0:
        return []
    if options.num_beams > 1:
        results = beam_search(llm, assembled, text, options, halt_id=halt_id)
        return [finished(ids, logprobs, text, halted) for ids, logprobs, halted in results]
    rows: list[Hypothesis] = []
    for rows in search(llm, assembled, text, options, halt_id=halt_id):  # noqa: B007 - the last state is the result
        pass
    halted = halt_id is not None and rows[0].tokens[-1] == halt_id
    return [finished(row.tokens, row.logprobs, text, halted) for row in rows]


@torch.no_grad()
def stream(
    llm: LanguageModel,
    assembled: Assembled,
    text: TextProcessor,
    options: GenerateOptions,
    *,
    halt_id: int | None = None,
) -> Iterator[str]:
    """The text of a single row in pieces, as it is decoded; joined, they are what `generate` returns.

    A piece never holds half a character, a special token, or what may turn out to be the start of a stop string.
    """
    if len(assembled) != 1 or options.num_beams != 1:
        raise ValueError(
            f"streaming takes one clip and num_beams=1; got {len(assembled)} clips and num_beams={options.num_beams}."
        )
    shown, tokens = "", []
    for (row,) in search(llm, assembled, text, options, halt_id=halt_id):
        tokens = row.tokens
        settled = _settled(text, tokens)
        if len(settled) > len(shown) and settled.startswith(shown):
            yield settled[len(shown) :]
            shown = settled
    whole = text.decode(tokens)
    if len(whole) > len(shown):
        yield whole[len(shown) :]


def search(
    llm: LanguageModel,
    assembled: Assembled,
    text: TextProcessor,
    options: GenerateOptions,
    *,
    halt_id: int | None = None,
) -> Iterator[list[Hypothesis]]:
    """Greedy search or sampling, a token a step for every unfinished row; yields all rows after each step."""
    rows = [Hypothesis([], []) for _ in range(len(assembled))]
    alive = list(range(len(rows)))  # the row behind each row of the cache; finished ones leave when it pays
    cache = KeyValueCache(len(rows), assembled.embeds.shape[1] + options.max_new_tokens - 1, assembled.embeds.device)
    generators = seeded_rows(options, len(rows), assembled.embeds.device)
    logits = prefill(llm, assembled, cache)
    history = torch.empty(len(rows), 0, dtype=torch.long, device=logits.device)  # [B, G]
    for step in range(options.max_new_tokens):
        scores = process_scores(logits, history, text.eos_ids, options)
        ids = choose(scores, options, generators)
        logprobs = F.log_softmax(logits, dim=-1).gather(1, ids[:, None])[:, 0]
        for row, token, logprob in zip(alive, ids.tolist(), logprobs.tolist(), strict=True):
            append_token(rows[row], token, logprob, text)
        yield rows
        kept = [index for index, row in enumerate(alive) if not rows[row].done]
        halted = halt_id is not None and rows[0].tokens[-1] == halt_id
        if not kept or halted or step + 1 == options.max_new_tokens:
            return
        history = torch.cat([history, ids[:, None]], dim=1)
        if llm.shrinks_batches and 2 * len(kept) <= len(alive):  # copying the cache pays once half of it is idle
            index = torch.tensor(kept, device=ids.device)
            cache.select(index)
            ids, history = ids[index], history[index]
            alive = [alive[position] for position in kept]
            generators = generators if len(generators) == 1 else [generators[position] for position in kept]
        logits = decode_step(llm, ids, cache)


def _settled(text: TextProcessor, tokens: list[int]) -> str:
    """The part of the text that later tokens can no longer change."""
    raw = text.decode_raw(tokens)
    settled = text.cut_at_stop(raw)
    if settled == raw:
        settled = settled.rstrip(UNDECODED)
        held = max((_overlap(settled, stop) for stop in text.stop_strings), default=0)
        settled = settled[: len(settled) - held]
    return settled.strip()  # spaces at the end are shown with the word after them, or never


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((size for size in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:size])), 0)

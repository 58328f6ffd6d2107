"""From assembled prompts to text, in any search, by a `ContinuousBatch` as wide as the batch; and streaming."""

from collections.abc import Iterator

import torch

from models.decoding.continuous_batching import ContinuousBatch
from models.decoding.engine import DecodeEngine
from models.decoding.hypothesis import Generation
from models.decoding.scores import GenerateOptions
from models.language.sequence import Assembled
from models.language.text import UNDECODED, TextProcessor


@torch.no_grad()
def generate(
    engine: DecodeEngine,
    assembled: Assembled,
    text: TextProcessor,
    options: GenerateOptions,
    *,
    halt_id: int | None = None,
) -> list[Generation]:
    """A hypothesis for each row of `assembled`, by greedy search, sampling, or beams, in the rows' order.

    Equal to transformers' `generate` token for token in float32 (without sampling), and the same for a row alone and in
    any batch: where sampling has a seed, it is each row's own. `halt_id`: see `ContinuousBatch`.
    """
    rows = len(assembled)
    if rows == 0:
        return []
    batch = ContinuousBatch(engine, text, options, rows, halt_id)
    done = dict(batch.add(assembled, range(rows)))
    while len(done) < rows:
        done |= batch.step()
    return [done[row] for row in range(rows)]


@torch.no_grad()
def stream(
    engine: DecodeEngine,
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
    batch = ContinuousBatch(engine, text, options, 1, halt_id)
    shown, done = "", batch.add(assembled, [0])
    while not done:
        settled = _settled(text, batch.running()[0])
        if len(settled) > len(shown) and settled.startswith(shown):
            yield settled[len(shown) :]
            shown = settled
        done = batch.step()
    whole = done[0][1].text
    if len(whole) > len(shown):
        yield whole[len(shown) :]


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

"""Continuous batching: where a request has finished, the next waiting request gets its slot at once.

Each request is decoded as if it were alone, so the texts are those of one clip after another. (Yu et al. 2022, Orca,
section 3.1, schedule requests in the same way.)
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.decoding.beam_search import BeamSearch
from models.decoding.engine import DecodeEngine
from models.decoding.greedy_search import GreedySearch
from models.decoding.hypothesis import Generation
from models.decoding.kv_cache import KeyValueCache
from models.decoding.scores import GenerateOptions
from models.language.sequence import Assembled
from models.language.text import TextProcessor


def decode_each(
    engine: DecodeEngine, text: TextProcessor, options: GenerateOptions, prompts: Iterable[Assembled], *, at_once: int
) -> Iterator[tuple[int, Generation]]:
    """The hypothesis of each of `prompts` (batches of one) with its number, in the order in which they finish.

    `at_once` requests are decoded together, fewer once they do not fit into the GPU's memory. A prompt is asked for
    when there is a slot for it.
    """
    arriving = enumerate(prompts)
    waiting: deque[tuple[int, Assembled]] = deque()
    running: dict[int, Assembled] = {}
    batch = ContinuousBatch(engine, text, options, at_once)
    while True:
        added: dict[int, Assembled] = {}
        if not running or batch.free >= _worth_a_prefill(engine, at_once):
            waiting.extend(islice(arriving, max(0, batch.free - len(waiting))))
            added = dict(waiting.popleft() for _ in range(min(batch.free, len(waiting))))
            running |= added
        if not running:
            return
        try:
            done = batch.add(join(list(added.values())), list(added)) if added else batch.step()
        except torch.cuda.OutOfMemoryError:
            if at_once == 1:
                raise
            done = None
        if done is None:  # not in the handler, whose traceback keeps the memory alive
            waiting.extendleft(reversed(running.items()))
            running.clear()
            at_once //= 2
            batch = None  # free the cache first, and the buffers of the graphs
            engine.free_graphs()
            torch.cuda.empty_cache()
            batch = ContinuousBatch(engine, text, options, at_once)
            continue
        for number, _ in done:
            del running[number]
        yield from done


def _worth_a_prefill(engine: DecodeEngine, slots: int) -> int:
    """Free slots that a prefill waits for. Where steps are replayed, a prefill, which is launched kernel by kernel,
    takes as long as several of them, whatever its rows."""
    return 1 if engine.graphs is None else max(1, slots // 4)


@dataclass
class _Slot:
    """A row of the cache, or `num_beams` rows."""

    number: int
    """Of its request."""
    prompt_length: int
    length: int
    """The next write position. That of an idle slot grows too: its rows take part in every step."""
    running: bool = True


class ContinuousBatch:
    """Up to `slots` requests that are decoded together, each from its own prompt to its own end.

    `add` runs prompts, `step` appends a token to every request; both return the requests that finished by it, whose
    slots are free again.
    """

    def __init__(self, engine: DecodeEngine, text: TextProcessor, options: GenerateOptions, slots: int) -> None:
        if slots < 1:
            raise ValueError(f"a continuous batch needs a slot for a request; got slots={slots}.")
        self.engine = engine
        self.text = text
        self.options = options
        self.slots = slots
        self.beams = options.num_beams
        self._slots: list[_Slot] = []  # of the cache; idle ones are those that run no longer
        self._cache: KeyValueCache | None = None
        self._search: GreedySearch | BeamSearch | None = None

    def __len__(self) -> int:
        return len(self._running)

    @property
    def free(self) -> int:
        return self.slots - len(self)

    @property
    def _running(self) -> list[int]:
        return [index for index, slot in enumerate(self._slots) if slot.running]

    @torch.no_grad()
    def add(self, prompts: Assembled, numbers: Sequence[int]) -> list[tuple[int, Generation]]:
        """Run the prompts of some requests, no more than there are free slots, and choose their first tokens.

        `numbers` tell the requests apart in what is returned.
        """
        assert 0 < len(prompts) == len(numbers) <= self.free, (len(prompts), len(numbers), self.free)
        width = prompts.embeds.shape[1]
        capacity = width + self.options.max_new_tokens - 1
        first = not len(self)
        if first:
            self._cache = self._search = None  # free the cache first
            self._slots = []
        logits, cache = self._prefill(prompts, capacity if first else width)
        search = (GreedySearch if self.beams == 1 else BeamSearch)(logits, self.text, self.options)
        added = [_Slot(number, length, length) for number, length in zip(numbers, self._lengths(prompts), strict=True)]
        if first:
            self._cache, self._search, self._slots = cache, search, added
            return self._finished(range(len(added)))
        indices = self._make_room(len(added), capacity)
        self._cache.put(self._rows(indices), cache)
        self._search.put(indices, search)
        for index, slot in zip(indices, added, strict=True):
            self._slots[index] = slot
        return self._finished(indices)

    def _prefill(self, prompts: Assembled, capacity: int) -> tuple[Tensor, KeyValueCache]:
        """Logits and cache of prompts that are run once, and then repeated for each beam."""
        width, device = prompts.embeds.shape[1], prompts.embeds.device
        cache = KeyValueCache(len(prompts), capacity if self.beams == 1 else width, device)
        logits = self.engine.prefill(prompts, cache)
        if self.beams > 1:
            rows = torch.arange(len(prompts), device=device).repeat_interleave(self.beams)
            cache.select(rows, capacity)
            logits = logits[rows]
        return logits, cache

    def _lengths(self, prompts: Assembled) -> list[int]:
        """Where each prompt's decoding starts; for one alone an upper bound without a device synchronisation."""
        if len(prompts) == self.beams == 1:
            return [prompts.embeds.shape[1]]
        return (prompts.lengths if prompts.ends is None else prompts.ends).tolist()

    def _rows(self, indices: Sequence[int]) -> Tensor:
        """The rows of the cache of these slots."""
        first = torch.tensor(indices, device=self.engine.llm.device)[:, None] * self.beams
        return (first + torch.arange(self.beams, device=first.device)).flatten()

    @torch.no_grad()
    def step(self) -> list[tuple[int, Generation]]:
        """Append a token to every request."""
        running = self._running
        assert running, "nothing to decode"
        if self.engine.shrinks_batches and 2 * len(running) <= len(self._slots):  # copying pays once half of it is idle
            self._keep(running)
            running = self._running
        span = max(self._slots[index].length for index in running)
        too_long = [index for index, slot in enumerate(self._slots) if slot.length > span]
        if too_long:  # idle ones, which would need more of the cache than the others
            self._cache.free(self._rows(too_long))
            for index in too_long:
                self._slots[index].length = 0
        self._cache.attend_to(span)
        sources = self._search.advance(self.engine.step(self._search.next_ids, self._cache))
        for slot in self._slots:
            slot.length += 1
        done = self._finished(running)
        if sources is not None and len(self):  # beams of a clip have equal keys up to the end of its prompt
            self._cache.reorder(sources, min(self._slots[index].prompt_length for index in self._running))
        return done

    def tokens(self, number: int) -> list[int]:
        """What a request that is running, or has finished by the last call, has generated; its best running beam."""
        return self._search.tokens(next(index for index, slot in enumerate(self._slots) if slot.number == number))

    def stop(self) -> list[tuple[int, Generation]]:
        """End all requests here."""
        return self._finished(self._running, stop=True)

    def _finished(self, indices: Sequence[int], *, stop: bool = False) -> list[tuple[int, Generation]]:
        """Those of the running slots at `indices` that have ended; they are free from now on."""
        done = []
        for index in indices:
            result = self._search.result(index, stop=stop)
            if result is not None:
                self._slots[index].running = False
                done.append((self._slots[index].number, result))
        return done

    def _make_room(self, count: int, capacity: int) -> list[int]:
        """`count` idle slots of the cache, which has at least `capacity` afterwards; enlarges it where needed."""
        running = self._running
        idle = [index for index in range(len(self._slots)) if index not in running]
        if len(idle) < count or capacity > self._cache.capacity:
            self._keep(running, fillers=count, capacity=max(capacity, self._cache.capacity))
            idle = list(range(len(running), len(running) + count))
        return idle[:count]

    def _keep(self, indices: list[int], fillers: int = 0, capacity: int | None = None) -> None:
        """Keep these slots of the cache, and after them as many others, to be replaced, as there are `fillers`."""
        chosen = [*indices, *indices[:1] * fillers]
        self._cache.select(self._rows(chosen), capacity)
        self._search.select(chosen)
        self._slots = [self._slots[index] for index in chosen]


def split(assembled: Assembled) -> list[Assembled]:
    """The rows of a batch, each a batch of one without padding."""
    assert assembled.labels is None and assembled.ends is None
    rows = []
    for row, length in enumerate(assembled.lengths.tolist()):
        cut = slice(row, row + 1), slice(0, length)
        rows.append(
            Assembled(
                embeds=assembled.embeds[cut].clone(),  # so that the whole batch can be freed
                mask=assembled.mask[cut],
                positions=assembled.positions[cut],
                prefixes=None if assembled.prefixes is None else assembled.prefixes[row : row + 1],
            )
        )
    return rows


def join(rows: Sequence[Assembled]) -> Assembled:
    """Batches of one as one batch, right-padded."""
    if len(rows) == 1:
        return rows[0]
    known = all(row.prefixes is not None for row in rows)
    return Assembled(
        embeds=pad_sequence([row.embeds[0] for row in rows], batch_first=True),
        mask=pad_sequence([row.mask[0] for row in rows], batch_first=True),
        positions=pad_sequence([row.positions[0] for row in rows], batch_first=True),
        prefixes=tuple(row.prefixes[0] for row in rows) if known else None,
    )

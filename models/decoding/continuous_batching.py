"""Many clips through one cache: where a row has finished, the next clip's prompt takes its place at once.

Each row is decoded as if it were alone, so the texts are those of one clip after another. With beams a clip has as many
rows of the cache, side by side, and a search of its own over them.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.decoding.beam_search import Running, rows_of
from models.decoding.engine import decode_step, prefill
from models.decoding.hypothesis import Generation, Hypothesis, append_token, finished
from models.decoding.kv_cache import KeyValueCache
from models.decoding.scores import GenerateOptions, choose, process_scores, seeded
from models.language.llm import LanguageModel
from models.language.sequence import Assembled
from models.language.text import TextProcessor


@dataclass(frozen=True)
class Prompted:
    """A row to decode: its number among all of them, and its prompt, a batch of one without padding."""

    number: int
    prompt: Assembled

    @property
    def width(self) -> int:
        return self.prompt.embeds.shape[1]


@dataclass
class _Place:
    """A row of the cache that is in use."""

    row: Prompted
    made: Hypothesis
    generator: torch.Generator | None

    @property
    def length(self) -> int:
        """Slots in use: the prompt's, and those of all tokens but the last, which is to be written next."""
        return self.row.width + len(self.made.tokens) - 1

    @property
    def next_ids(self) -> list[int]:
        return self.made.tokens[-1:]


@dataclass
class _BeamPlace:
    """Rows of the cache, one a beam, that are in use."""

    row: Prompted
    running: Running

    @property
    def length(self) -> int:
        return self.row.width + self.running.tokens - 1

    @property
    def next_ids(self) -> list[int]:
        return self.running.next_ids.tolist()


def decode_each(
    llm: LanguageModel, text: TextProcessor, options: GenerateOptions, prompts: Iterable[Assembled], *, at_once: int
) -> Iterator[tuple[int, Generation]]:
    """The hypothesis of each of `prompts` (batches of one) with its number, in the order in which they finish.

    `at_once` rows are decoded together, fewer once the GPU's memory does not hold them. A prompt is asked for when
    there is a place for it. A seed seeds each row's draws, as if the row were alone.
    """
    arriving = (Prompted(*numbered) for numbered in enumerate(prompts))
    waiting: deque[Prompted] = deque()
    pool = Pool(llm, text, options, at_once)
    while True:
        newcomers: list[Prompted] = []
        if not len(pool) or pool.free >= _worth_a_prefill(llm, at_once):
            waiting.extend(islice(arriving, max(0, pool.free - len(waiting))))
            newcomers = [waiting.popleft() for _ in range(min(pool.free, len(waiting)))]
        if not newcomers and not len(pool):
            return
        try:
            done = pool.admit(newcomers) if newcomers else pool.step()
        except torch.cuda.OutOfMemoryError:
            if at_once == 1:
                raise
            done = None
        if done is None:  # not in the handler, whose traceback holds on to the memory
            known = {row.number for row in pool.rows}
            again = [*pool.rows, *(row for row in newcomers if row.number not in known)]
            waiting.extendleft(reversed(again))
            at_once //= 2
            pool = None  # its cache goes before the next one is made, and so does the one that graphs work in
            if llm.graphs is not None:
                llm.graphs.clear()
            torch.cuda.empty_cache()
            pool = Pool(llm, text, options, at_once)
            continue
        yield from done


def _worth_a_prefill(llm: LanguageModel, places: int) -> int:
    """Free places that newcomers wait for. Where steps are replayed, a prefill, which is launched kernel by kernel,
    takes as long as several of them, whatever its rows."""
    return 1 if llm.graphs is None else max(1, places // 4)


class Pool:
    """Up to `places` clips that are decoded together, each from its own prompt to its own end.

    `admit` runs prompts and gives them free places, `step` appends a token to every row; both return the rows that
    finished by it, whose places are free again.
    """

    def __init__(self, llm: LanguageModel, text: TextProcessor, options: GenerateOptions, places: int) -> None:
        if places < 1:
            raise ValueError(f"a pool needs a place for a row; got places={places}.")
        self.llm = llm
        self.text = text
        self.options = options
        self.places = places
        self.beams = options.num_beams
        self._places: list[_Place | _BeamPlace | None] = []  # a row of the cache each, or one for each beam
        self._cache: KeyValueCache | None = None

    def __len__(self) -> int:
        return len(self._active)

    @property
    def free(self) -> int:
        return self.places - len(self)

    @property
    def rows(self) -> list[Prompted]:
        """Those being decoded."""
        return [self._places[index].row for index in self._active]

    @property
    def _active(self) -> list[int]:
        return [index for index, place in enumerate(self._places) if place is not None]

    @torch.no_grad()
    def admit(self, rows: Sequence[Prompted]) -> list[tuple[int, Generation]]:
        """Run the prompts of `rows`, no more than there are free places, and choose their first tokens."""
        assert 0 < len(rows) <= self.free, (len(rows), self.free)
        places = [self._place(row) for row in rows]
        prompt = join([row.prompt for row in rows])
        width = prompt.embeds.shape[1]
        capacity = width + self.options.max_new_tokens - 1
        if not len(self):
            self._cache, self._places = None, []  # before the next one is made
            logits, self._cache = self._prefilled(prompt, capacity)
            self._places = list(places)
            return self._choose(logits, range(len(rows)))
        logits, cache = self._prefilled(prompt, width)
        indices = self._make_room(len(rows), capacity)
        self._cache.put(self._rows(indices), cache)
        for index, place in zip(indices, places, strict=True):
            self._places[index] = place
        return self._choose(logits, indices)

    def _place(self, row: Prompted) -> _Place | _BeamPlace:
        if self.beams == 1:
            return _Place(row, Hypothesis([], []), seeded(self.options, self.llm.device))
        return _BeamPlace(row, Running.start(1, self.text, self.options, self.llm.device))

    def _prefilled(self, prompt: Assembled, capacity: int) -> tuple[Tensor, KeyValueCache]:
        """Logits and cache of prompts that are run once, and then repeated for each beam."""
        cache = KeyValueCache(len(prompt), capacity if self.beams == 1 else prompt.embeds.shape[1], self.llm.device)
        logits = prefill(self.llm, prompt, cache)
        if self.beams > 1:
            rows = torch.arange(len(prompt), device=self.llm.device).repeat_interleave(self.beams)
            cache.select(rows, capacity)
            logits = logits[rows]
        return logits, cache

    def _rows(self, indices: Sequence[int]) -> Tensor:
        """The rows of the cache at these places."""
        return rows_of(indices, self.beams, self.llm.device)

    @torch.no_grad()
    def step(self) -> list[tuple[int, Generation]]:
        """A token more for every row."""
        assert len(self), "nothing to decode"
        if self.llm.shrinks_batches and 2 * len(self) <= len(self._places):  # copying pays once half of it is idle
            self._keep(self._active)
        cache, active = self._cache, self._active
        idle = [index for index, place in enumerate(self._places) if place is None]
        if idle:  # they take part in every step, each time from slot 0 on
            cache.vacate(self._rows(idle))
        cache.attend_to(max(self._places[index].length for index in active))
        last = [token for place in self._places for token in (place.next_ids if place else [0] * self.beams)]
        logits = decode_step(self.llm, torch.tensor(last, device=self.llm.device), cache)
        return self._choose(logits[self._rows(active)] if idle else logits, active)

    def _make_room(self, rows: int, capacity: int) -> list[int]:
        """The indices of `rows` idle places of the cache, with at least `capacity` slots; enlarges it where needed."""
        idle = [index for index, place in enumerate(self._places) if place is None]
        if len(idle) < rows or capacity > self._cache.capacity:
            active = self._active
            self._keep(active, fillers=rows, capacity=max(capacity, self._cache.capacity))
            idle = list(range(len(active), len(active) + rows))
        return idle[:rows]

    def _keep(self, indices: list[int], fillers: int = 0, capacity: int | None = None) -> None:
        """Keep these places of the cache, and as many idle ones behind them as there are `fillers`."""
        chosen = [*indices, *indices[:1] * fillers]
        self._cache.select(self._rows(chosen), capacity)
        self._places = [*(self._places[index] for index in indices), *[None] * fillers]

    def _choose(self, logits: Tensor, indices: Sequence[int]) -> list[tuple[int, Generation]]:
        """The next token of the clips at `indices`, from their rows' logits `[R, V]`; those that end leave the pool."""
        if self.beams > 1:
            return self._choose_beams(logits, indices)
        places = [self._places[index] for index in indices]
        counts = [len(place.made.tokens) for place in places]
        history = torch.empty(len(places), 0, dtype=torch.long, device=logits.device)
        if self.options.repetition_penalty != 1.0 and max(counts):
            longest = max(counts)  # rows are filled up with their own first token: penalised once all the same
            ids = [place.made.tokens + place.made.tokens[:1] * (longest - len(place.made.tokens)) for place in places]
            history = torch.tensor(ids, device=logits.device)
        scores = process_scores(logits, history, self.text.eos_ids, self.options, counts=counts)
        generators = [place.generator for place in places] if self.options.seed is not None else [None]
        ids = choose(scores, self.options, generators)
        logprobs = F.log_softmax(logits, dim=-1).gather(1, ids[:, None])[:, 0]
        done = []
        for index, place, token, logprob in zip(indices, places, ids.tolist(), logprobs.tolist(), strict=True):
            append_token(place.made, token, logprob, self.text)
            if place.made.done or len(place.made.tokens) == self.options.max_new_tokens:
                self._places[index] = None
                done.append((place.row.number, finished(place.made.tokens, place.made.logprobs, self.text)))
        return done

    def _choose_beams(self, logits: Tensor, indices: Sequence[int]) -> list[tuple[int, Generation]]:
        """`_choose` where each clip has several rows, which go on from the beams that were continued."""
        sources = torch.arange(len(self._places) * self.beams, device=logits.device)
        done = []
        for index, own in zip(indices, logits.split(self.beams), strict=True):
            place = self._places[index]
            chosen, (ended,) = place.running.advance(own)
            first = index * self.beams
            sources[first : first + self.beams] = first + chosen[0]
            if ended:
                self._places[index] = None
                done.append((place.row.number, finished(*place.running.best(), self.text)))
        if len(self):  # beams of a clip have equal keys up to the end of its prompt
            self._cache.reorder(sources, min(row.width for row in self.rows))
        return done


def split(assembled: Assembled) -> list[Assembled]:
    """The rows of a batch, each a batch of one without padding."""
    assert assembled.labels is None and assembled.ends is None
    rows = []
    for row, length in enumerate(assembled.lengths.tolist()):
        cut = slice(row, row + 1), slice(0, length)
        rows.append(
            Assembled(
                embeds=assembled.embeds[cut].clone(),  # the rest of the batch need not be kept
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

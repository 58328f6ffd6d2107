"""Continuous batching: many clips through one cache; where one has finished, a waiting request takes its slot.

Each row is decoded as if it were alone, so the texts are those of one clip after another. With beams a clip has several
rows of the cache, next to each other. (Yu et al. 2022, Orca, section 3.1, schedule requests in the same way.)
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.decoding.beam_search import RunningBeams, rows_of
from models.decoding.engine import DecodeEngine
from models.decoding.hypothesis import Generation, Hypothesis, ends_row, finished
from models.decoding.kv_cache import KeyValueCache
from models.decoding.scores import GenerateOptions, choose, process_scores, seeded
from models.language.sequence import Assembled
from models.language.text import TextProcessor

Results = list[tuple[int, Generation]]
"""Hypotheses with the numbers of their requests."""


@dataclass(frozen=True)
class Request:
    """A clip to decode: its number among all of them, and its prompt, a batch of one without padding."""

    number: int
    prompt: Assembled


@dataclass
class _Slot:
    """A clip that is being decoded; it has one row of the cache, or one for each beam."""

    number: int
    width: int
    """Slots of the cache that its prompt takes."""
    generator: torch.Generator | None
    made: Hypothesis = field(default_factory=Hypothesis)
    """What it has generated; with beams, see its `_BeamGroup`."""
    count: int = 0
    """Tokens generated so far."""

    @property
    def length(self) -> int:
        """Slots of the cache in use: the prompt's, and those of all tokens but the last, which is not yet written."""
        return self.width + self.count - 1


@dataclass
class _BeamGroup:
    """Clips that were added together, and so have generated equally many tokens."""

    running: RunningBeams
    slots: list[int]
    """Where they are in the cache, in the order of `running`."""


def decode_each(
    engine: DecodeEngine,
    text: TextProcessor,
    options: GenerateOptions,
    prompts: Iterable[Assembled],
    *,
    at_once: int,
    halt_id: int | None = None,
) -> Iterator[tuple[int, Generation]]:
    """The hypothesis of each of `prompts` (batches of one) with its number, in the order in which they finish.

    `at_once` clips are decoded together, fewer once the GPU's memory does not hold them. A prompt is asked for when
    there is a slot for it. A seed seeds each row's draws, as if the row were alone.
    """
    arriving = (Request(*numbered) for numbered in enumerate(prompts))
    waiting: deque[Request] = deque()
    decoding: dict[int, Request] = {}
    batch = ContinuousBatch(engine, text, options, at_once, halt_id)
    while True:
        added: list[Request] = []
        if not len(batch) or batch.free >= _worth_a_prefill(engine, at_once):
            waiting.extend(islice(arriving, max(0, batch.free - len(waiting))))
            added = [waiting.popleft() for _ in range(min(batch.free, len(waiting)))]
            decoding |= {request.number: request for request in added}
        if not decoding:
            return
        try:
            done = (
                batch.add(join([each.prompt for each in added]), [each.number for each in added])
                if added
                else batch.step()
            )
        except torch.cuda.OutOfMemoryError:
            if at_once == 1:
                raise
            done = None
        if done is None:  # not in the handler, whose traceback holds on to the memory
            waiting.extendleft(reversed(decoding.values()))
            decoding.clear()
            at_once //= 2
            batch = None  # free its cache, and the one that graphs work in, before the next one is made
            engine.free_graphs()
            torch.cuda.empty_cache()
            batch = ContinuousBatch(engine, text, options, at_once, halt_id)
            continue
        for number, _ in done:
            del decoding[number]
        yield from done


def _worth_a_prefill(engine: DecodeEngine, slots: int) -> int:
    """How many free slots waiting requests wait for. Where steps are replayed, a prefill, which is launched kernel by
    kernel, takes as long as several of them, whatever its rows."""
    return 1 if engine.graphs is None else max(1, slots // 4)


class ContinuousBatch:
    """Up to `slots` clips that are decoded together, each from its own prompt to its own end.

    `add` runs prompts and gives them free slots, `step` appends a token to every clip; both return the clips that
    finished by it, whose slots are free again.

    Args:
        halt_id: a token that ends a clip besides the end-of-sequence ids, whatever it stands for; with beams, where the
            best running beam has it.
    """

    def __init__(
        self,
        engine: DecodeEngine,
        text: TextProcessor,
        options: GenerateOptions,
        slots: int,
        halt_id: int | None = None,
    ) -> None:
        if slots < 1:
            raise ValueError(f"a batch needs at least one slot; got slots={slots}.")
        self.engine = engine
        self.text = text
        self.options = options
        self.halt_id = halt_id
        self.beams = options.num_beams
        self._device = engine.llm.device
        self._most = slots
        self._slots: list[_Slot | None] = []  # those that the cache has rows for
        self._groups: list[_BeamGroup] = []
        self._cache: KeyValueCache | None = None

    def __len__(self) -> int:
        return len(self._active)

    @property
    def free(self) -> int:
        return self._most - len(self)

    @property
    def _active(self) -> list[int]:
        return [index for index, slot in enumerate(self._slots) if slot is not None]

    def running(self) -> dict[int, list[int]]:
        """The ids generated so far by each clip that has not finished, by its number; of the best running beam."""
        if self.beams == 1:
            return {slot.number: slot.made.tokens for slot in self._slots if slot is not None}
        return {
            self._slots[index].number: group.running.state.tokens[row, 0].tolist()
            for group in self._groups
            for row, index in enumerate(group.slots)
        }

    @torch.no_grad()
    def add(self, prompt: Assembled, numbers: Sequence[int]) -> Results:
        """Run the prompts of `prompt`, no more than there are free slots, and choose their first tokens."""
        assert 0 < len(numbers) == len(prompt) <= self.free, (len(numbers), len(prompt), self.free)
        width = prompt.embeds.shape[1]
        widths = [width] * len(prompt) if len(prompt) == 1 or prompt.ends is not None else prompt.lengths.tolist()
        slots = [
            _Slot(number, own, seeded(self.options, self._device) if self.beams == 1 else None)
            for number, own in zip(numbers, widths, strict=True)
        ]
        capacity = width + self.options.max_new_tokens - 1
        if not len(self):
            self._cache, self._slots = None, []  # free it before the next one is made
            logits, self._cache = self._prefilled(prompt, capacity)
            self._slots = list(slots)
            indices = list(range(len(slots)))
        else:
            logits, cache = self._prefilled(prompt, width)
            indices = self._make_room(len(slots), capacity)
            self._cache.put(self._rows(indices), cache)
            for index, slot in zip(indices, slots, strict=True):
                self._slots[index] = slot
        if self.beams > 1:
            running = RunningBeams.start(len(slots), self.text, self.options, self._device)
            self._groups.append(_BeamGroup(running, indices))
            return self._choose_beams(logits, self._groups[-1:])
        return self._choose(logits, indices)

    def _prefilled(self, prompt: Assembled, capacity: int) -> tuple[Tensor, KeyValueCache]:
        """Logits and cache of prompts that are run once, and then repeated for each beam."""
        cache = KeyValueCache(len(prompt), capacity if self.beams == 1 else prompt.embeds.shape[1], self._device)
        logits = self.engine.prefill(prompt, cache)
        if self.beams > 1:
            rows = torch.arange(len(prompt), device=self._device).repeat_interleave(self.beams)
            cache.select(rows, capacity)
            logits = logits[rows]
        return logits, cache

    def _rows(self, indices: Sequence[int]) -> Tensor:
        """The rows of the cache of these slots."""
        return rows_of(indices, self.beams, self._device)

    @torch.no_grad()
    def step(self) -> Results:
        """A token more for every clip."""
        assert len(self), "nothing to decode"
        if self.engine.shrinks_batches and 2 * len(self) <= len(self._slots):  # copying pays once half of it is idle
            self._keep(self._active)
        cache, active = self._cache, self._active
        idle = [index for index, slot in enumerate(self._slots) if slot is None]
        if idle:  # they take part in every step, each time from the first slot of the cache on
            cache.free(self._rows(idle))
        cache.attend_to(max(self._slots[index].length for index in active))
        logits = self.engine.step(self._next_ids(), cache)
        if self.beams > 1:
            return self._choose_beams(logits, self._groups)
        return self._choose(logits[self._rows(active)] if idle else logits, active)

    def _next_ids(self) -> Tensor:
        """The last token of every row of the cache, 0 for idle ones."""
        if self.beams == 1:
            last = [slot.made.tokens[-1] if slot else 0 for slot in self._slots]
            return torch.tensor(last, device=self._device)
        if len(self._groups) == 1 and self._groups[0].slots == list(range(len(self._slots))):
            return self._groups[0].running.next_ids
        ids = torch.zeros(len(self._slots) * self.beams, dtype=torch.long, device=self._device)
        for group in self._groups:
            ids[self._rows(group.slots)] = group.running.next_ids
        return ids

    def _make_room(self, slots: int, capacity: int) -> list[int]:
        """That many idle slots of the cache, whose rows have at least `capacity` slots; enlarges it where needed."""
        idle = [index for index, slot in enumerate(self._slots) if slot is None]
        if len(idle) < slots or capacity > self._cache.capacity:
            active = self._active
            self._keep(active, fillers=slots, capacity=max(capacity, self._cache.capacity))
            idle = list(range(len(active), len(active) + slots))
        return idle[:slots]

    def _keep(self, indices: list[int], fillers: int = 0, capacity: int | None = None) -> None:
        """Keep these slots of the cache, and as many idle ones behind them as there are `fillers`."""
        chosen = [*indices, *indices[:1] * fillers]
        self._cache.select(self._rows(chosen), capacity)
        self._slots = [*(self._slots[index] for index in indices), *[None] * fillers]
        moved = {index: position for position, index in enumerate(indices)}
        for group in self._groups:
            group.slots = [moved[index] for index in group.slots]

    def _choose(self, logits: Tensor, indices: Sequence[int]) -> Results:
        """The next token of the clips at `indices`, from logits `[R, V]`; those that end leave the batch."""
        slots = [self._slots[index] for index in indices]
        counts = [slot.count for slot in slots]
        history = torch.empty(len(slots), 0, dtype=torch.long, device=logits.device)
        if self.options.repetition_penalty != 1.0 and max(counts):
            longest = max(counts)  # rows are filled up with their own first token: penalised once all the same
            ids = [slot.made.tokens + slot.made.tokens[:1] * (longest - len(slot.made.tokens)) for slot in slots]
            history = torch.tensor(ids, device=logits.device)
        scores = process_scores(logits, history, self.text.eos_ids, self.options, counts=counts)
        generators = [slot.generator for slot in slots] if self.options.seed is not None else [None]
        ids = choose(scores, self.options, generators)
        logprobs = F.log_softmax(logits, dim=-1).gather(1, ids[:, None])[:, 0]
        done = []
        for index, slot, token, logprob in zip(indices, slots, ids.tolist(), logprobs.tolist(), strict=True):
            slot.made.tokens.append(token)
            slot.made.logprobs.append(logprob)
            slot.count += 1
            if ends_row(slot.made.tokens, self.text, self.halt_id) or slot.count == self.options.max_new_tokens:
                self._slots[index] = None
                done.append(
                    (slot.number, finished(slot.made.tokens, slot.made.logprobs, self.text, token == self.halt_id))
                )
        return done

    def _choose_beams(self, logits: Tensor, groups: Sequence[_BeamGroup]) -> Results:
        """`_choose` where each clip has several rows, which continue the beams that were chosen.

        `logits` are of all rows of the cache, or of those of `groups` where these are new.
        """
        sources = torch.arange(len(self._slots) * self.beams, device=logits.device)
        done = []
        for group in groups:
            whole = len(logits) == len(group.slots) * self.beams
            rows = self._rows(group.slots)
            chosen, ended, halted = group.running.advance(logits if whole else logits[rows], self.halt_id)
            sources[rows] = rows.view(-1, self.beams)[:, :1].add(chosen).flatten()
            for clip, index in enumerate(group.slots):
                self._slots[index].count += 1
                if ended[clip]:
                    done.append(
                        (self._slots[index].number, finished(*group.running.best(clip), self.text, halted[clip]))
                    )
                    self._slots[index] = None
            kept = [clip for clip, index in enumerate(group.slots) if self._slots[index] is not None]
            if kept and len(kept) < len(group.slots):
                group.running.keep(kept)
            group.slots = [group.slots[clip] for clip in kept]
        self._groups = [group for group in self._groups if group.slots]
        if self._groups:  # beams of a clip have equal keys up to the end of its prompt
            self._cache.reorder(sources, min(self._slots[index].width for index in self._active))
        return done

    def halt(self) -> Results:
        """End every clip where it is; with beams, the running ones then count as finished."""
        done = []
        for slot in (slot for slot in self._slots if slot is not None and self.beams == 1):
            done.append((slot.number, finished(slot.made.tokens, slot.made.logprobs, self.text, True)))
        for group in self._groups:
            group.running.close(torch.ones(len(group.slots), dtype=torch.bool, device=self._device))
            for clip, index in enumerate(group.slots):
                done.append((self._slots[index].number, finished(*group.running.best(clip), self.text, True)))
        self._slots, self._groups, self._cache = [], [], None
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

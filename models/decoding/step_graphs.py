"""Prefill and decode steps captured in CUDA graphs: one launch in place of one for each of their kernels.

`LanguageModel` switches it on for itself, on CUDA and in evaluation (`model.cuda_graphs`). A graph replays kernels on
fixed memory: so keys and values lie in memory that is kept from one generation to the next, a step attends to a
multiple of `SPAN_STEP` slots and a prompt is padded to a multiple of `PROMPT_STEP` tokens, masked. Neither changes what
a row gives: masks and positions are told for each row.
"""

import weakref
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from models.decoding.kv_cache import Beginning, KeyValueCache
from models.decoding.steps import run_prompt, single_step
from models.language.llm import LanguageModel
from models.language.sequence import Assembled
from models.runtime.cuda_graphs import Body, Capture, CudaCapture, precision, round_up, still_works
from models.runtime.weight_watch import WeightWatch

SPAN_STEP = 64  # slots
PROMPT_STEP = 32  # tokens
PROMPT_TOKENS = 2048  # of all rows: a longer prompt keeps the device busy by itself
CAPACITY_STEP = 256  # slots
PLACES_KEPT = 2  # one for each number of rows and capacity


class StepGraphs:
    """The captured steps of one language model. A copy, as of its model, starts without any."""

    def __init__(self, capture: Capture | None = None) -> None:
        self._capture = capture or CudaCapture()
        self._places: OrderedDict[tuple, _Place] = OrderedDict()
        self._weights = WeightWatch()
        self._works = True

    def __reduce__(self) -> tuple:
        return StepGraphs, ()

    def prefill(
        self, llm: LanguageModel, assembled: Assembled, cache: KeyValueCache, known: Sequence[Beginning] | None
    ) -> Tensor | None:
        """What `prefill` does and gives; None where it must be done without a graph, in the cache's own memory.

        `known` are keys and values that the rows begin with.
        """
        rows, width = assembled.mask.shape
        if not self._works or torch.is_grad_enabled() or assembled.ends is not None or rows * width > PROMPT_TOKENS:
            return None
        if self._weights.changed(llm):  # graphs read weights where they were when captured
            self._places.clear()
        cache.widen(round_up(cache.capacity, CAPACITY_STEP))
        place = self._places.get(self._key(cache))
        if place is None or place.owner is not None:
            return None  # the first step makes this cache's memory a place
        place.lend(cache)
        if known:
            cache.start(known)
        try:
            return place.prefill(llm, assembled, cache, self._capture)
        except RuntimeError as error:
            self._give_up(error)
            cache.forget()  # it goes on in memory of its own
            return None

    def step(self, llm: LanguageModel, token_ids: Tensor, cache: KeyValueCache) -> Tensor | None:
        """What `decode_step` does and gives; None, with nothing done, where it must be done without a graph."""
        if not self._works or torch.is_grad_enabled():
            return None
        place = next((place for place in self._places.values() if place.owner is cache), None)
        if place is None:
            place = self._place_for(llm, cache)
        if place is None:
            return None
        try:
            return place.step(llm, token_ids, cache, self._capture)
        except RuntimeError as error:
            self._give_up(error)
            return None

    def clear(self) -> None:
        """Give up all memory. A cache that lies there keeps what is its own."""
        self._places.clear()

    def _place_for(self, llm: LanguageModel, cache: KeyValueCache) -> "_Place | None":
        """A place with the cache's content in it; None where another cache that is in use lies there."""
        if self._weights.changed(llm):
            self._places.clear()
        key = self._key(cache)
        if key not in self._places:
            free = [other for other, place in self._places.items() if place.owner is None]
            if len(self._places) >= PLACES_KEPT:
                if not free:
                    return None
                del self._places[free[0]]
            self._places[key] = _Place(cache, capacity=key[1])
            return self._places[key]
        place = self._places[key]
        self._places.move_to_end(key)
        if place.owner is not None:
            return None
        place.adopt(cache)
        return place

    def _key(self, cache: KeyValueCache) -> tuple:
        return len(cache.lengths), round_up(cache.capacity, CAPACITY_STEP), precision(cache.lengths.device)

    def _give_up(self, error: RuntimeError) -> None:
        self._places.clear()
        self._works = still_works(error, "decoding")


class _Place:
    """Memory for a cache of some rows and slots, and the graphs that read and write it: steps for each span, prompts
    for each width."""

    def __init__(self, cache: KeyValueCache, capacity: int) -> None:
        """The cache's own memory, where it has that many slots; else memory of its own, to which the cache moves."""
        if cache.capacity != capacity:
            cache.select(torch.arange(len(cache.lengths), device=cache.lengths.device), capacity)
        cache.settle()
        self.capacity = capacity
        self.keys, self.values, self.valid = list(cache.keys), list(cache.values), cache.valid
        self.lengths = cache.lengths.clone()
        self.positions = cache.next_positions.clone()
        self.ids = torch.zeros_like(self.lengths)
        self._steps: dict[tuple, Body] = {}
        self._prompts: dict[tuple, tuple[list[Tensor], Body]] = {}
        self._prompts_met: set[tuple] = set()
        self._owner: weakref.ref[KeyValueCache] = weakref.ref(cache)

    @property
    def owner(self) -> KeyValueCache | None:
        """The cache that lies here, while anything still uses it."""
        cache = self._owner()
        return cache if cache is not None and cache.keys and cache.keys[0] is self.keys[0] else None

    def lend(self, cache: KeyValueCache) -> None:
        """Let an empty cache fill this memory."""
        self._clear()
        cache.borrow(self.keys, self.values, self.valid)
        self._owner = weakref.ref(cache)

    def adopt(self, cache: KeyValueCache) -> None:
        """Move the cache's content here; it goes on working as before."""
        self._clear()
        cache.move(self.keys, self.values, self.valid)
        self._owner = weakref.ref(cache)

    def _clear(self) -> None:
        # A masked slot weighs nothing, but nothing times NaN is NaN: of what another generation left, none may stay.
        torch._foreach_zero_([*self.keys, *self.values])
        self.valid.zero_()

    def prefill(self, llm: LanguageModel, assembled: Assembled, cache: KeyValueCache, capture: Capture) -> Tensor:
        """Run what follows the cache's beginning: logits `[B, V]`."""
        start, whole = cache.span, assembled.mask.shape[1]
        inputs = [part[:, start:] for part in (assembled.embeds, assembled.mask, assembled.positions)]
        width = min(round_up(whole - start, PROMPT_STEP), self.capacity - start)
        key = start, width, inputs[0].dtype
        if key not in self._prompts:
            if key not in self._prompts_met:  # captured where it is met again
                self._prompts_met.add(key)
                return run_prompt(llm, *inputs, cache)
            kept = [part.new_zeros(part.shape[0], width, *part.shape[2:]) for part in inputs]
            _fill(kept, inputs)
            self._prompts[key] = kept, capture(lambda: self._run_prompt(llm, kept, start), (), llm.device)
        kept, replay = self._prompts[key]
        _fill(kept, inputs)
        logits = replay().clone()
        self._hand_over(cache, whole)
        return logits

    def step(self, llm: LanguageModel, token_ids: Tensor, cache: KeyValueCache, capture: Capture) -> Tensor:
        """Append `token_ids` `[B]`: logits `[B, V]`."""
        self.ids.copy_(token_ids)
        self.lengths.copy_(cache.lengths)
        self.positions.copy_(cache.next_positions)
        before = cache.span
        span = min(round_up(before + 1, SPAN_STEP), self.capacity)
        if span not in self._steps:
            held = self.lengths.clone(), self.positions.clone()
            try:
                self._steps[span] = capture(
                    lambda: self._run_step(llm, span), (self.lengths, self.positions), llm.device
                )
            except RuntimeError:
                cache.lengths, cache.next_positions = held
                cache.attend_to(before)
                raise
        logits = self._steps[span]().clone()
        self._hand_over(cache, before + 1)
        return logits

    def _hand_over(self, cache: KeyValueCache, span: int) -> None:
        cache.lengths, cache.next_positions = self.lengths, self.positions
        cache.attend_to(span)
        cache.settle()

    def _run_step(self, llm: LanguageModel, span: int) -> Tensor:
        """A step over the first `span` slots; changes `lengths` and `positions` in place."""
        cache = self._owner()
        cache.lengths, cache.next_positions = self.lengths, self.positions
        cache.attend_to(span - 1)
        cache.settle()
        return self._noted(single_step(llm, self.ids, cache), cache)

    def _run_prompt(self, llm: LanguageModel, inputs: Sequence[Tensor], start: int) -> Tensor:
        """The prompt behind the first `start` slots; sets `lengths` and `positions` in place."""
        cache = self._owner()
        self.valid[:, start:] = False
        cache.lengths = torch.full_like(self.lengths, start)
        cache.attend_to(start)
        cache.settle(level=True)
        return self._noted(run_prompt(llm, *inputs, cache), cache)

    def _noted(self, logits: Tensor, cache: KeyValueCache) -> Tensor:
        self.lengths.copy_(cache.lengths)
        self.positions.copy_(cache.next_positions)
        return logits


def _fill(kept: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """Copy `given` `[B, L, …]` to the first L columns of tensors that are as wide or wider, zeros behind."""
    for own, part in zip(kept, given, strict=True):
        own[:, : part.shape[1]] = part
        own[:, part.shape[1] :] = 0

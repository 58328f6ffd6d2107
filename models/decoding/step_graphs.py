"""Prefill and decode steps captured in CUDA graphs: one launch instead of one for each of their kernels.

`DecodeEngine` uses them on CUDA, in evaluation (`model.cuda_graphs`). A graph replays kernels on fixed memory: so keys
and values are kept in the same memory from one generation to the next, a step attends to a multiple of `SPAN_STEP`
slots, and a prompt is padded to a multiple of `PROMPT_STEP` tokens, masked. Neither changes the result of a row: it has
its own mask and positions.
"""

import weakref
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from models.decoding.kv_cache import Beginning, KeyValueCache
from models.decoding.steps import decode_step, run_prompt
from models.language.llm import LanguageModel
from models.language.sequence import Assembled
from models.runtime.cuda_graphs import Body, Capture, CudaCapture, precision, round_up, still_works
from models.runtime.weight_watch import WeightWatch

SPAN_STEP = 64  # slots
PROMPT_STEP = 32  # tokens
PROMPT_TOKENS = 2048  # of all rows: a longer prompt keeps the device busy by itself
CAPACITY_STEP = 256  # slots
BUFFERS_KEPT = 2  # one for each number of rows and capacity


class StepGraphs:
    """The captured steps of one language model. Copies start empty."""

    def __init__(self, capture: Capture | None = None) -> None:
        self._capture = capture or CudaCapture()
        self._buffers: OrderedDict[tuple, GraphBuffers] = OrderedDict()
        self._weights = WeightWatch()
        self._works = True

    def __reduce__(self) -> tuple:
        return StepGraphs, ()

    def prefill(
        self, llm: LanguageModel, assembled: Assembled, cache: KeyValueCache, known: Sequence[Beginning] | None
    ) -> Tensor | None:
        """`steps.prefill` as a graph; None where it must be done without one, in the cache's own memory.

        `known` are the cached prefixes that the rows begin with.
        """
        rows, width = assembled.mask.shape
        if not self._works or torch.is_grad_enabled() or assembled.ends is not None or rows * width > PROMPT_TOKENS:
            return None
        if self._weights.changed(llm):  # graphs read weights where they were when captured
            self._buffers.clear()
        cache.widen(round_up(cache.capacity, CAPACITY_STEP))
        buffers = self._buffers.get(self._key(cache))
        if buffers is None or buffers.owner is not None:
            return None  # the first step makes this cache's memory a `GraphBuffers`
        buffers.attach(cache)
        if known:
            cache.start(known)
        try:
            return buffers.prefill(llm, assembled, cache, self._capture)
        except RuntimeError as error:
            self._give_up(error)
            cache.forget()  # it continues in memory of its own
            return None

    def step(self, llm: LanguageModel, token_ids: Tensor, cache: KeyValueCache) -> Tensor | None:
        """`steps.decode_step` as a graph; None, with nothing done, where it must be done without one."""
        if not self._works or torch.is_grad_enabled():
            return None
        buffers = next((buffers for buffers in self._buffers.values() if buffers.owner is cache), None)
        if buffers is None:
            buffers = self._buffers_for(llm, cache)
        if buffers is None:
            return None
        try:
            return buffers.step(llm, token_ids, cache, self._capture)
        except RuntimeError as error:
            self._give_up(error)
            return None

    def clear(self) -> None:
        """Free all buffers; a cache that uses some keeps its own tensors."""
        self._buffers.clear()

    def _buffers_for(self, llm: LanguageModel, cache: KeyValueCache) -> "GraphBuffers | None":
        """Buffers with the cache's content in them; None where another cache that is in use has them."""
        if self._weights.changed(llm):
            self._buffers.clear()
        key = self._key(cache)
        if key not in self._buffers:
            free = [other for other, buffers in self._buffers.items() if buffers.owner is None]
            if len(self._buffers) >= BUFFERS_KEPT:
                if not free:
                    return None
                del self._buffers[free[0]]
            self._buffers[key] = GraphBuffers(cache, capacity=key[1])
            return self._buffers[key]
        buffers = self._buffers[key]
        self._buffers.move_to_end(key)
        if buffers.owner is not None:
            return None
        buffers.move_in(cache)
        return buffers

    def _key(self, cache: KeyValueCache) -> tuple:
        return len(cache.lengths), round_up(cache.capacity, CAPACITY_STEP), precision(cache.lengths.device)

    def _give_up(self, error: RuntimeError) -> None:
        self._buffers.clear()
        self._works = still_works(error, "decoding")


class GraphBuffers:
    """Memory for a cache of some rows and slots, and the graphs that read and write it: steps for each span, prompts
    for each width."""

    def __init__(self, cache: KeyValueCache, capacity: int) -> None:
        """Take the cache's own memory, where it has that many slots; else new memory, to which the cache moves."""
        if cache.capacity != capacity:
            cache.select(torch.arange(len(cache.lengths), device=cache.lengths.device), capacity)
        cache.freeze_layout()
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
        """The cache that uses these buffers, while anything still uses it."""
        cache = self._owner()
        return cache if cache is not None and cache.keys and cache.keys[0] is self.keys[0] else None

    def attach(self, cache: KeyValueCache) -> None:
        """Attach an empty cache to these buffers."""
        self._clear()
        cache.use_memory(self.keys, self.values, self.valid)
        self._owner = weakref.ref(cache)

    def move_in(self, cache: KeyValueCache) -> None:
        """Move the cache's content here; the cache works as before."""
        self._clear()
        cache.move(self.keys, self.values, self.valid)
        self._owner = weakref.ref(cache)

    def _clear(self) -> None:
        # A masked slot has weight 0, but 0 times NaN is NaN: nothing of another generation may stay.
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
        cache.freeze_layout()

    def _run_step(self, llm: LanguageModel, span: int) -> Tensor:
        """A step over the first `span` slots; changes `lengths` and `positions` in place."""
        cache = self._owner()
        cache.lengths, cache.next_positions = self.lengths, self.positions
        cache.attend_to(span - 1)
        cache.freeze_layout()
        return self._noted(decode_step(llm, self.ids, cache), cache)

    def _run_prompt(self, llm: LanguageModel, inputs: Sequence[Tensor], start: int) -> Tensor:
        """The prompt behind the first `start` slots; sets `lengths` and `positions` in place."""
        cache = self._owner()
        self.valid[:, start:] = False
        cache.lengths = torch.full_like(self.lengths, start)
        cache.attend_to(start)
        cache.freeze_layout(uniform=True)
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

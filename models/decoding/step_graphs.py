"""Prefill and decode steps captured in CUDA graphs: one launch instead of one for each of their kernels.

`DecodeEngine` uses them on CUDA and in evaluation (`model.cuda_graphs`). A graph replays kernels on fixed memory, so
keys and values are in buffers that are kept from one generation to the next, a step attends to a multiple of
`SPAN_STEP` slots, and a prompt is padded, masked, to a multiple of `PROMPT_STEP` tokens. Neither changes the result of
a row: every row has its own mask and positions.
"""

import weakref
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from models.decoding.kv_cache import KeyValueCache, Prefix
from models.decoding.steps import decode_step, prefill, run_prompt
from models.language.llm import LanguageModel
from models.language.sequence import Assembled
from models.runtime.cuda_graphs import Body, Capture, CudaCapture, precision, round_up, still_works
from models.runtime.weight_watch import WeightWatch

SPAN_STEP = 64  # slots
PROMPT_STEP = 32  # tokens
PROMPT_TOKENS = 2048  # of all rows: longer prompts keep the device busy without a graph
CAPACITY_STEP = 256  # slots
BUFFERS_KEPT = 2  # one for each number of rows and capacity


class StepGraphs:
    """The captured steps of one language model."""

    def __init__(self, capture: Capture | None = None) -> None:
        self._capture = capture or CudaCapture()
        self._buffers: OrderedDict[tuple, GraphBuffers] = OrderedDict()
        self._weights = WeightWatch()
        self._works = True

    def prefill(
        self, llm: LanguageModel, assembled: Assembled, cache: KeyValueCache, prefixes: Sequence[Prefix] | None
    ) -> Tensor | None:
        """As `steps.prefill`, for rows that start with `prefixes`; None, with the cache still empty and in its own
        memory, where no graph is used."""
        rows, width = assembled.mask.shape
        if not self._works or torch.is_grad_enabled() or assembled.ends is not None or rows * width > PROMPT_TOKENS:
            return None
        if self._weights.changed(llm):  # graphs read weights at the addresses of their capture
            self._buffers.clear()
        cache.widen(round_up(cache.capacity, CAPACITY_STEP))
        buffers = self._buffers.get(self._key(cache))
        if buffers is None or buffers.owner is not None:
            return None  # where there are none, the first step makes them of this cache's memory
        buffers.attach(cache)
        if prefixes:
            cache.start(prefixes)
        try:
            return buffers.prefill(llm, assembled, cache, self._capture)
        except RuntimeError as error:
            self._give_up(error)
            cache.forget()  # it continues in memory of its own
            return None

    def step(self, llm: LanguageModel, token_ids: Tensor, cache: KeyValueCache) -> Tensor | None:
        """As `steps.decode_step`; None, with nothing changed, where no graph is used."""
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
        """Free all buffers and graphs. A cache in use keeps its memory."""
        self._buffers.clear()

    def _buffers_for(self, llm: LanguageModel, cache: KeyValueCache) -> "GraphBuffers | None":
        """Buffers with the cache's content; None where another cache in use has them."""
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
    """Memory of a cache, of fixed rows and capacity, and the graphs that read and write it: steps for each span,
    prompts for each width."""

    def __init__(self, cache: KeyValueCache, capacity: int) -> None:
        """Takes the cache's own memory, if it has that capacity; else allocates, and the cache moves in."""
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
        """The cache that is in these buffers, while anything still uses it."""
        cache = self._owner()
        return cache if cache is not None and cache.keys and cache.keys[0] is self.keys[0] else None

    def attach(self, cache: KeyValueCache) -> None:
        """Attach an empty cache to these buffers."""
        self._clear()
        cache.use_memory(self.keys, self.values, self.valid)
        self._owner = weakref.ref(cache)

    def move_in(self, cache: KeyValueCache) -> None:
        """Copy the cache's content to these buffers, where it continues."""
        self._clear()
        cache.move(self.keys, self.values, self.valid)
        self._owner = weakref.ref(cache)

    def _clear(self) -> None:
        # A masked slot has weight zero, but zero times NaN is NaN: nothing of another generation may remain.
        torch._foreach_zero_([*self.keys, *self.values])
        self.valid.zero_()

    def prefill(self, llm: LanguageModel, assembled: Assembled, cache: KeyValueCache, capture: Capture) -> Tensor:
        """Run the prompt, except what the cache starts with: logits `[B, V]`."""
        start, whole = cache.span, assembled.mask.shape[1]
        inputs = [part[:, start:] for part in (assembled.embeds, assembled.mask, assembled.positions)]
        width = min(round_up(whole - start, PROMPT_STEP), self.capacity - start)
        key = start, width, inputs[0].dtype
        if key not in self._prompts:
            if key not in self._prompts_met:  # captured the second time
                self._prompts_met.add(key)
                return prefill(llm, assembled, cache)
            kept = [part.new_zeros(part.shape[0], width, *part.shape[2:]) for part in inputs]
            _fill(kept, inputs)
            self._prompts[key] = kept, capture(lambda: self._run_prompt(llm, kept, start), (), llm.device)
        kept, replay = self._prompts[key]
        _fill(kept, inputs)
        logits = replay().clone()
        self._update(cache, whole)
        return logits

    def step(self, llm: LanguageModel, token_ids: Tensor, cache: KeyValueCache, capture: Capture) -> Tensor:
        """Append `token_ids` `[B]`: logits `[B, V]`."""
        self.ids.copy_(token_ids)
        self.lengths.copy_(cache.lengths)
        self.positions.copy_(cache.next_positions)
        before = cache.span
        span = min(round_up(before + 1, SPAN_STEP), self.capacity)
        if span not in self._steps:
            lengths, positions = self.lengths.clone(), self.positions.clone()
            try:
                self._steps[span] = capture(
                    lambda: self._run_step(llm, span), (self.lengths, self.positions), llm.device
                )
            except RuntimeError:
                cache.lengths, cache.next_positions = lengths, positions
                cache.attend_to(before)
                raise
        logits = self._steps[span]().clone()
        self._update(cache, before + 1)
        return logits

    def _update(self, cache: KeyValueCache, span: int) -> None:
        """Give the cache the state after a replay."""
        cache.lengths, cache.next_positions = self.lengths, self.positions
        cache.attend_to(span)
        cache.freeze_layout()

    def _run_step(self, llm: LanguageModel, span: int) -> Tensor:
        """A step over the first `span` slots; changes `lengths` and `positions` in place."""
        cache = self._owner()
        self._update(cache, span - 1)
        return self._write_back(decode_step(llm, self.ids, cache), cache)

    def _run_prompt(self, llm: LanguageModel, inputs: Sequence[Tensor], start: int) -> Tensor:
        """The prompt after the first `start` slots; sets `lengths` and `positions` in place."""
        cache = self._owner()
        self.valid[:, start:] = False
        cache.lengths = torch.full_like(self.lengths, start)
        cache.attend_to(start)
        cache.freeze_layout(uniform=True)
        return self._write_back(run_prompt(llm, *inputs, cache), cache)

    def _write_back(self, logits: Tensor, cache: KeyValueCache) -> Tensor:
        self.lengths.copy_(cache.lengths)
        self.positions.copy_(cache.next_positions)
        return logits


def _fill(kept: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """Copy `given` `[B, L, …]` to the first L columns of tensors that are as wide or wider, and zeros to the rest."""
    for own, part in zip(kept, given, strict=True):
        own[:, : part.shape[1]] = part
        own[:, part.shape[1] :] = 0

"""Decode steps captured in CUDA graphs: one launch a step in place of one for each of its kernels.

Off unless switched on, for a language model on a CUDA device:

    step_graphs.enable(model.llm)

A graph replays kernels on fixed memory. So keys and values move, once after the prefill, to memory that is kept from
one generation to the next, and a step attends to a multiple of `SPAN_STEP` slots, those without content masked. Where
a step cannot be captured (a back-end that waits for the device), a warning says so and steps run one by one.
"""

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.kv_cache import KeyValueCache
from models.llm import LanguageModel
from models.steps import single_step
from models.weight_watch import WeightWatch

SPAN_STEP = 64  # slots
CAPACITY_STEP = 256  # slots
PLACES_KEPT = 2  # one for each number of rows and capacity

logger = logging.getLogger(__name__)

Body = Callable[[], Tensor]
Capture = Callable[[Body, Sequence[Tensor]], Body]
"""Takes a step and the tensors that it changes; gives a function that runs it, and leaves these tensors as they are."""


def enable(llm: LanguageModel) -> None:
    """Capture this model's decode steps from now on.

    Raises:
        ValueError: the model is not on a CUDA device.
    """
    if llm.device.type != "cuda":
        raise ValueError(f"decode steps are captured on CUDA devices only; the language model is on {llm.device}.")
    llm.graphs = StepGraphs()


def disable(llm: LanguageModel) -> None:
    """Run decode steps kernel by kernel again, and give back the memory of the graphs."""
    llm.graphs = None


class StepGraphs:
    """The captured steps of one language model. A copy, as of its model, starts without any."""

    def __init__(self, capture: Capture | None = None) -> None:
        self._capture = capture or _CudaCapture()
        self._places: OrderedDict[tuple, _Place] = OrderedDict()
        self._weights = WeightWatch()
        self._works = True

    def __reduce__(self) -> tuple:
        return StepGraphs, ()

    def step(self, llm: LanguageModel, token_ids: Tensor, cache: KeyValueCache) -> Tensor | None:
        """What `decode_step` does and gives; None, with nothing done, where it must be done without a graph."""
        if not self._works or torch.is_grad_enabled():
            return None
        place = next((place for place in self._places.values() if place.holds(cache)), None)
        if place is None:
            place = self._place_for(llm, cache)
        if place is None:
            return None
        try:
            return place.step(llm, token_ids, cache, self._capture)
        except RuntimeError as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            logger.warning("decode steps run without CUDA graphs: %s", str(error).splitlines()[0])
            self._works = False
            self._places.clear()
            return None

    def _place_for(self, llm: LanguageModel, cache: KeyValueCache) -> "_Place | None":
        """Move the cache to memory that graphs know; None where another cache that is in use lies there."""
        if self._weights.changed(llm):  # graphs read weights where they were when captured
            self._places.clear()
        capacity = -(-cache.capacity // CAPACITY_STEP) * CAPACITY_STEP
        key = (len(cache.lengths), capacity, cache.keys[0].dtype)
        if key not in self._places:
            free = [other for other, place in self._places.items() if place.owner is None]
            if len(self._places) >= PLACES_KEPT:
                if not free:
                    return None
                del self._places[free[0]]
            self._places[key] = _Place(cache, capacity)
        place = self._places[key]
        self._places.move_to_end(key)
        if place.owner is not None:
            return None
        place.adopt(cache)
        return place


class _Place:
    """Memory for a cache of some rows and slots, and the graphs that read and write it, one for each span."""

    def __init__(self, cache: KeyValueCache, capacity: int) -> None:
        rows, device = len(cache.lengths), cache.lengths.device

        def room(like: Tensor) -> Tensor:
            return like.new_zeros(rows, like.shape[1], capacity, like.shape[3])

        self.capacity = capacity
        self.keys = [room(layer) for layer in cache.keys]
        self.values = [room(layer) for layer in cache.values]
        self.valid = torch.zeros(rows, capacity, dtype=torch.bool, device=device)  # [B, S]
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.positions = torch.zeros_like(self.lengths)
        self.ids = torch.zeros_like(self.lengths)
        self._steps: dict[tuple, Body] = {}
        self._owner: weakref.ref[KeyValueCache] | None = None

    @property
    def owner(self) -> KeyValueCache | None:
        """The cache that lies here, while anything still uses it."""
        cache = self._owner() if self._owner else None
        return cache if cache is not None and cache.keys and cache.keys[0] is self.keys[0] else None

    def holds(self, cache: KeyValueCache) -> bool:
        return self.owner is cache

    def adopt(self, cache: KeyValueCache) -> None:
        """Move the cache's content here; it goes on working as before."""
        cache.move(self.keys, self.values, self.valid)
        self._owner = weakref.ref(cache)

    def step(self, llm: LanguageModel, token_ids: Tensor, cache: KeyValueCache, capture: Capture) -> Tensor:
        """Append `token_ids` `[B]`: logits `[B, V]`."""
        self.ids.copy_(token_ids)
        self.lengths.copy_(cache.lengths)
        self.positions.copy_(cache.next_positions)
        before = cache.span
        span = min(-(-(before + 1) // SPAN_STEP) * SPAN_STEP, self.capacity)
        kind = llm.device.type
        key = (span, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None)
        if key not in self._steps:
            held = self.lengths.clone(), self.positions.clone()
            try:
                self._steps[key] = capture(lambda: self._run(llm, span), (self.lengths, self.positions))
            except RuntimeError:
                cache.lengths, cache.next_positions = held
                cache.span = before
                raise
        logits = self._steps[key]().clone()  # the next step writes over them
        cache.lengths, cache.next_positions, cache.span = self.lengths, self.positions, before + 1
        return logits

    def _run(self, llm: LanguageModel, span: int) -> Tensor:
        """A step over the first `span` slots; changes `lengths` and `positions` in place."""
        cache = self._owner()
        cache.lengths, cache.next_positions = self.lengths, self.positions
        cache.attend_to(span - 1)
        logits = single_step(llm, self.ids, cache)
        self.lengths.copy_(cache.lengths)
        self.positions.copy_(cache.next_positions)
        return logits


class _CudaCapture:
    """Captures steps as CUDA graphs, which share the memory of what they compute on the way."""

    def __init__(self) -> None:
        self._pool = None

    def __call__(self, body: Body, changed: Sequence[Tensor]) -> Body:
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        device = changed[0].device
        with torch.cuda.device(device):
            held = [tensor.clone() for tensor in changed]
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):  # kernels are chosen and compiled before, not within, the capture
                for _ in range(2):
                    body()
                    _restore(changed, held)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                logits = body()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay


def _restore(tensors: Sequence[Tensor], held: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, held, strict=True):
        tensor.copy_(value)

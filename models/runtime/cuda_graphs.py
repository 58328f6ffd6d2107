"""CUDA graphs: the kernels of a computation, recorded once and launched together, for fixed shapes in fixed memory.

Captures are checked: a graph whose first replay gives other values than its kernels launched one by one is not used.
Where a computation cannot be captured (a back-end synchronises with the device), it runs without, with a warning.
"""

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from models.runtime.cuda_streams import side_stream
from models.runtime.weight_watch import WeightWatch

CAPTURING = -1  # index of the CUDA stream for captures
KEPT = 8  # graphs of one computation
PATIENCE = 64  # runs since its last replay after which another graph may replace a graph
TOLERANCE = 0.02  # of a replay, relative to the largest value: fp16 sums in another order

logger = logging.getLogger(__name__)

Body = Callable[[], Tensor]
Capture = Callable[[Body, Sequence[Tensor], torch.device], Body]
"""Takes a computation, the tensors that it changes, and its device; returns a function that runs it. These tensors are
unchanged afterwards. Raises RuntimeError where a capture fails."""


class CudaCapture:
    """Captures computations as CUDA graphs, which share the memory of their intermediate results.

    So no two of them may run at the same time, and a result must be copied before the next one runs.
    """

    def __init__(self) -> None:
        self._pool: tuple | None = None
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def __call__(self, body: Body, changed: Sequence[Tensor], device: torch.device) -> Body:
        with torch.cuda.device(device):
            return self._captured(body, changed)

    def _captured(self, body: Body, changed: Sequence[Tensor]) -> Body:
        here = torch.cuda.current_stream()
        originals = [tensor.clone() for tensor in changed]
        # Always the same CUDA stream, also for the capture: cuBLAS keeps a workspace of up to 32 MiB for each stream.
        aside = side_stream(here.device, CAPTURING)
        aside.wait_stream(here)
        with torch.cuda.stream(aside), _casts_not_kept():  # kernels are chosen and compiled before the capture
            for _ in range(2):
                expected = body()
                _restore(changed, originals)
        here.wait_stream(aside)
        if not len(self._graphs):  # once all its graphs are deleted, a pool cannot be used again
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads (a loader that pins memory) may use the device meanwhile.
        capture = torch.cuda.graph(graph, pool=self._pool, stream=aside, capture_error_mode="thread_local")
        # After an error torch's context leaves its own CUDA stream current; the outer context restores this one.
        with torch.cuda.stream(here), capture, _casts_not_kept():
            result = body()
        self._graphs.add(graph)
        graph.replay()
        if not alike(result, expected):
            raise RuntimeError("a replayed graph gives other values than its kernels one by one")
        _restore(changed, originals)

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


class Replays:
    """A module's computation, captured for each shape of its inputs that occurs a second time.

    With `KEPT` graphs, a new one replaces only one that is out of use; otherwise alternating shapes would be captured
    again and again, at the cost of several runs each. Copies start empty.
    """

    def __init__(self, capture: Capture | None = None) -> None:
        self._capture = capture or CudaCapture()
        # Inputs, replay, and the run that last used it; the least recently used first.
        self._graphs: OrderedDict[tuple, tuple[list[Tensor], Body, int]] = OrderedDict()
        self._seen: set[tuple] = set()
        self._runs = 0
        self._weights = WeightWatch()
        self._works = True

    def __len__(self) -> int:
        return len(self._graphs)

    def __reduce__(self) -> tuple:
        return Replays, ()

    def run(self, module: nn.Module, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor | None:
        """`function(*inputs)`, always the same computation of `module`; None where the caller must compute it."""
        if not self._works or torch.is_grad_enabled():
            return None
        if self._weights.changed(module):  # graphs read weights at their addresses during the capture
            self.clear()
        key = precision(inputs[0].device), *((tensor.shape, tensor.dtype) for tensor in inputs)
        self._runs += 1
        if key not in self._graphs:
            if key not in self._seen or not self._has_room():
                self._seen.add(key)
                return None
            kept = [tensor.clone() for tensor in inputs]
            try:
                self._graphs[key] = kept, self._capture(lambda: function(*kept), (), kept[0].device), self._runs
            except RuntimeError as error:
                self.clear()
                self._works = still_works(error, type(module).__name__)
                return None
            if len(self._graphs) > KEPT:
                self._graphs.popitem(last=False)
        kept, replay, _ = self._graphs[key]
        self._graphs[key] = kept, replay, self._runs
        self._graphs.move_to_end(key)
        for own, given in zip(kept, inputs, strict=True):
            own.copy_(given)
        return replay().clone()

    def _has_room(self) -> bool:
        return len(self._graphs) < KEPT or self._runs - next(iter(self._graphs.values()))[2] > PATIENCE

    def clear(self) -> None:
        self._graphs.clear()
        self._seen.clear()


def still_works(error: RuntimeError, what: str) -> bool:
    """Re-raise an out-of-memory error; after any other, warn that `what` runs without graphs, and return False."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        raise error
    logger.warning("%s: runs without CUDA graphs: %s", what, str(error).splitlines()[0])
    return False


def precision(device: torch.device) -> torch.dtype | None:
    """Autocast's type on this device; None where it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def round_up(count: int, step: int) -> int:
    return -(-count // step) * step


def alike(got: Tensor, expected: Tensor) -> bool:
    """Equal up to rounding; NaNs must match."""
    scale = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max()) if expected.numel() else 0.0
    return torch.allclose(got, expected, rtol=0.0, atol=TOLERANCE * scale, equal_nan=True)


@contextmanager
def _casts_not_kept() -> Iterator[None]:
    """Autocast caches casts of trained weights until its context ends; a graph would read them after that."""
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)


def _restore(tensors: Sequence[Tensor], originals: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, originals, strict=True):
        tensor.copy_(value)

"""CUDA graphs: the kernels of a computation recorded once and launched together, for fixed shapes in fixed memory.

What is captured is checked: a graph whose first replay gives other values than its kernels one by one is not used.
Where a computation cannot be captured (a back-end that waits for the device), a warning says so and it runs as it is.
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

CAPTURING = -1  # number of the stream that captures
KEPT = 8  # graphs of one computation
PATIENCE = 64  # runs since its last replay after which a graph makes room for another
TOLERANCE = 0.02  # between kernels one by one and replayed, relative to the largest value: fp16 sums in another order

logger = logging.getLogger(__name__)

Body = Callable[[], Tensor]
Capture = Callable[[Body, Sequence[Tensor], torch.device], Body]
"""Takes a computation, the tensors that it changes, and its device; gives a function that runs it, and leaves these
tensors as they are. Raises RuntimeError where it cannot."""


class CudaCapture:
    """Captures computations as CUDA graphs, which share the memory of what they compute on the way.

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
        held = [tensor.clone() for tensor in changed]
        # Always the same stream, also for the capture: cuBLAS keeps a workspace of up to 32 MiB for each one it meets.
        aside = side_stream(here.device, CAPTURING)
        aside.wait_stream(here)
        with torch.cuda.stream(aside), _casts_not_kept():  # kernels are chosen and compiled before the capture
            for _ in range(2):
                expected = body()
                _restore(changed, held)
        here.wait_stream(aside)
        if not len(self._graphs):  # the memory of graphs that are all gone cannot be used for another
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads (a loader that pins memory) may go on talking to the device.
        capture = torch.cuda.graph(graph, pool=self._pool, stream=aside, capture_error_mode="thread_local")
        # Left by an error, torch's context keeps its own stream the current one; the outer one brings this one back.
        with torch.cuda.stream(here), capture, _casts_not_kept():
            result = body()
        self._graphs.add(graph)
        graph.replay()
        if not alike(result, expected):
            raise RuntimeError("a replayed graph gives other values than its kernels one by one")
        _restore(changed, held)

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


class Replays:
    """A module's computation, captured for each shape of its inputs that is met a second time.

    Where there are `KEPT` graphs, a new one takes the place of one that is out of use; else it would pay for capturing
    shapes in turn, which costs several runs each. A copy, as of its module, starts without any.
    """

    def __init__(self, capture: Capture | None = None) -> None:
        self._capture = capture or CudaCapture()
        # Inputs, replay and the run that used it last; the one out of use longest first.
        self._graphs: OrderedDict[tuple, tuple[list[Tensor], Body, int]] = OrderedDict()
        self._met: set[tuple] = set()
        self._runs = 0
        self._weights = WeightWatch()
        self._works = True

    def __len__(self) -> int:
        return len(self._graphs)

    def __reduce__(self) -> tuple:
        return Replays, ()

    def run(self, module: nn.Module, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor | None:
        """`function(*inputs)`, always the same computation of `module`; None where it must be called instead."""
        if not self._works or torch.is_grad_enabled():
            return None
        if self._weights.changed(module):  # graphs read weights where they were when captured
            self.clear()
        key = precision(inputs[0].device), *((tensor.shape, tensor.dtype) for tensor in inputs)
        self._runs += 1
        if key not in self._graphs:
            if key not in self._met or not self._has_room():
                self._met.add(key)
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
        self._met.clear()


def still_works(error: RuntimeError, what: str) -> bool:
    """Raises a lack of memory again; of any other error, says that `what` runs without graphs: False."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        raise error
    logger.warning("%s: runs without CUDA graphs: %s", what, str(error).splitlines()[0])
    return False


def precision(device: torch.device) -> torch.dtype | None:
    """The type that autocast computes in on this device; None where it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def round_up(count: int, step: int) -> int:
    return -(-count // step) * step


def alike(got: Tensor, expected: Tensor) -> bool:
    """Whether two results are the same but for rounding; what is no number must be so in both."""
    scale = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max()) if expected.numel() else 0.0
    return torch.allclose(got, expected, rtol=0.0, atol=TOLERANCE * scale, equal_nan=True)


@contextmanager
def _casts_not_kept() -> Iterator[None]:
    """Autocast keeps casts of trained weights only as long as its context; a graph would read them ever after."""
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)


def _restore(tensors: Sequence[Tensor], held: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, held, strict=True):
        tensor.copy_(value)

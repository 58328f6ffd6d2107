"""A simulated CUDA device: tensors that report it as their device, and are computed on the CPU.

    with pretend_cuda() as device:
        model.to("cuda")
        ...
        assert device.replays > 0

It checks what fails on a real device but not on a CPU:

- all tensor arguments of a function are on one device, except for 0-dimensional tensors and indices;
- during a graph's capture nothing is computed, and nothing may go between host and device: no copy, no `item`, no mask
  as an index. A replay repeats the recorded operations on the memory of the capture.

It does not check: the order of CUDA streams (operations run at once), reuse of a graph pool's memory, the inside of
PyTorch's functions, autocast, other orders of summation.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from models.runtime.cuda_streams import side_stream

CUDA = torch.device("cuda:0")
CPU = torch.device("cpu")

MAKING = (torch.tensor, torch.as_tensor, torch.asarray)
COPYING = (Tensor.copy_, Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.type_as, Tensor.numpy)
INDEXING = (Tensor.__getitem__, Tensor.__setitem__)
ASKING = (
    Tensor.item,
    Tensor.tolist,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.__contains__,
    Tensor.nonzero,
    Tensor.masked_select,
    Tensor.equal,
    Tensor.allclose,
    Tensor.unique,
    torch.nonzero,
    torch.masked_select,
    torch.equal,
    torch.allclose,
    torch.unique,
)
IN_PLACE = {f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "and", "or", "xor", "pow")} | {"__setitem__"}


class CudaTensor(Tensor):
    """A tensor on the device, to which only `PretendedCuda` admits."""


class PretendedCuda(TorchFunctionMode):
    """The device: its running operations, the current recording, and counts of events."""

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[tuple[Callable, tuple, dict, Any]] | None = None
        """Functions, what they were given and what they gave, since a capture began."""
        self.captures = self.replays = 0
        self.waits: Counter[str] = Counter()
        """Function -> how often the host waited for the device, or copied to it."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = any(isinstance(tensor, CudaTensor) for tensor in tensors)
        target = _target(func, args, kwargs, CUDA if here else CPU)
        if func is Tensor.pin_memory:
            return args[0]
        if not here and target == CPU:
            return func(*args, **kwargs)
        known = {
            torch._has_compatible_shallow_copy_type: False,  # so that `Module.to` takes a new parameter
            Tensor.device.__get__: CUDA,
            Tensor.is_cuda.__get__: True,
            Tensor.is_cpu.__get__: False,
            Tensor.is_pinned: False,
            Tensor.get_device: 0,
        }
        if func in known:
            return known[func]
        self._check(func, args, tensors, target)
        args, kwargs = tree_map(_on_the_cpu, (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            if _changes_its_argument(func, kwargs):
                if self.tape is None:
                    return func(*args, **kwargs)
                self.tape.append((func, args, kwargs, None))  # a capture computes nothing
                return args[0]
            result = func(*args, **kwargs)
            if target == CPU:
                return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, result)
            if func in COPYING and not isinstance(args[0], CudaTensor):
                result = result.clone() if result is args[0] else result
            if self.tape is not None and any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
                self.tape.append((func, args, kwargs, result))
            return tree_map(_on_the_device, result)

    def _check(self, func: Any, args: tuple, tensors: list[Tensor], target: torch.device) -> None:
        strangers = [tensor for tensor in tensors if not isinstance(tensor, CudaTensor)]
        if _name(func).endswith("_like") or _name(func).startswith("new_"):
            return  # of what they are given they take the shape
        if func in COPYING:
            if strangers or target == CPU:
                self.wait(func)
            return
        if func in ASKING or func in MAKING or (func is torch.where and len(args) == 1):
            self.wait(func)
        if func in INDEXING:
            indices = [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor)]
            if any(index.dtype == torch.bool or not isinstance(index, CudaTensor) for index in indices):
                self.wait(func)
            if func is Tensor.__setitem__ and isinstance(args[0], CudaTensor):
                if any(tensor is args[2] and tensor.dim() for tensor in strangers):
                    self.wait(func)
                return
            strangers = [tensor for tensor in strangers if all(tensor is not index for index in indices)]
        mixed = [list(tensor.shape) for tensor in strangers if tensor.dim()]
        if mixed:
            raise RuntimeError(f"{_name(func)}: all tensors must be on one device; {mixed} are on the CPU")

    def wait(self, func: Any) -> None:
        """Raises RuntimeError in a capture."""
        if self.tape is not None:
            raise RuntimeError(f"{_name(func)}: operation not permitted when stream is capturing")
        self.waits[_name(func)] += 1

    def replay(self, tape: list[tuple[Callable, tuple, dict, Any]]) -> None:
        self.replays += 1
        with torch._C.DisableTorchFunction(), torch.no_grad():
            for func, args, kwargs, recorded in tape:
                made = func(*args, **kwargs)
                if recorded is None:
                    continue
                for old, new in zip(tree_leaves(recorded), tree_leaves(made), strict=True):
                    if isinstance(old, Tensor) and old.numel() and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def _target(func: Any, args: tuple, kwargs: dict, default: torch.device) -> torch.device:
    """The device that a function gives its result on."""
    if func in (Tensor.cpu, Tensor.numpy):
        return CPU
    if func is Tensor.cuda:
        return CUDA
    named = kwargs.get("device")
    if func is Tensor.to and len(args) > 1 and not isinstance(args[1], torch.dtype):
        named = args[1]
    if func is Tensor.copy_:
        named = args[0]
    if isinstance(named, Tensor):
        return CUDA if isinstance(named, CudaTensor) else CPU
    if named is None:
        return default
    return CUDA if torch.device(named).type == "cuda" else CPU


def _on_the_cpu(leaf: Any) -> Any:
    if isinstance(leaf, torch.device) or (isinstance(leaf, str) and leaf.startswith("cuda")):
        return CPU
    return leaf


def _on_the_device(leaf: Any) -> Any:
    return leaf.as_subclass(CudaTensor) if isinstance(leaf, Tensor) and not isinstance(leaf, CudaTensor) else leaf


def _changes_its_argument(func: Any, kwargs: dict) -> bool:
    name = _name(func)
    return name in IN_PLACE or (name.endswith("_") and not name.endswith("__")) or bool(kwargs.get("inplace"))


def _name(func: Any) -> str:
    return getattr(func, "__name__", str(func))


class _Graph:
    """`torch.cuda.CUDAGraph`."""

    device: PretendedCuda

    def __init__(self) -> None:
        self.tape: list = []

    def replay(self) -> None:
        _Graph.device.replay(self.tape)


class _Stream:
    """`torch.cuda.Stream`, whose work is done at once."""

    def __init__(self, device: Any = None) -> None:
        self.device = CUDA

    def wait_stream(self, other: _Stream) -> None: ...

    def synchronize(self) -> None: ...


@contextlib.contextmanager
def pretend_cuda(capability: tuple[int, int] = (7, 0)) -> Iterator[PretendedCuda]:
    """Within the context, `cuda` can be used as a device; its tensors must not outlive the context."""
    device = _Graph.device = PretendedCuda()
    here = _Stream()
    major, minor = capability
    properties = SimpleNamespace(
        name="a pretended device", major=major, minor=minor, total_memory=1 << 34, multi_processor_count=1
    )
    generator = torch.Generator

    @contextlib.contextmanager
    def anything(*_: Any, **__: Any) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def capturing(graph: _Graph, *_: Any, **__: Any) -> Iterator[None]:
        assert device.tape is None, "a capture within a capture"
        device.captures += 1
        device.tape = graph.tape
        try:
            yield
        finally:
            device.tape = None

    faces = {
        "is_available": lambda: True,
        "init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_capability": lambda device=None: capability,
        "get_device_name": lambda device=None: "a pretended device",
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "get_rng_state_all": lambda: [torch.zeros(16, dtype=torch.uint8)],
        "set_rng_state": lambda state, device=None: None,
        "set_rng_state_all": lambda states: None,
        "synchronize": lambda device_=None: device.wait(torch.cuda.synchronize),
        "get_device_properties": lambda device=None: properties,
        "mem_get_info": lambda device=None: (properties.total_memory, properties.total_memory),
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device=None: None,
        "memory_reserved": lambda device=None: 1 << 20,
        "memory_allocated": lambda device=None: 1 << 20,
        "memory_snapshot": list,
        "max_memory_allocated": lambda device=None: 1 << 21,
        "current_stream": lambda device=None: here,
        "Stream": _Stream,
        "stream": anything,
        "device": anything,
        "graph": capturing,
        "graph_pool_handle": lambda: (0, 1),
        "CUDAGraph": _Graph,
    }
    with contextlib.ExitStack() as stack:
        for name, face in faces.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, face))
        stack.enter_context(mock.patch.object(Tensor, "record_stream", lambda tensor, stream: None))
        stack.enter_context(mock.patch.object(torch, "Generator", lambda device=None: generator()))
        # transformers' threads would not see this device.
        stack.enter_context(mock.patch.dict(os.environ, {"HF_DEACTIVATE_ASYNC_LOAD": "1"}))
        side_stream.cache_clear()
        stack.callback(side_stream.cache_clear)  # no stream of this device may be taken for a real one's
        stack.enter_context(device)
        yield device

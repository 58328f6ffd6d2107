"""Roofline of the device: its peak rates, measured in the same run, and how near a model comes to them.

A decode step must read every weight of the language model once, and the keys and values so far; it cannot be faster
than these bytes over the memory's bandwidth. Encoders, connector and prefill must do their multiplications; they cannot
be faster than these over the peak rate of matrix products (or than reading their weights once). Launch floor of a step:
its kernels times the time of an empty one. Features, assembly and what lies between the parts have no limit here.

Bandwidth is the best of repeated sums over a buffer larger than caches, the peak matrix rate that of square products in
the type of the weights, by the faster library where the program uses two. FLOPs are counted by PyTorch while the
model's own code runs, in the spans that are timed (models/runtime/spans.py): two for a multiplication and addition.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from models.decoding.kv_cache import KeyValueCache
from models.quantization import int8
from models.runtime import onednn_linear
from models.runtime.spans import measured
from models.salmonn import SALMONN
from models.sizes import part_sizes
from support.units import dtype_name

LEAST_ROUNDS = 3
RUNS_A_ROUND = {"cpu": 1, "cuda": 10}  # launching and waiting take a GPU as long as a tenth of a run
CALIBRATION_S = 0.3
BUFFER_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}
MATRIX_SIDE = {"cpu": 1024, "cuda": 4096}
EMPTY_KERNELS = 1000


@dataclass(frozen=True, kw_only=True)
class PeakRates:
    """Peak rates of a device, as measured."""

    bandwidth_bytes_per_s: float
    """Of reads."""
    matrix_flops_per_s: dict[str, float]
    """Type -> rate of products of square matrices."""
    empty_kernel_s: float | None
    """Time a kernel that does nothing takes in a captured graph; None on the CPU, which launches none."""


@dataclass(frozen=True, kw_only=True)
class RooflineLimit:
    """One measured time and its roofline limit."""

    measured_s: float
    bytes: int
    """That must be read."""
    flops: int | None
    """That must be done; None where they are not counted."""
    limit_s: float
    ratio: float
    """Measured over limit: 1 is the best that the device allows."""
    launch_floor_s: float | None = None
    """Kernels of a step times the time of an empty one; CUDA only."""

    @classmethod
    def of(
        cls,
        measured_s: float,
        peak: PeakRates,
        *,
        read: int,
        flops: int | None = None,
        dtype: torch.dtype | None = None,
        kernels: int | None = None,
    ) -> RooflineLimit:
        reading_s = read / peak.bandwidth_bytes_per_s
        computing_s = 0.0
        if flops is not None and dtype is not None:
            computing_s = flops / peak.matrix_flops_per_s[dtype_name(dtype)]
        limit_s = max(reading_s, computing_s)
        floor_s = None if kernels is None or peak.empty_kernel_s is None else kernels * peak.empty_kernel_s
        return cls(
            measured_s=measured_s,
            bytes=read,
            flops=flops,
            limit_s=limit_s,
            ratio=measured_s / limit_s,
            launch_floor_s=floor_s,
        )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _best_s(run: Callable[[], object], device: torch.device, budget_s: float) -> float:
    """Of one run, in the quickest of repeated rounds, after a run that does not count."""
    run()
    _wait(device)
    runs = RUNS_A_ROUND[device.type]
    best, rounds, begin = float("inf"), 0, time.perf_counter()
    while rounds < LEAST_ROUNDS or time.perf_counter() - begin < budget_s:
        start = time.perf_counter()
        for _ in range(runs):
            run()
        _wait(device)
        best = min(best, (time.perf_counter() - start) / runs)
        rounds += 1
    return best


@torch.no_grad()
def measure_peak_rates(
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    *,
    budget_s: float = CALIBRATION_S,
    buffer_bytes: int | None = None,
    matrix_side: int | None = None,
) -> PeakRates:
    """Calibrate: about `budget_s` seconds for the bandwidth and for each type's matrix products.

    A buffer or matrices smaller than the defaults measure caches and calls instead of the device: for tests.
    """
    buffer = torch.ones((buffer_bytes or BUFFER_BYTES[device.type]) // 4, device=device)
    bandwidth = buffer.nbytes / _best_s(buffer.sum, device, budget_s)
    del buffer
    side = matrix_side or MATRIX_SIDE[device.type]
    rates = {}
    for dtype in dict.fromkeys(dtypes):
        left, right = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
        multiply = torch._int_mm if dtype == torch.int8 else torch.mm
        products = [lambda a=left, b=right, multiply=multiply: multiply(a, b)]
        if device.type == "cpu" and dtype == torch.float32 and onednn_linear.pays():
            products.append(lambda a=left, b=right: onednn_linear.multiply(a, b))
        rates[dtype_name(dtype)] = 2 * side**3 / min(_best_s(product, device, budget_s) for product in products)
    empty_s = _empty_kernel_s(device, budget_s) if device.type == "cuda" else None
    return PeakRates(bandwidth_bytes_per_s=bandwidth, matrix_flops_per_s=rates, empty_kernel_s=empty_s)


def _empty_kernel_s(device: torch.device, budget_s: float) -> float:
    """A kernel on one number, one of many in a captured graph (an addition: filling with zeros would be no kernel)."""
    number = torch.zeros(1, device=device)
    number.add_(1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(EMPTY_KERNELS):
            number.add_(1)
    return _best_s(graph.replay, device, budget_s) / EMPTY_KERNELS


def decode_bytes(model: SALMONN, context: int) -> int:
    """Bytes that a decode step of one row reads: weights, LoRA unless it is merged, `context` tokens' keys and values.

    An input embedding that is not the head as well is looked up, not read.
    """
    merged = any(layer.merged for layer in model.llm.lora_layers())
    sizes = {row.part: row.bytes for row in part_sizes(model)}
    weights = sizes["llm"] + (0 if merged else sizes.get("lora", 0))
    embedding = model.llm.model.get_input_embeddings().weight
    if model.llm.model.get_output_embeddings().weight is not embedding:
        weights -= embedding.nbytes
    return weights + context * cache_bytes_per_token(model)


def cache_bytes_per_token(model: SALMONN) -> int:
    config = model.llm.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * width * model.llm.dtype.itemsize


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> int:
    """Of queries `[B, heads, L, D]`, whatever number of heads keys and values have."""
    batch, heads, rows, width = query.shape
    return 2 * batch * heads * rows * key.shape[2] * (width + value.shape[3])


def _linear_flops(input: Tensor, weight: Tensor, *_: object, **__: object) -> int:
    return 2 * input.numel() * weight.shape[0]


def _product_flops(left: Tensor, *_: object, out_val: Tensor, **__: object) -> int:
    """Of a matrix `[M, K]` with whatever holds the numbers of the other, to `[M, N]`."""
    return 2 * left.numel() * out_val.shape[-1]


_ATTENTION = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
FORMULAS = flop_registry | {
    getattr(torch.ops.aten, f"_scaled_dot_product_{name}"): _attention_flops
    for name in _ATTENTION
    if hasattr(torch.ops.aten, f"_scaled_dot_product_{name}")
}
FORMULAS |= {
    getattr(torch.ops.aten, name): _product_flops
    for name in ("_int_mm", "_weight_int4pack_mm", "_weight_int4pack_mm_for_cpu")
    if hasattr(torch.ops.aten, name)
}
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    FORMULAS |= {torch.ops.mkldnn._linear_pointwise: _linear_flops}
"""Operator -> its FLOPs: PyTorch's formulas, and those of the CPU's kernels for which PyTorch has none."""


class FlopCounter(TorchDispatchMode):
    """Adds up the FLOPs of what runs while it is active. PyTorch's own counter also follows modules by gradient hooks,
    which the Q-Former's queries, a view of a parameter without gradients, do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        formula = FORMULAS.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


@contextmanager
def counted_flops(spans: Sequence[str] | None = None) -> Iterator[dict[str, float]]:
    """FLOPs done in each span while the context is open, filled in at its end; `spans` as in `measured`."""
    with FlopCounter() as counter, measured(lambda: counter.total, spans) as flops:
        yield flops


@torch.no_grad()
def count_kernels(model: SALMONN, token: Tensor, cache: KeyValueCache) -> int | None:
    """Kernels of one decode step on CUDA; None elsewhere, and where PyTorch was built without a profiler for it."""
    from torch.profiler import ProfilerActivity, profile, supported_activities

    if model.device.type != "cuda" or ProfilerActivity.CUDA not in supported_activities():
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        model.engine.step(token, cache)
        torch.cuda.synchronize(model.device)
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiler.events()) or None


@dataclass(frozen=True, kw_only=True)
class Work:
    """The least work of one pass from waveform to first token, and of one decode step."""

    flops: dict[str, int]
    """Part -> FLOPs: `encoder.<name>`, `connector`, `prefill`."""
    read: dict[str, int]
    """Part -> bytes of its weights; `decode` for a step."""
    dtypes: dict[str, torch.dtype]
    kernels: int | None = None
    """Of a decode step."""


def count_work(model: SALMONN, first_token: Callable[[], tuple[Tensor, KeyValueCache]], decode_steps: int) -> Work:
    """Count what `first_token` does, and a decode step in the middle of `decode_steps`.

    `first_token` runs once, and must leave room in its cache for one step. What it does not compute because it was kept
    (the fixed text's keys and values) does not count.

    Raises RuntimeError, naming it, for a part that the model does not run.
    """
    parts: dict[str, nn.Module] = {f"encoder.{name}": module for name, module in model.encoders.encoders.items()}
    parts |= {"connector": model.connector}
    with model.without_cuda_graphs():  # a captured graph shows neither
        with counted_flops(model.spans) as flops:
            token, cache = first_token()
        context = int(cache.lengths[0]) + decode_steps // 2
        kernels = count_kernels(model, token, cache)
    sizes = {row.part: row.bytes for row in part_sizes(model)}
    read = {part: sizes[part.removeprefix("encoder.")] for part in parts}
    # Prefill reads the layers' weights too; a head as large as an embedding is among them.
    read |= {"prefill": decode_bytes(model, 0), "decode": decode_bytes(model, context)}
    dtypes = {part: _compute_type(module) for part, module in parts.items()} | {"prefill": model.llm.dtype}
    return Work(flops={part: int(flops[part]) for part in dtypes}, read=read, dtypes=dtypes, kernels=kernels)


def _compute_type(module: nn.Module) -> torch.dtype:
    """The type that most weights are multiplied in."""
    if any(isinstance(layer, int8.Int8Linear) and layer.multiplies_integers for layer in module.modules()):
        return torch.int8
    sizes: dict[torch.dtype, int] = {}
    for parameter in module.parameters():
        if parameter.is_floating_point():
            sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    return max(sizes, key=sizes.__getitem__) if sizes else torch.float32


def roofline_limits(figures: dict, work: Work, peak: PeakRates) -> dict[str, object]:
    """The roofline limit of each of an efficiency report's times: the report's `limits`.

    The limit of `ttft_s` is the sum of its parts' limits, each at its own type's rate.
    """
    measured_s = figures["ttft_parts_s"]
    limits = {
        part: RooflineLimit.of(measured_s[part], peak, read=work.read[part], flops=flops, dtype=work.dtypes[part])
        for part, flops in work.flops.items()
    }
    whole_s = sum(limit.limit_s for limit in limits.values())
    limits["ttft_s"] = RooflineLimit(
        measured_s=figures["ttft_s"],
        bytes=sum(limit.bytes for limit in limits.values()),
        flops=sum(work.flops.values()),
        limit_s=whole_s,
        ratio=figures["ttft_s"] / whole_s,
    )
    limits["tpot_s"] = RooflineLimit.of(figures["tpot_s"], peak, read=work.read["decode"], kernels=work.kernels)
    return {
        "rates": asdict(peak),
        "kernels_per_token": work.kernels,
        "figures": {name: asdict(limit) for name, limit in limits.items()},
    }

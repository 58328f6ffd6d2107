"""Independent work on a CUDA device at the same time, each piece on a stream of its own."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor


def run_concurrently(
    works: Sequence[Callable[[], tuple[Tensor, ...]]], device: torch.device
) -> list[tuple[Tensor, ...]]:
    """The tensors that each piece of work gives; the current stream waits for all of them, the host for none."""
    here = torch.cuda.current_stream(device)
    sides = [side_stream(here.device, index) for index in range(len(works))]
    results = []
    for side, work in zip(sides, works, strict=True):
        side.wait_stream(here)
        with torch.cuda.stream(side):
            results.append(work())
    for side, result in zip(sides, results, strict=True):
        here.wait_stream(side)
        for tensor in result:
            tensor.record_stream(here)  # once freed, it may not be given away on its own stream while this one reads it
    return results


@lru_cache
def side_stream(device: torch.device, index: int) -> torch.cuda.Stream:
    """The device's own stream of this number, always the same one."""
    return torch.cuda.Stream(device)

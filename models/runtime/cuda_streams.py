"""Independent work on a CUDA device at the same time, each piece on its own CUDA stream."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor


def run_concurrently(
    works: Sequence[Callable[[], tuple[Tensor, ...]]], device: torch.device
) -> list[tuple[Tensor, ...]]:
    """The results of all pieces of work; the current CUDA stream waits for them, the host does not."""
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
            tensor.record_stream(here)  # its memory must not be reused on the other stream while this one reads it
    return results


@lru_cache
def side_stream(device: torch.device, index: int) -> torch.cuda.Stream:
    """The device's CUDA stream of this index, always the same one."""
    return torch.cuda.Stream(device)

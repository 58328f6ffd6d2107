"""The processes that share an evaluation.

Accelerate's `PartialState` would do on CPUs only: with NCCL it refuses two processes on one GPU, with gloo its barrier
asks for a GPU of each process' own number, and its counts outlive the group, in every later use of the same process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Which of them this is, and what they exchange; alone by default."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Processes:
        """Those of the process group that exists, or this one alone."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(rank=distributed.get_rank(), size=distributed.get_world_size())

    @classmethod
    @contextmanager
    def joined(cls) -> Iterator[Processes]:
        """Those of the group that torchrun has started this process for, if it has; left again at the end."""
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        joins = several and distributed.is_available() and not distributed.is_initialized()
        if joins:  # only strings and small objects are exchanged: gloo serves CPU and CUDA processes alike
            distributed.init_process_group("gloo")
        try:
            yield cls.current()
        finally:
            if joins and distributed.is_initialized():
                distributed.destroy_process_group()

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """Each process' own GPU where `cuda` is meant without a number."""
        if self.size > 1 and device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return device

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            distributed.barrier()

    def gather(self, value: object) -> list:
        """Every process' value, in every process."""
        if self.size == 1:
            return [value]
        values: list = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

"""Clock and peak memory of a device, as measurements read them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from support.units import GIB


class Memory:
    """Peak memory since `reset`: of the CUDA allocator, what graphs compute in included, or of the process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kind = "CUDA allocator" if device.type == "cuda" else "resident set of the process"
        self.resettable = True
        if device.type == "cuda":
            torch.cuda.init()  # its context is not counted by the allocator, and resetting needs it

    def reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: sets VmHWM to the present size
        except OSError:
            self.resettable = False

    def now_gib(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device) / GIB
        return self._status("VmRSS")

    def peak_gib(self) -> float:
        if self.device.type == "cuda":
            return (torch.cuda.max_memory_allocated(self.device) + _idle_in_graphs(self.device)) / GIB
        return self._status("VmHWM")

    def _status(self, key: str) -> float:
        """A size from /proc/self/status; where there is none, the peak since the process began."""
        try:
            for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
                if line.startswith(f"{key}:"):
                    return int(line.split()[1]) * 1024 / GIB
        except OSError:
            pass
        import resource  # not on Windows

        self.resettable = False
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def _idle_in_graphs(device: torch.device) -> int:
    """Bytes that captured graphs compute in. Nobody else can have them, but the allocator counts them as free."""
    try:
        segments = torch.cuda.memory_snapshot()
    except (AttributeError, RuntimeError):  # of allocators that cannot tell, and of none at all
        return 0
    index = torch.cuda.current_device() if device.index is None else device.index
    return sum(
        segment["total_size"] - segment["allocated_size"]
        for segment in segments
        if segment["device"] == index and tuple(segment.get("segment_pool_id", (0, 0))) != (0, 0)
    )


def clock(device: torch.device) -> Callable[[], float]:
    """A clock in seconds that first waits for the device's work to end."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return now

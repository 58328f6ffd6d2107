"""Where a figure comes from: the commit, the package versions and the machine that results are saved with."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from support.units import GIB

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "sentencepiece",
    "peft",
    "accelerate",
    "bitsandbytes",
    "torchao",
    "numpy",
    "soundfile",
    "soxr",
    "miniaudio",
)


@functools.cache
def commit() -> str | None:
    """The commit of this checkout, with `+changes` where tracked files differ from it; None outside a repository."""
    try:
        head = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "HEAD"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=True,
            timeout=10,
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", str(ROOT), "diff", "--quiet", "HEAD"], capture_output=True, timeout=30
        ).returncode
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}+changes" if changed else head


@functools.cache
def source_digest(rooms: tuple[str, ...]) -> str:
    """Hash of the source of rooms and files of this program: unlike a commit, it knows changes that are not committed,
    and those that touch other rooms do not count."""
    digest = hashlib.sha256()
    for room in rooms:
        for file in sorted((ROOT / room).rglob("*.py")) if (ROOT / room).is_dir() else [ROOT / room]:
            digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


@functools.cache
def versions() -> dict[str, str | None]:
    """Python's version and those of the packages that results depend on; None for one that is not installed."""
    import torch

    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    found["cuda"] = torch.version.cuda
    return found


def machine(device: torch.device) -> dict[str, object]:
    """The machine that `device` belongs to: the name of its processor, cores, memory, threads in use."""
    import torch

    info: dict[str, object] = {
        "device": str(device),
        "name": processor_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        info["name"] = properties.name
        info["processor"] = processor_name()
        info["device_memory_gib"] = round(properties.total_memory / GIB, 1)
        info["compute_capability"] = f"{properties.major}.{properties.minor}"
    return info


@functools.cache
def processor_name() -> str:
    """The CPU's model name where the system tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

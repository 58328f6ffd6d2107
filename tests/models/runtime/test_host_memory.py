"""Loading leaves no holes between the weights."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from models.runtime import host_memory
from support.provenance import ROOT

LOADING = """
import torch
from models.runtime.host_memory import large_blocks_apart

def resident_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) / 256

torch.ones(1 << 22).double()  # blocks of 16 and 32 MiB are freed: glibc takes such from its heap from now on
with large_blocks_apart(["owner/name"]):
    before, kept = resident_mib(), []
    for _ in range(40):  # as weights of 4 MiB that are rounded to 8 bits
        weight = torch.ones(1 << 22)
        scaled = weight / 3
        kept.append(scaled.round().to(torch.int8))
        del weight, scaled
    grown = resident_mib() - before
torch.ones(1 << 20).double()
print(grown)
"""
glibc_alone = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The settings that the C library, another in its place, was asked for."""
    settings: list[tuple[int, int]] = []
    library = SimpleNamespace(mallopt=lambda *setting: settings.append(setting))
    monkeypatch.setattr(host_memory, "_glibc", lambda: library)
    return settings


@glibc_alone
def test_what_loading_frees_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", LOADING], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 155 < float(done.stdout) < 200  # 40 times 4 MiB


@pytest.mark.parametrize("variable", ["MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_the_users_own_settings_stay(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    host_memory._glibc.cache_clear()
    try:
        assert host_memory._glibc() is None
        with host_memory.large_blocks_apart(["owner/name"]):
            pass
    finally:
        host_memory._glibc.cache_clear()


def test_small_weights_are_loaded_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr(host_memory, "LEAST_WEIGHTS", 300)
    folder = tmp_path / "llm"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"0" * 200)
    (tmp_path / "beats.pt").write_bytes(b"0" * 99)
    with host_memory.large_blocks_apart([str(folder), str(tmp_path / "beats.pt")]):
        assert not asked
    (tmp_path / "beats.pt").write_bytes(b"0" * 100)
    with host_memory.large_blocks_apart([str(folder), str(tmp_path / "beats.pt")]):
        assert asked


@glibc_alone
def test_thresholds_are_put_back_after_an_error(asked: list[tuple[int, int]]) -> None:
    with pytest.raises(OSError), host_memory.large_blocks_apart(["owner/name"]):
        raise OSError
    assert asked == [
        (host_memory.M_MMAP_THRESHOLD, host_memory.WHILE_LOADING),
        (host_memory.M_MMAP_THRESHOLD, host_memory.AFTERWARDS),
        (host_memory.M_TRIM_THRESHOLD, 2 * host_memory.AFTERWARDS),
    ]

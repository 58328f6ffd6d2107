"""Loading fragments no heap; pages of mapped files are released where nothing is lost."""

from __future__ import annotations

import mmap
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from models.runtime import host_memory
from support.provenance import ROOT

LOADING = """
import torch
from models.runtime.host_memory import large_blocks_mapped

def resident_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) / 256

torch.ones(1 << 22).double()  # blocks of 16 and 32 MiB are freed: glibc takes such from its heap from now on
with large_blocks_mapped(["owner/name"]):
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
        with host_memory.large_blocks_mapped(["owner/name"]):
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
    with host_memory.large_blocks_mapped([str(folder), str(tmp_path / "beats.pt")]):
        assert not asked
    (tmp_path / "beats.pt").write_bytes(b"0" * 100)
    with host_memory.large_blocks_mapped([str(folder), str(tmp_path / "beats.pt")]):
        assert asked


@glibc_alone
def test_thresholds_are_put_back_after_an_error(asked: list[tuple[int, int]]) -> None:
    with pytest.raises(OSError), host_memory.large_blocks_mapped(["owner/name"]):
        raise OSError
    assert asked == [
        (host_memory.M_MMAP_THRESHOLD, host_memory.WHILE_LOADING),
        (host_memory.M_MMAP_THRESHOLD, host_memory.AFTERWARDS),
        (host_memory.M_TRIM_THRESHOLD, 2 * host_memory.AFTERWARDS),
    ]


maps_files = pytest.mark.skipif(
    not hasattr(mmap, "MADV_DONTNEED") or not Path("/proc/self/smaps").exists(), reason="Linux only"
)
COUNT = 8_000_000  # 32 MB


def resident_kb(path: Path) -> int:
    sizes = []
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.split(" ")[0].count("-") == 1 and not line.split(" ")[0].endswith(":"):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            sizes.append(int(line.split()[1]))
    return sum(sizes)


@maps_files
@pytest.mark.parametrize("all_weights", [False, True])
def test_read_pages_go_and_come_back(tmp_path: Path, all_weights: bool) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.arange(COUNT, dtype=torch.float32)}, path)
    with safe_open(path, framework="pt") as opened:
        weight = opened.get_tensor("w")
        total = weight.double().sum()
        before = resident_kb(path)
        if before < 20_000:
            pytest.skip("this safetensors does not map files")
        assert (host_memory.release_weight_pages() if all_weights else host_memory.release_pages([path])) > 0
        assert resident_kb(path) < before / 4
        assert weight.double().sum() == total


@maps_files
def test_written_pages_stay(tmp_path: Path) -> None:
    path = tmp_path / "b.bin"
    path.write_bytes(b"\0" * (1 << 20))
    storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=1 << 20)
    values = torch.tensor([], dtype=torch.uint8).set_(storage)
    values[7] = 3
    assert host_memory.release_pages([path]) == 0 and values[7] == 3


@maps_files
def test_what_follows_a_file_in_memory_does_not_speak_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.bin"
    path.write_bytes(b"\0" * (1 << 20))
    storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=1 << 20)
    values = torch.tensor([], dtype=torch.uint8).set_(storage)
    values[7] = 3
    place = f"{storage.data_ptr():x}-{storage.data_ptr() + (1 << 20):x}"
    listing = tmp_path / "smaps"
    listing.write_text(
        f"{place} rw-p 00000000 fe:00 12 {path}\nAnonymous:             4 kB\n"
        "7f0000000000-7f0000001000 ---p 00000000 00:00 0 \nAnonymous:             0 kB\n"
    )
    monkeypatch.setattr(host_memory, "_SMAPS", listing)
    assert host_memory.release_pages([path]) == 0 and values[7] == 3


@maps_files
def test_other_files_stay(tmp_path: Path) -> None:
    assert host_memory.release_pages([tmp_path / "nowhere"]) == 0

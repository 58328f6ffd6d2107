"""Pages of mapped files are released where nothing is lost."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from models.runtime import file_pages

pytestmark = pytest.mark.skipif(
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
        assert (file_pages.release_weights() if all_weights else file_pages.release([path])) > 0
        assert resident_kb(path) < before / 4
        assert weight.double().sum() == total


def test_written_pages_stay(tmp_path: Path) -> None:
    path = tmp_path / "b.bin"
    path.write_bytes(b"\0" * (1 << 20))
    storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=1 << 20)
    values = torch.tensor([], dtype=torch.uint8).set_(storage)
    values[7] = 3
    assert file_pages.release([path]) == 0 and values[7] == 3


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
    monkeypatch.setattr(file_pages, "_SMAPS", listing)
    assert file_pages.release([path]) == 0 and values[7] == 3


def test_other_files_stay(tmp_path: Path) -> None:
    assert file_pages.release([tmp_path / "nowhere"]) == 0

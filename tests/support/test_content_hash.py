"""Hashes of files' contents."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support import content_hash
from support.content_hash import ContentHashes, digest_of


def test_the_hash_is_the_contents(tmp_path: Path) -> None:
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    one.write_bytes(b"sound"), same.write_bytes(b"sound"), other.write_bytes(b"SOUND")
    hashes = ContentHashes().of_files([one, same, other, one])
    assert hashes[str(one)] == hashes[str(same)] != hashes[str(other)]


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, read, real = tmp_path / "a", [], content_hash._whole
    monkeypatch.setattr(content_hash, "_whole", lambda path, stat: read.append(path) or real(path, stat))
    file.write_bytes(b"1")
    hashes = ContentHashes()
    first = hashes.of_file(file)
    assert hashes.of_file(file) == first and len(read) == 1
    file.write_bytes(b"2")
    os.utime(file, ns=(1, 1))
    assert hashes.of_file(file) != first and len(read) == 2


def test_what_is_no_file_has_a_mark_of_its_own(tmp_path: Path) -> None:
    hashes = ContentHashes()
    assert hashes.of_file(tmp_path / "absent") == "absent"
    assert hashes.of_file(tmp_path).startswith("error ")


@pytest.mark.parametrize("place", [0, 1500, 4096, 8192, 19_999])
def test_samples_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    """Its head, its end, and a block of every so many bytes."""
    for name, value in {"WHOLE_BYTES": 1000, "MIB": 2048, "SAMPLE_BYTES": 64, "SAMPLE_EVERY_BYTES": 4096}.items():
        monkeypatch.setattr(content_hash, name, value)
    file, content = tmp_path / "weights", bytearray(20_000)
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))
    before = ContentHashes().of_weights(file)
    content[place] = 1
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))
    assert ContentHashes().of_weights(file) != before


def test_a_large_files_time_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_hash, "WHOLE_BYTES", 10)
    file = tmp_path / "weights"
    file.write_bytes(bytes(3 << 20))
    before = ContentHashes().of_weights(file)
    os.utime(file, ns=(1, 1))
    assert ContentHashes().of_weights(file) != before


def test_a_digest_keeps_parts_apart() -> None:
    assert digest_of(["ab", "c"]) != digest_of(["a", "bc"]) != digest_of(["abc"])
    assert digest_of({"a": "1", "b": "2"}) == digest_of({"b": "2", "a": "1"}) != digest_of({"a": "2", "b": "1"})
    assert digest_of(["caf\udce9"])

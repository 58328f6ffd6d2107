"""Files of torch.save that are damaged, compressed, or hold code: an error, and nothing is run."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from models.encoders.beats_network import BEATsConfig
from models.tensor_file import TensorFileError, read_tensor_file


class Code:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.pt"
    torch.save({"model": {"a": torch.arange(500.0), "b": torch.ones(2, 3)}, "epoch": 3}, path)
    return path


def refused(path: Path, match: str = "truncated, or no file|no plain pickle|asks for|is empty|short text") -> None:
    with pytest.raises(TensorFileError, match=match) as caught:
        read_tensor_file(path)
    assert "weights_only" not in str(caught.value)  # torch's advice is to run what the file holds


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_and_plain_containers_are_read(tmp_path: Path, zipped: bool, mmap: bool) -> None:
    torch.save({"a": torch.arange(3), "b": [1, "c"]}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    file = read_tensor_file(tmp_path / "x.pt", mmap=mmap)
    assert file["a"].tolist() == [0, 1, 2] and file["b"] == [1, "c"]


def test_sizes_are_read_without_bytes(path: Path) -> None:
    model = read_tensor_file(path, device="meta", mmap=True)["model"]
    assert model["b"].is_meta and model["b"].shape == (2, 3)


def test_a_file_cut_anywhere_is_an_error(path: Path) -> None:
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        refused(path)
    path.unlink()
    refused(path, "does not exist")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["zipped", "old", "bare pickle"])
def test_code_is_never_run(tmp_path: Path, how: str) -> None:
    path, mark = tmp_path / "x.pt", tmp_path / "was_here"
    content = {"model": {"a": torch.ones(2)}, "config": [Code(mark)]}
    if how == "bare pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zipped")
    refused(path, "nothing was run|no file of torch.save")
    assert not mark.exists()


def test_a_compressed_file_is_refused_before_it_is_unpacked(path: Path, tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(2_000_000)}}, path)
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert bomb.stat().st_size < 100_000
    refused(bomb, r"is compressed: .* bytes that unpack to 8,")


def test_keys_that_a_beats_file_lacks_are_those_of_its_code() -> None:
    config = BEATsConfig.from_released({"encoder_layers": 2, "pre-training only": 1})
    assert (config.deep_norm, config.gru_rel_pos, config.max_distance) == (False, False, 1280)
    assert (config.encoder_layers, config.encoder_embed_dim) == (2, 768)
    for key, value in (("encoder_layers", "2"), ("encoder_layers", 0), ("deep_norm", 1), ("conv_pos", True)):
        with pytest.raises(ValueError, match=rf"cfg has {key} {value!r}; expected a"):
            BEATsConfig.from_released({key: value})

"""Whisper in OpenAI's `.pt`: `torch.save({"dims": …, "model_state_dict": …})`, read without running anything."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conversion.stored_tensors import StoredTensor, stored
from conversion.whisper_folder import EMBEDDING, WhisperSource, write_whisper
from conversion.whisper_names import layer_count, transformers_name
from conversion.whisper_tokens import tokens_of_size
from models.tensor_file import TensorFileError, read_tensor_file
from support.command_line import UserError

LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before PyTorch 1.6: a pickled number
DIMS = (
    "n_mels",
    "n_audio_ctx",
    "n_audio_state",
    "n_audio_head",
    "n_audio_layer",
    "n_vocab",
    "n_text_ctx",
    "n_text_state",
    "n_text_head",
    "n_text_layer",
)
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
NO_TOKENIZER = (
    "the file has none. To decode text, copy tokenizer.json and tokenizer_config.json of the same Whisper into the "
    "folder; the encoder needs none"
)


def recognises(path: Path) -> bool:
    """Whether a file is one of `torch.save`."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(len(LEGACY_START))
    if start == LEGACY_START:
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[-1] == "data.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def convert(path: Path, folder: Path, dtype: str | None, report: Callable[[str], None]) -> None:
    """Fill an empty folder from a `.pt`."""
    dims, state = _read(path)
    tensors = {transformers_name(name) or name: _stored(path, name, tensor) for name, tensor in state.items()}
    check_sizes(path, dims, tensors)
    source = WhisperSource(
        path=path,
        format="OpenAI's .pt",
        tensors=tensors,
        encoder_heads=dims["n_audio_head"],
        decoder_heads=dims["n_text_head"],
        tokens=tokens_of_size(dims["n_vocab"]),
        settings={},
        write_tokenizer=None,
        no_tokenizer=NO_TOKENIZER,
    )
    write_whisper(source, folder, dtype, report)


def check_sizes(path: Path, dims: Mapping[str, int], tensors: Mapping[str, StoredTensor]) -> None:
    """The sizes that a file states, by OpenAI's names, are those of its tensors; UserError where one is not."""
    places = {
        "n_mels": ("model.encoder.conv1.weight", 1),
        "n_audio_ctx": ("model.encoder.embed_positions.weight", 0),
        "n_audio_state": ("model.encoder.embed_positions.weight", 1),
        "n_vocab": (EMBEDDING, 0),
        "n_text_ctx": ("model.decoder.embed_positions.weight", 0),
        "n_text_state": (EMBEDDING, 1),
    }
    found = {"n_audio_layer": layer_count(tensors, "encoder"), "n_text_layer": layer_count(tensors, "decoder")}
    for name, (tensor, axis) in places.items():
        if tensor in tensors and axis < len(tensors[tensor].shape):  # what is missing is said later
            found[name] = tensors[tensor].shape[axis]
    for name, size in found.items():
        if dims[name] != size:
            raise UserError(f"{path} states {name} = {dims[name]}, but its tensors have {size}; it is damaged or cut")


def _read(path: Path) -> tuple[dict[str, int], dict[str, Tensor]]:
    try:
        content = read_tensor_file(path, mmap=True)
    except TensorFileError as error:
        raise UserError(f"{path} {error}") from error
    expected = "expected OpenAI's Whisper: {'dims': sizes, 'model_state_dict': tensors}"
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), dict) for key in ("dims", "model_state_dict")
    ):
        held = sorted(map(str, content))[:6] if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path} is a file of torch.save that holds {held}; {expected}")
    dims: dict[str, Any] = content["dims"]
    for name in DIMS:
        if type(dims.get(name)) is not int or dims[name] < 1:
            raise UserError(f"{path}: dims has {name} = {dims.get(name)!r}; expected a whole number above 0")
    return dims, content["model_state_dict"]


def _stored(path: Path, name: Any, tensor: Any) -> StoredTensor:
    """A tensor of the state dict, after checking that it is what it seems."""
    what = f"{path}: {name!r} of model_state_dict"
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        raise UserError(f"{what} is a {type(tensor).__name__}; expected tensors by name")
    if tensor.layout is not torch.strided or tensor.dtype not in FLOATS or tensor.device.type != "cpu":
        raise UserError(f"{what} is of type {tensor.dtype}, {tensor.layout}; expected a dense tensor of floats")
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        raise UserError(f"{what} states the shape {list(tensor.shape)} over fewer bytes than that: it is damaged")
    return stored(tensor.detach())

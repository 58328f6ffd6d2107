"""Weights of a folder of transformers: safetensors, in several files where they are large, written one by one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from conversion.stored_tensors import StoredTensor
from support.command_line import UserError

LARGEST_FILE_BYTES = 2 * 1024**3  # what is in memory at once


def write_weights(folder: Path, tensors: Mapping[str, StoredTensor], dtype: torch.dtype, source: Path) -> None:
    """Write `tensors` in `dtype`, by name, next to config.json.

    Raises UserError, naming the `source`, where a value is not finite, or not in that dtype.
    """
    files = _files(tensors, dtype)
    progress = tqdm(
        total=sum(tensor.size for tensor in tensors.values()) * dtype.itemsize,
        unit="B",
        unit_scale=True,
        desc="weights",
        disable=None,
    )
    for file, names in files.items():
        content = {}
        for name in names:
            content[name] = _cast(tensors[name], name, dtype, source)
            progress.update(tensors[name].size * dtype.itemsize)
        try:
            save_file(content, folder / file, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk, say
            raise OSError(f"{folder / file}: {error}") from error
        shutil.copymode(folder / "config.json", folder / file)  # the library lets nobody else read it
    progress.close()
    if len(files) > 1:
        total = sum(tensor.size for tensor in tensors.values()) * dtype.itemsize
        places = {name: file for file, names in files.items() for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _files(tensors: Mapping[str, StoredTensor], dtype: torch.dtype) -> dict[str, list[str]]:
    """File -> names of its tensors."""
    parts: list[list[str]] = []
    filled = LARGEST_FILE_BYTES
    for name, tensor in tensors.items():
        size = tensor.size * dtype.itemsize
        if filled + size > LARGEST_FILE_BYTES:
            parts.append([])
            filled = 0
        parts[-1].append(name)
        filled += size
    if len(parts) == 1:
        return {"model.safetensors": parts[0]}
    return {f"model-{number:05}-of-{len(parts):05}.safetensors": names for number, names in enumerate(parts, start=1)}


def _cast(tensor: StoredTensor, name: str, dtype: torch.dtype, source: Path) -> Tensor:
    """The values in `dtype`, in memory of their own."""
    values = tensor.load()
    cast = torch.empty(tensor.shape, dtype=dtype).copy_(values)
    if not cast.isfinite().all():
        if values.isfinite().all():
            raise UserError(
                f"{source}: values of {name} are up to {values.abs().max():.3g}, more than {str(dtype)[6:]} holds; "
                "convert with --dtype float32"
            )
        raise UserError(f"{source} is damaged: {name} holds NaN or infinite values; copy or download it again")
    return cast

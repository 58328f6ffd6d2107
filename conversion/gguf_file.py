"""A GGUF file (llama.cpp's format), read with the package `gguf`: what it says of itself, and its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from support.command_line import UserError

if TYPE_CHECKING:
    from gguf import ReaderTensor

MAGIC = b"GGUF"
UNREADABLE = (ValueError, KeyError, IndexError, OverflowError, TypeError)
"""What the package raises, at one place or another, for a file that is cut off or damaged."""


@dataclass(frozen=True, kw_only=True)
class GGUFFile:
    """One language model."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, ReaderTensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def value(self, key: str, default: Any = None) -> Any:
        """`llama.KEY` for a Llama, `qwen2.KEY` for a Qwen2, and so on."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def required(self, key: str) -> Any:
        """The same; UserError where the file does not have it."""
        return self.required_entry(f"{self.architecture}.{key}")

    def required_entry(self, key: str) -> Any:
        if self.metadata.get(key) is None:
            raise UserError(f"{self.path} has no {key}; expected a whole GGUF language model: download it again")
        return self.metadata[key]

    def types(self) -> dict[str, int]:
        """How many tensors have each type, the most frequent first: `Q4_1`, `F32`."""
        names = [tensor.tensor_type.name for tensor in self.tensors.values()]
        return {name: names.count(name) for name in sorted(set(names), key=lambda name: (-names.count(name), name))}

    def shape(self, name: str) -> tuple[int, ...]:
        """As torch has it: rows first."""
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def weights(self, name: str) -> torch.Tensor:
        """One tensor's values in float32, dequantised by the package."""
        from gguf import dequantize

        tensor = self.tensors[name]
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise UserError(
                f"{self.path}: {name} is stored as {tensor.tensor_type.name}, which the package gguf does not "
                "dequantise; take the same model in another type, Q8_0 or Q4_K_M say"
            ) from error
        return torch.from_numpy(np.array(values, dtype=np.float32).reshape(self.shape(name)))


def read_gguf(path: Path) -> GGUFFile:
    """Read a file's metadata; its tensors stay on disk until they are asked for.

    Raises:
        UserError: it is damaged, or one of several parts; or the package is not installed.
    """
    require_gguf_package()
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        metadata = {name: _content(field) for name, field in reader.fields.items()}
    except UNREADABLE as error:
        raise UserError(
            f"{path} cannot be read as a GGUF file ({_first_line(error)}): it is cut off, damaged or of a version that "
            "the package gguf does not know; download it again"
        ) from error
    parts = metadata.get("split.count", 1)
    if parts > 1:
        raise UserError(
            f"{path} is one of {parts} parts of a model; join them with llama.cpp's 'llama-gguf-split --merge' and "
            "name the result"
        )
    return GGUFFile(path=path, metadata=metadata, tensors={tensor.name: tensor for tensor in reader.tensors})


def require_gguf_package() -> None:
    """Raise UserError where the package is not installed."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise UserError(
            "GGUF and quantised ggml files are read with the package gguf: pip install gguf==0.19.0"
        ) from error


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF file does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _content(field: Any) -> Any:
    """A field's value; a float as the shortest number that float32 rounds to it (1e-05, not 9.99999975e-06)."""
    content = field.contents()
    return float(str(np.float32(content))) if field.types and field.types[0].name == "FLOAT32" else content


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]

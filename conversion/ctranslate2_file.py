"""The `model.bin` of CTranslate2: named variables, their scales where they are quantised, and second names."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from conversion.byte_reader import ByteReader
from conversion.stored_tensors import StoredTensor
from support.command_line import UserError
from support.file_kinds import mistaken

VERSIONS = (4, 5, 6)  # of the format; from 4 on each variable states its type
HIGHEST_VERSION = 99  # that a file of this format may start with; others are of another kind
START_BYTES = 64
TYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
"""By their numbers. CTranslate2 has no other."""
QUANTISED = ("int8", "int16")
_SPECIFICATION = re.compile(rb"[A-Za-z0-9]{1,40}Spec\0")


def specification(start: bytes) -> str | None:
    """The kind of model, such as WhisperSpec, by a file's first bytes; None where it is no file of CTranslate2."""
    if len(start) < 6:
        return None
    version, length = struct.unpack("<IH", start[:6])
    name = start[6 : 6 + length]
    return name[:-1].decode() if 2 <= version <= HIGHEST_VERSION and _SPECIFICATION.fullmatch(name) else None


class Variables:
    """The variables of a file. Each that is asked for is marked as used; what nobody asked for is an error."""

    def __init__(self, path: Path, kind: str, version: int, revision: int) -> None:
        self.path, self.specification, self.version, self.revision = path, kind, version, revision
        self.stored: dict[str, tuple[tuple[int, ...], str, np.ndarray]] = {}
        """Name -> shape, type, bytes."""
        self.aliases: dict[str, str] = {}
        self._used: set[str] = set()

    def tensor(self, name: str) -> StoredTensor:
        """A variable, to be decoded when it is loaded; UserError where there is none, or none that is a tensor."""
        shape, kind, raw = self._use(name)
        if not shape:
            raise UserError(f"{self.path}: {name} is a single number; expected a tensor")
        scale = None
        if kind in QUANTISED:
            scale = self._scale(name, shape)
        elif kind == "int32":
            raise UserError(f"{self.path}: {name} is of type int32; expected floats, int8 or int16")
        return StoredTensor(shape=shape, type=kind, load=partial(_decode, raw, kind, shape, scale))

    def number(self, name: str, default: int) -> int:
        """A variable that is a single number."""
        if self._place(name) is None:
            return default
        shape, kind, raw = self._use(name)
        if shape or kind not in ("int8", "int16", "int32"):
            raise UserError(f"{self.path}: {name} is a {kind} of shape {list(shape)}; expected one whole number")
        return int(_array(raw, kind)[0])

    def count(self, prefix: str) -> int:
        """How many numbers, from 0 on, follow `prefix` in names."""
        found = {name[len(prefix) :].split("/")[0] for name in (*self.stored, *self.aliases) if name.startswith(prefix)}
        return sum(text.isdecimal() for text in found)

    def same(self, name: str, other: str) -> bool:
        """Whether the first is the second under another name, is missing, or has the same values."""
        place, second = self._place(name), self._place(other)
        if place is None or place == second:
            return True
        if self.stored[place][:2] != self.stored[second][:2]:
            return False
        return torch.equal(self.tensor(name).load(), self.tensor(other).load())

    def require_used(self, settings: Mapping[str, int | None]) -> None:
        """Every tensor was asked for, and every single number has the value of `settings` (None: any), else 0.

        Raises UserError: a part of the model would be lost.
        """
        for name, (shape, kind, _) in self.stored.items():
            if shape and name not in self._used:
                raise UserError(f"{self.path}: {name} ({kind}, {list(shape)}) is no part of a Whisper that is known")
            if not shape and name not in self._used and kind != "float32":
                value, expected = self.number(name, 0), settings.get(name, 0)
                if expected is not None and value != expected:
                    raise UserError(f"{self.path}: {name} is {value}; expected {expected}, as every Whisper has it")

    def _scale(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """What quantised values are divided by: one number for each row, or one for all."""
        sizes, kind, raw = self._use(f"{name}_scale")
        if kind not in ("float32", "float16") or sizes not in ((), (1,), shape[:1]):
            raise UserError(
                f"{self.path}: {name}_scale is {kind}, {list(sizes)}; expected one float for each of {shape[0]} rows"
            )
        scale = _decode(raw, kind, sizes, None).float().reshape(-1)
        if not (scale.isfinite() & (scale > 0)).all():
            raise UserError(f"{self.path} is damaged: {name}_scale holds values that are no scale; copy it again")
        return scale.reshape(-1, *[1] * (len(shape) - 1))

    def _place(self, name: str) -> str | None:
        """The name under which a variable is stored."""
        if name in self.stored:
            return name
        for ending in ("", "_scale"):  # the second name of a variable is one of its scale too
            base = name.removesuffix(ending)
            if name.endswith(ending) and base in self.aliases and self.aliases[base] + ending in self.stored:
                return self.aliases[base] + ending
        return None

    def _use(self, name: str) -> tuple[tuple[int, ...], str, np.ndarray]:
        place = self._place(name)
        if place is None:
            raise UserError(f"{self.path} lacks {name}; expected a whole Whisper of CTranslate2")
        self._used.add(place)
        return self.stored[place]


def read_variables(path: Path) -> Variables:
    """All variables of a `model.bin`; their bytes stay in the file. UserError where it is damaged or too new."""
    found = mistaken(path)
    if found:
        raise UserError(f"{path} {found}")
    reader = ByteReader(path)
    (version,) = reader.numbers("I", "the version of its format")
    if version not in VERSIONS:
        versions = f"{VERSIONS[0]} to {VERSIONS[-1]}"
        raise UserError(f"{path} is of version {version} of CTranslate2's format; expected {versions}")
    kind = _text(reader, "the kind of model")
    (revision, count) = reader.numbers("II", "its revision and number of variables")
    result = Variables(path, kind, version, revision)
    for number in range(count):
        name = _text(reader, f"the name of variable {number}")
        if name in result.stored:
            raise UserError(f"{path} is damaged: it holds {name} twice")
        result.stored[name] = _variable(reader, name)
    (count,) = reader.numbers("I", "the number of second names")
    for number in range(count):
        alias = _text(reader, f"second name {number}")
        result.aliases[alias] = _text(reader, f"what {alias} stands for")
        if result.aliases[alias] not in result.stored:
            raise UserError(f"{path} is damaged: {alias} stands for {result.aliases[alias]}, which is not there")
    if reader.left:
        raise UserError(f"{path} is damaged: {reader.left:,} bytes follow its end; copy or download it again")
    return result


def _text(reader: ByteReader, what: str) -> str:
    """A text with its length, which counts a zero at its end."""
    (length,) = reader.numbers("H", f"the length of {what}")
    return reader.text(length, what).removesuffix("\0")


def _variable(reader: ByteReader, name: str) -> tuple[tuple[int, ...], str, np.ndarray]:
    (rank,) = reader.numbers("B", f"the shape of {name}")
    shape = reader.numbers(f"{rank}I", f"the shape of {name}")
    number, size = reader.numbers("BI", f"the type and size of {name}")
    if number >= len(TYPES):
        raise UserError(f"{reader.path} is damaged: {name} is of type {number}; known are 0 to {len(TYPES) - 1}")
    expected = math.prod(shape) * getattr(torch, TYPES[number]).itemsize
    if size != expected:
        raise UserError(
            f"{reader.path} is damaged: {name} has {size:,} bytes; expected {expected:,} for {list(shape)} in "
            f"{TYPES[number]}"
        )
    return shape, TYPES[number], reader.take(size, name)


def _array(raw: np.ndarray, kind: str) -> np.ndarray:
    """Numbers at any byte of a file."""
    return np.array(raw).view(np.dtype(kind).newbyteorder("<"))


def _decode(raw: np.ndarray, kind: str, shape: tuple[int, ...], scale: Tensor | None) -> Tensor:
    if kind == "bfloat16":  # numpy has none: the upper half of a float32
        return torch.from_numpy(_array(raw, "int16")).view(torch.bfloat16).reshape(shape)
    values = torch.from_numpy(_array(raw, kind)).reshape(shape)
    return values if scale is None else values.float() / scale

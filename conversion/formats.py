"""The formats of other programs that become a folder of transformers, told apart by their content."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from conversion import ctranslate2_whisper, ggml_whisper, gguf_llm, openai_whisper
from support.command_line import UserError, require_writable
from support.file_kinds import mistaken
from support.files import new_folder

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format that is read."""

    name: str
    """As errors list it."""
    recognises: Callable[[Path], bool]
    """Whether a file or folder is of this format: by its first bytes, never by its name."""
    convert: Callable[[Path, Path, str | None, Report], None]
    """Fill an empty folder with the model of a source; weights in the dtype of this name, None for one that keeps every
    value. Says what it found. A source that it cannot read is a UserError."""


FORMATS = (
    Format(
        name="Whisper in a folder of CTranslate2 (faster-whisper's, with model.bin)",
        recognises=ctranslate2_whisper.recognises,
        convert=ctranslate2_whisper.convert,
    ),
    Format(
        name="Whisper in OpenAI's .pt",
        recognises=openai_whisper.recognises,
        convert=openai_whisper.convert,
    ),
    Format(
        name="Whisper in a ggml-*.bin of whisper.cpp",
        recognises=ggml_whisper.recognises,
        convert=ggml_whisper.convert,
    ),
    Format(
        name="a language model in GGUF (llama.cpp's)",
        recognises=gguf_llm.recognises,
        convert=gguf_llm.convert,
    ),
)


INSIDE = ("*.gguf", "ggml*.bin", "*.pt", "*/model.bin", "*/*/model.bin")
"""What is looked for in a folder that is of no format, for the error alone."""


def convert(
    source: Path, folder: Path, *, dtype: str | None = None, overwrite: bool = False, report: Report = print
) -> Path:
    """Write the folder of transformers for a source of any known format, whole or not at all. Returns the folder.

    Raises UserError where the source is of no known format or broken, or where the folder would replace something.
    """
    source, folder = source.resolve(), folder.resolve()
    found = format_of(source)
    _refuse_target(source, folder, overwrite)
    with new_folder(folder) as draft:
        found.convert(source, draft, dtype, report)
    return folder


def format_of(source: Path) -> Format:
    """The format of a file or folder; UserError, which says what it is instead, where it is of none of them."""
    if not source.exists():
        raise UserError(f"{source} does not exist; expected a model of another program: {_names()}")
    for known in FORMATS:
        if known.recognises(source):
            return known
    if source.is_dir():
        raise UserError(f"{source} {_folder_instead(source)}; expected {_names()}")
    found = mistaken(source)
    if found:
        raise UserError(f"{source} {found}")
    with open(source, "rb") as file:
        start = file.read(10)
    if start[8:] == b'{"':
        raise UserError(f"{source} is a file of safetensors; its folder, with config.json, is loaded as it is")
    raise UserError(f"{source} is in no format that is read (it starts with {start!r}); expected {_names()}")


def _names() -> str:
    return "; ".join(known.name for known in FORMATS)


def _folder_instead(folder: Path) -> str:
    with suppress(OSError, ValueError, AttributeError):
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind:
            return f"is a folder of transformers already (of type {kind!r}), which models are loaded from as it is"
    weights = folder / "model.bin"
    if weights.is_file():
        return f"holds a model.bin that is no model: it {mistaken(weights) or 'is of an unknown format'}"
    inside = next((found for pattern in INSIDE for found in sorted(folder.glob(pattern))), None)
    if inside is None:
        return "is a folder without a model.bin"
    return f"is a folder; name what is in it: {inside.parent if inside.name == weights.name else inside}"


def _refuse_target(source: Path, folder: Path, overwrite: bool) -> None:
    """Before minutes of work, and before anything is lost."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; expected a folder, empty or to be made")
    if source.is_relative_to(folder) or (source.is_dir() and folder.is_relative_to(source)):
        raise UserError(f"{folder}: the source {source} and the new folder contain each other; choose another folder")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise UserError(f"{folder} exists and is not empty; choose another folder, or add --overwrite to replace it")
    require_writable(str(folder), "OUT")

"""Public models' architecture facts: what transformers' configurations need to build a network without its weights.

One JSON file per model: its `names` (hub names, file names of `.pt` files), `kind` (`llm`, `whisper`, `beats`, `ced`,
or `audio`, any other audio encoder of transformers), `config` (the fields of its `config.json` that determine its
shapes), `quantized` (names of copies with quantised weights, and their format) and `published` (its parameter count, to
the `unit` that it was published in). No network and no weights are needed.
"""

from __future__ import annotations

import difflib
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from configs.known_weights import cached_weights
from support.command_line import UserError

FOLDER = Path(__file__).resolve().parent
KINDS = {"whisper": "whisper", "beats": "beats", "ced": "ced"}
"""`model_type` -> kind, where it is not a language model."""
AUDIO_TYPES = (
    "audio-spectrogram-transformer",
    "hubert",
    "parakeet_ctc",
    "parakeet_encoder",
    "parakeet_rnnt",
    "parakeet_tdt",
    "wav2vec2",
    "wav2vec2-bert",
    "wavlm",
)


class UnknownArchitectureError(UserError):
    """A model without a config.json that is not in this table either."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A parameter count as its authors gave it."""

    parameters: int
    unit: int
    """It is rounded to a multiple of this."""
    of: str
    """What was counted."""
    source: str


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What one model is made of."""

    name: str
    kind: str
    """`llm`, `whisper`, `beats`, `ced` or `audio`."""
    config: dict[str, Any]
    """Fields of its configuration; `model_type` is there for every kind but `beats`."""
    quantized: str | None = None
    """How its weights are stored, where they are stored quantised."""
    published: Published | None = None
    source: str = ""
    """Where the facts were read."""


def find_architecture(path: str, kind: str | None = None) -> Architecture:
    """The facts of what a configuration names: a folder, a hub name (with or without revision), or a `.pt` file's name.

    A `config.json` in the folder, in our cache of weights or in the hub's comes first; then the table, by the whole
    name or by its last part, so that `weights/Llama-3.2-1B-Instruct` is found before it is downloaded.

    Raises:
        UnknownArchitectureError: with the known names.
        UserError: it is of another `kind` than the one asked for.
    """
    facts = _find(path)
    if kind not in (None, facts.kind):
        found = "a language model" if facts.kind == "llm" else f"an audio encoder ({facts.kind})"
        raise UserError(f"{path!r} is {found}, expected {'a language model' if kind == 'llm' else kind}")
    return facts


def _find(path: str) -> Architecture:
    described = _config_file(path)
    if described is not None:
        config = json.loads(described.read_text(encoding="utf-8"))
        return Architecture(
            name=path,
            kind=_kind_of(config),
            config=config,
            quantized=stored_quantization(config.get("quantization_config")),
            source=str(described),
        )
    table = _by_name()
    name = path.partition("@")[0].rstrip("/")
    for candidate in (name, Path(name).name):
        if candidate.lower() in table:
            return table[candidate.lower()]
    nearest = difflib.get_close_matches(Path(name).name.lower(), [Path(known).name.lower() for known in table], n=1)
    meant = [known for known in known_names() if nearest and Path(known).name.lower() == nearest[0]]
    raise UnknownArchitectureError(
        f"the architecture of {path!r} is not known: it is neither a folder with a config.json nor a known model"
        f"{f' (did you mean {meant[0]}?)' if meant else ''}. Give a folder with its config.json, or one of: "
        f"{', '.join(known_names())}"
    )


def known_names() -> list[str]:
    """Every name in the table, hub names first."""
    names = {name for file in _files() for name in (*file["names"], *file.get("quantized", {}))}
    return sorted(names, key=lambda name: ("/" not in name, name.lower()))


def all_architectures() -> list[Architecture]:
    """One per file of the table, under its first name."""
    return [_row(file, file["names"][0]) for file in _files()]


@functools.cache
def _files() -> tuple[dict[str, Any], ...]:
    return tuple(json.loads(file.read_text(encoding="utf-8")) for file in sorted(FOLDER.glob("*.json")))


@functools.cache
def _by_name() -> dict[str, Architecture]:
    """Lower-case name, whole and last part -> facts."""
    table: dict[str, Architecture] = {}
    for file in _files():
        for name in (*file["names"], *file.get("quantized", {})):
            row = _row(file, name)
            table[name.lower()] = row
            table.setdefault(Path(name).name.lower(), row)
    return table


def _row(file: dict[str, Any], name: str) -> Architecture:
    published = file.get("published")
    return Architecture(
        name=name,
        kind=file["kind"],
        config=dict(file["config"]),
        quantized=file.get("quantized", {}).get(name),
        published=None if published is None else Published(**published),
        source="configs/architectures",
    )


def _config_file(path: str) -> Path | None:
    """The config.json of a folder, or of a hub name that was brought or downloaded before."""
    local = Path(path).expanduser() / "config.json"
    if local.is_file():
        return local
    kept = cached_weights(path)
    if kept is not None:
        return kept / "config.json"
    name, _, revision = path.partition("@")
    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision or None)
    except HFValidationError:  # it reads as a path, not as a hub name
        return None
    return Path(cached) if isinstance(cached, str) else None


def _kind_of(config: dict[str, Any]) -> str:
    model_type = config.get("model_type", "")
    return "audio" if model_type in AUDIO_TYPES else KINDS.get(model_type, "llm")


def stored_quantization(settings: dict[str, Any] | None) -> str | None:
    """How weights are stored, by the `quantization_config` of their config.json: the name of a back-end, if any."""
    if not settings:
        return None
    if settings.get("load_in_4bit"):
        return "nf4"
    if settings.get("load_in_8bit"):
        return "int8"
    method = settings.get("quant_method", "unknown")
    method = str(getattr(method, "value", method))
    if method == "torchao":
        return "torchao_int4" if "int4" in str(settings.get("quant_type")).lower() else "torchao_int8"
    return method

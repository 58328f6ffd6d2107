"""The files that a model's parts are read from: local ones, and those that the hub's cache has of a hub name."""

from __future__ import annotations

from pathlib import Path

from configs.sections import ENCODER_PATHS, ModelConfig
from models.hub import cached_folder
from support.content_hash import ContentHashes

NO_MODEL = (".md", ".lock", "LICENSE")


def file_hashes(config: ModelConfig, contents: ContentHashes) -> dict[str, list[tuple[str, str]]]:
    """For each key that names a part of the model: name and hash of each of its files.

    A hub name that the cache does not have (nothing could then be loaded from it) has its name alone.
    """
    found = {}
    for key in ("llama_path", *ENCODER_PATHS):
        path = getattr(config, key)
        found[key] = [] if not path else _of(path, config.token, contents)
    return found


def _of(path: str, token: str | None, contents: ContentHashes) -> list[tuple[str, str]]:
    place = Path(path)
    if not place.exists():
        folder = cached_folder(path, token)
        if folder is None:
            return [(path, "absent")]
        place = folder
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if _counts(file, place))
    return [("" if file == place else file.relative_to(place).as_posix(), contents.of_weights(file)) for file in files]


def _counts(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and not file.name.endswith(NO_MODEL) and file.is_file()

"""From a YAML file and `--options` to plain, renamed, resolved mappings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs import compat
from configs.parsing import (
    ConfigError,
    Origin,
    annotation_of,
    nullable,
    takes_list,
    takes_text,
    yaml_lines,
    yaml_type,
)
from configs.paths import did_you_mean
from support.file_kinds import mistaken

SECTIONS = ("wandb", "model", "distillation", "generate", "datasets", "run")
YAML_NULLS = ("", "~", "null", "Null", "NULL")


def read(path: str, overrides: list[str], schema: type) -> tuple[dict[str, Any], Origin, compat.Translation]:
    """The file's content with overrides applied, interpolations resolved and the family's keys renamed; where each
    value came from; and what became of the family's keys. `schema` is the dataclass of all sections, for the types of
    overrides.

    Raises:
        ConfigError: unreadable file, broken YAML, an override that is not `key=value`, an interpolation that fails.
    """
    file = Path(path)
    if not file.is_file():
        if file.is_dir():
            raise ConfigError(f"{path}: is a folder; expected a YAML file.{did_you_mean(file / file.name, '*.y*ml')}")
        raise ConfigError(f"{path}: no such file{_nearest_file(file)}")
    found = mistaken(file, text_is_right=True)
    if found and file.stat().st_size:  # an empty file has all the defaults
        raise ConfigError(f"{path}: {found}")
    try:
        text = file.read_text(encoding="utf-8")
        lines = yaml_lines(text)
        content = OmegaConf.create(text) if text.strip() else OmegaConf.create({})
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except OmegaConfBaseException as error:  # a key that is null or a list
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    if not OmegaConf.is_dict(content):
        raise ConfigError(
            f"{path}: expected sections ({', '.join(SECTIONS)}), found {yaml_type(OmegaConf.to_object(content))}"
        )

    raw = _split_overrides(overrides)
    settings = OmegaConf.create({})
    for key, text in raw.items():
        try:
            OmegaConf.update(settings, key, _value_of(text, annotation_of(compat.our_key(key), schema)))
        except OmegaConfBaseException as error:
            raise ConfigError(f"--options (over {path}): {key}: {' '.join(str(error).split())}") from None
    try:
        given = OmegaConf.to_container(OmegaConf.merge(content, settings), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    for section, value in given.items():
        if (value is not None or section in raw) and not isinstance(value, dict) and section in SECTIONS:
            place = f"--options (over {path})" if section in raw else path
            raise ConfigError(f"{place}: {section}: expected a mapping, found {yaml_type(value)}")
    given = {section: value for section, value in given.items() if value is not None or section not in SECTIONS}
    _read_none(given, "", schema)
    translation = compat.translate(given, path, frozenset(raw))
    return given, Origin(file=path, lines=lines, overrides=raw, renamed=translation.renamed), translation


def _read_none(given: dict[str, Any], prefix: str, schema: type) -> None:
    """Python's None, written where null is allowed, is null; YAML reads it as the text "None"."""
    for name, value in given.items():
        if isinstance(value, dict):
            _read_none(value, f"{prefix}{name}.", schema)
        elif value == "None" and nullable(annotation_of(compat.our_key(f"{prefix}{name}"), schema)):
            given[name] = None


def _split_overrides(overrides: list[str]) -> dict[str, str]:
    raw: dict[str, str] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--options: expected section.key=value, found {override!r}")
        raw.pop(key.strip(), None)  # the last one wins, over `section.key` within a section given before, too
        raw[key.strip()] = value
    return raw


def _value_of(text: str, annotation: Any) -> Any:
    """The value of the text after `key=` for a field. Where text is expected it is the text itself, not parsed as YAML
    (`#`, `@x`, `USER: {}`), without surrounding quotes; an empty text is null where null is allowed."""
    bare = text.strip()
    in_quotes = len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "\"'"
    if takes_text(annotation) and not in_quotes and not (takes_list(annotation) and bare.startswith("[")):
        if bare in YAML_NULLS:
            return None if bare or nullable(annotation) else ""
        return text
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    except yaml.YAMLError:
        return text  # no value of the type that is expected: an error with the key's name, later


def _nearest_file(file: Path) -> str:
    """', did you mean ...' with a YAML in the folder of a mistyped one, or ''."""
    folder = file.parent
    if not folder.is_dir():
        return f" (nor a folder {folder})"
    meant = did_you_mean(file, "*.y*ml")
    return f".{meant}" if meant else ""

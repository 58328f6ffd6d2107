"""Checks that a configuration's paths exist; files that come with the program."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.family_reading import MODELS
from configs.known_weights import bringing_command, cached_weights
from configs.parsing import Problem, raise_problems
from configs.sections import ENCODER_PATHS
from support.pointers import pointed

PROGRAM = Path(__file__).resolve().parent.parent
SHIPPED_PROMPTS = {"train_prompt.json": "prompts/train.json", "test_prompt.json": "prompts/test.json"}
"""The family's prompt files, in a folder of any name -> the program's own, which take their place where they are
absent."""
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")  # name, org/name, org/name@revision


def did_you_mean(path: Path, pattern: str = "*") -> str:
    """' Did you mean ...?' with the nearest name in the folder of a path that does not exist, or ''."""
    folder = path.parent
    found = difflib.get_close_matches(path.name, [f.name for f in folder.glob(pattern)], n=1) if folder.is_dir() else []
    return f" Did you mean {folder / found[0]}?" if found else ""


def default_output_dir(path: str) -> str:
    """`outputs/demo/stage1` for `configs/demo/stage1.yaml`; `outputs/mine` for `mine.yaml`."""
    file = Path(path)
    folder = file.resolve().parent.name
    parent = Path("outputs") if folder == "configs" or file.parent == Path(".") else Path("outputs") / folder
    return str(parent / file.stem)


def beside(config_path: str, path: str) -> str:
    """A path given in a YAML: relative to the working folder, else to the YAML's folder."""
    candidate = Path(config_path).parent / path
    return str(candidate) if not Path(path).exists() and candidate.exists() else path


def program_file(path: str | Path) -> Path:
    """A relative path as given; if it does not exist, the file of that name that comes with the program, if any."""
    given = Path(path).expanduser()
    return PROGRAM / given if not given.exists() and (PROGRAM / given).is_file() else given


def prompt_file(config_path: str, path: str) -> str:
    """A prompt file given in a YAML: relative to the working folder, to the YAML's folder, or the program's own."""
    found = beside(config_path, path)
    given = Path(found).expanduser()
    if given.exists() or given.is_absolute() or program_file(path).exists():
        return found
    return SHIPPED_PROMPTS.get(given.name, path)


def is_hub_name(path: str) -> bool:
    """Whether text is a hub name (`org/name`, `org/name@revision`) rather than a missing path: its first part is
    neither a folder here nor one of the program's own."""
    first = path.partition("/")[0]
    here = Path(first).is_dir() or ("/" in path and (PROGRAM / first).is_dir())
    return bool(HUB_NAME.fullmatch(path)) and not here and path.strip(".") != ""


def require_paths(
    file: str, sections: Mapping[str, Any], keys: Sequence[str], place: Callable[[str], str] | None = None
) -> None:
    """See `Config.require_paths`: `sections` of a YAML `file` by their names; `place` says where a key was set."""
    raise_problems(file, missing_paths(file, sections, keys, place))


def missing_paths(
    file: str,
    sections: Mapping[str, Any],
    keys: Sequence[str],
    place: Callable[[str], str] | None = None,
    *,
    given_alone: bool = False,
) -> list[Problem]:
    """What `require_paths` raises; with `given_alone` nothing of paths that are not given."""
    problems: list[Problem] = []

    def require(key: str, *, required: bool) -> None:
        where = place(key) if place else file
        required = required and not given_alone
        problems.extend((where, problem) for problem in _missing(sections, key, where, required=required))

    for key in keys:
        if key not in MODELS:
            require(key, required=True)
            continue
        require(f"{key}.llama_path", required=True)
        encoders = [f"{key}.{name}" for name in ENCODER_PATHS]
        for encoder in (*encoders, f"{key}.ckpt", f"{key}.speech_llama_proj_model"):
            require(encoder, required=False)
        if not given_alone and not any(_value(sections, encoder) for encoder in encoders):
            problems.append((file, f"the model has no encoder; set at least one of {', '.join(encoders)}"))
    return problems


def _value(sections: Mapping[str, Any], key: str) -> Any:
    section, _, rest = key.partition(".")
    return operator.attrgetter(rest)(sections[section]) if rest else sections[section]


def _missing(sections: Mapping[str, Any], key: str, where: str, *, required: bool) -> list[str]:
    """What is wrong with the paths of a key that was set at a place."""
    section, _, name = key.rpartition(".")
    fields = _value(sections, section).__dataclass_fields__
    assert "path" in fields[name].metadata, f"{key} holds no path"
    kind, value = fields[name].metadata["path"], _value(sections, key)
    by_option = where.startswith("--")
    if not value:
        message = (
            f"{key} is set to nothing. Leave that option out, or write {key}={_example(kind)}"
            if by_option
            else f"{key} is not set. Set it in the file, or add: --options {key}={_example(kind)}"
        )
        return [message] if required else []
    given = (value,) if isinstance(value, str) else value
    fix = "Correct that option" if by_option else f"Fix it in the file, or add: --options {key}={_example(kind)}"
    return [text for path in given if (text := _absent(key, kind, path, sections["datasets"].prefix, fix))]


def _absent(key: str, kind: str, path: str, prefix: str | None, fix: str) -> str | None:
    """Where a path was looked for and how to fix it, or None where it exists."""
    places = [Path(path)]
    if kind == "annotation" and prefix and not places[0].is_absolute():
        places.append(Path(prefix) / path)
    if kind == "prompts":
        places.append(program_file(path))
    if any(place.exists() or pointed(place).exists() for place in places):
        return None
    if kind == "model" and (is_hub_name(path) or cached_weights(path) is not None):
        return None
    looked = " and at ".join(dict.fromkeys(str(place.absolute()) for place in places))
    also = ""
    if kind == "annotation" and len(places) == 1 and not places[0].is_absolute():
        also = ". Or name the data's folder: --options datasets.prefix=FOLDER"
    elif kind == "annotation" and len(places) > 1 and not Path(prefix).is_dir():
        also = f". datasets.prefix, {prefix!r}, is no folder"
    hub = ", and it is no hub name (org/name or org/name@revision)" if kind == "model" else ""
    command = bringing_command(path) if kind == "model" else None
    if command:
        also = f". {command} brings it"
    meant = next(filter(None, map(did_you_mean, places)), "")
    return f"{key}: {path!r} does not exist (looked at {looked}){hub}.{meant} {fix}{also}"


def _example(kind: str) -> str:
    return {"model": "FOLDER_OR_HUB_NAME", "folder": "FOLDER", "any": "FOLDER_OR_FILE"}.get(kind, "PATH_TO_FILE")

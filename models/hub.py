"""Folders and hub names of models, and the reason why loading one failed."""

from pathlib import Path


def split_revision(name: str) -> tuple[str, str | None]:
    """`organisation/model@revision` as (name, revision). The name of an existing folder is not split."""
    if Path(name).exists() or "@" not in name:
        return name, None
    base, _, revision = name.rpartition("@")
    return base, revision or None


def loading_problem(path: str, error: Exception) -> str:
    """The reason why the library could not load a folder or hub name, in one line."""
    if Path(path).exists():
        return _first_line(error)
    if "couldn't connect" in str(error):
        return "no such folder here, and the hub cannot be reached"
    return f"no such folder here; {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]

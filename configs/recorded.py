"""What an adapter's folder records of the model that it was trained in: whose rules the model followed."""

from __future__ import annotations

from pathlib import Path

import yaml

from support.command_line import UserError
from support.pointers import pointed

CONFIG_FILE = "config.yaml"
RUN_POINTERS = ("best", "last")  # of a run's folder, in the order of preference


def recorded_legacy(ckpt: str) -> str | None:
    """`model.legacy` as an adapter's folder records it, also that of a file in it or of a run's best; None without a
    record."""
    folder = pointed(Path(ckpt))
    folder = folder if folder.is_dir() else folder.parent
    for place in (folder, *(pointed(folder / name) for name in RUN_POINTERS)):
        try:
            record = yaml.safe_load((place / CONFIG_FILE).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            continue
        model = record.get("model") if isinstance(record, dict) else None
        legacy = model.get("legacy") if isinstance(model, dict) else None
        return {False: "off", True: "exact"}.get(legacy, legacy)  # how YAML reads the bare words off and on
    return None


def legacy_to_use(ckpt: str, wanted: str) -> str:
    """The rules for an adapter: those of its record, though `exact` may be asked for where it says `weights`, and the
    other way round; `wanted` where there is no record."""
    recorded = recorded_legacy(ckpt)
    return wanted if recorded is None or _alike(recorded, wanted) else recorded


def require_recorded_rules(ckpt: str, legacy: str) -> None:
    """Check that a model follows the rules that its adapter was trained under.

    Raises:
        UserError: it does not, and its texts would be others without a word.
    """
    recorded = recorded_legacy(ckpt)
    if recorded is not None and not _alike(recorded, legacy):
        raise UserError(
            f"model.legacy is {legacy}, but {ckpt} was trained, or converted, with model.legacy: {recorded}, by its "
            f"{CONFIG_FILE}; set model.legacy: {recorded}"
        )


def _alike(first: str, second: str) -> bool:
    return (first == "off") == (second == "off")

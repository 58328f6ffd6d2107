"""Reads YAML where OmegaConf is not installed, as on a GPU machine that has PyTorch and transformers but not all of
requirements.txt. The systems' files are plain YAML: interpolations are not resolved here.

Imported by the package itself, before the program's own modules.
"""

import importlib.util
import sys
from types import ModuleType
from typing import Any

import yaml


class PlainYaml:
    """What configs/loading.py uses of OmegaConf, on plain dictionaries."""

    @staticmethod
    def create(content: Any) -> Any:
        return yaml.safe_load(content) if isinstance(content, str) else content

    @staticmethod
    def is_dict(content: Any) -> bool:
        return isinstance(content, dict)

    @staticmethod
    def to_object(content: Any) -> Any:
        return content

    @staticmethod
    def to_container(content: Any, *, resolve: bool = False) -> Any:
        return content

    @staticmethod
    def from_dotlist(settings: list[str]) -> dict[str, Any]:
        return {key: yaml.safe_load(value) for key, _, value in (setting.partition("=") for setting in settings)}

    @staticmethod
    def update(content: dict[str, Any], key: str, value: Any) -> None:
        *sections, name = key.split(".")
        for section in sections:
            content = content.setdefault(section, {})
        content[name] = value

    @classmethod
    def merge(cls, content: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
        """`settings` over `content`, section by section."""
        merged = dict(content)
        for key, value in settings.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = cls.merge(merged[key], value) if both else value
        return merged


def fill_in() -> list[str]:
    """Put `PlainYaml` in OmegaConf's place where that is not installed; the names of the packages replaced."""
    if "omegaconf" in sys.modules or importlib.util.find_spec("omegaconf"):
        return []
    package, errors = ModuleType("omegaconf"), ModuleType("omegaconf.errors")
    package.OmegaConf = PlainYaml
    errors.OmegaConfBaseException = yaml.YAMLError
    sys.modules |= {"omegaconf": package, "omegaconf.errors": errors}
    return ["omegaconf"]


ABSENT = fill_in()
"""Packages that have a substitute in this process."""

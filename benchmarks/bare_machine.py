"""Lets benchmarks of random weights run where only torch, transformers, peft and accelerate are installed.

The program imports soundfile and soxr, which read recordings, and omegaconf, which reads YAML. No recording is read
here, and the systems' files are plain YAML: where a package is absent, a placeholder takes its place in this process.
Import this module before the program's own.
"""

import importlib.util
import sys
from types import ModuleType
from typing import Any, NoReturn

import yaml

READERS = ("soundfile", "soxr")


class _Absent(ModuleType):
    """A package that is not installed: it can be imported, not used."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"{self.__name__} is not installed here; install requirements.txt to read recordings")


class PlainYaml:
    """What the program uses of OmegaConf, without interpolations."""

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
    def to_container(content: Any, **_: Any) -> Any:
        return content

    @staticmethod
    def from_dotlist(overrides: list[str]) -> dict[str, Any]:
        nested: dict[str, Any] = {}
        for override in overrides:
            key, _, value = override.partition("=")
            *sections, name = key.split(".")
            place = nested
            for section in sections:
                place = place.setdefault(section, {})
            place[name] = yaml.safe_load(value) if value else ""
        return nested

    @classmethod
    def merge(cls, *contents: dict[str, Any]) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for content in contents:
            for key, value in content.items():
                both = isinstance(value, dict) and isinstance(merged.get(key), dict)
                merged[key] = cls.merge(merged[key], value) if both else value
        return merged


def fill_in() -> list[str]:
    """Put placeholders for what is not installed; returns the names."""
    absent = [
        name for name in (*READERS, "omegaconf") if name not in sys.modules and not importlib.util.find_spec(name)
    ]
    for name in absent:
        if name in READERS:
            sys.modules[name] = _Absent(name)
    if "omegaconf" in absent:
        package, errors = ModuleType("omegaconf"), ModuleType("omegaconf.errors")
        package.OmegaConf = PlainYaml
        errors.OmegaConfBaseException = yaml.YAMLError
        sys.modules |= {"omegaconf": package, "omegaconf.errors": errors}
    return absent


ABSENT = fill_in()
"""Packages that are placeholders in this process."""

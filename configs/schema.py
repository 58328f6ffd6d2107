"""What a YAML may say: sections `wandb`, `model`, `distillation`, `generate`, `datasets`, `run`, with the key names and
defaults of the SALMONN family. Loading is strict: an unknown key, a wrong type or a value out of range is a
`ConfigError` that names the file, the line, the key, what was found and the nearest valid name. The keys are in
`configs/sections.py`.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from configs import augmentation, compat, loading, paths
from configs.parsing import Builder, ConfigError, Origin, Problem, dataclass_of, field_types, option, raise_problems
from configs.recorded import legacy_to_use
from configs.sections import (
    DatasetsConfig,
    DistillationConfig,
    GenerateConfig,
    ModelConfig,
    OptimsConfig,
    RunConfig,
    WandbConfig,
)
from support.command_line import UserError

__all__ = [
    "Config",
    "ConfigError",
    "DatasetsConfig",
    "DistillationConfig",
    "GenerateConfig",
    "ModelConfig",
    "OptimsConfig",
    "RunConfig",
    "WandbConfig",
    "add_config_arguments",
    "config_from_arguments",
    "dump_config",
    "holds_secret",
    "load_config",
]

KEY_FIRST = re.compile(rf"({'|'.join(loading.SECTIONS)})\.\w+")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One YAML file, checked."""

    wandb: WandbConfig = option(factory=WandbConfig)
    """Weights & Biases."""
    model: ModelConfig = option(factory=ModelConfig)
    """The model."""
    distillation: DistillationConfig = option(factory=DistillationConfig)
    """Learning from a teacher."""
    generate: GenerateConfig = option(factory=GenerateConfig)
    """Text generation."""
    datasets: DatasetsConfig = option(factory=DatasetsConfig)
    """Data."""
    run: RunConfig = option(factory=RunConfig)
    """The run."""
    path: str = option("", internal=True)
    """The file it was read from."""
    ignored: tuple[str, ...] = option((), internal=True)
    """Keys of the family that have no effect here, each with the reason; for the start of a log."""
    notes: tuple[str, ...] = option((), internal=True)
    """What was read in another way than written, or taken over from a program's code; for the start of a log too."""
    origin: Origin | None = dataclasses.field(default=None, compare=False, repr=False, metadata={"internal": True})
    """Where each value was set, for errors; None where it was made in Python."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know before the run starts: `ignored`, a line for each reason, and `notes`."""
        keys: dict[str, list[str]] = {}
        for line in self.ignored:
            key, _, reason = line.partition(":")
            keys.setdefault(reason, []).append(key)
        return (*(f"{', '.join(names)}:{reason}" for reason, names in keys.items()), *self.notes)

    def to_dict(self, secrets: bool = False) -> dict[str, dict[str, Any]]:
        """The sections as plain data. Without `secrets`, secret keys are null."""
        return {s: _plain(getattr(self, s), secrets) for s in loading.SECTIONS}

    def require_paths(self, *keys: str) -> None:
        """Check, before anything is loaded, that the files of dotted keys are given and exist. `model` means the
        language model and every encoder (`distillation.teacher` likewise); without keys, `model` is checked. Hub names
        are accepted instead of folders.

        Raises:
            ConfigError: for all keys that are missing or whose files do not exist, with the place and the fix.
        """
        place = self.origin.of if self.origin is not None else None
        paths.require_paths(self.path, vars(self), keys or ("model",), place)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Prefix errors raised inside with the file's name, where the message begins with a key (`model.llama_path:
        …`)."""
        try:
            yield
        except ConfigError:
            raise
        except UserError as error:
            if self.path and KEY_FIRST.match(str(error)):
                raise ConfigError(f"{self.path}: {error}") from error
            raise

    def with_adapter(self, ckpt: str) -> Config:
        """The same with another adapter. `model.legacy` is that of the adapter's own record; without a record, the
        default for its kind unless the file sets it."""
        by_default = dataclasses.replace(self.model, legacy=None).legacy
        wanted = None if self.model.legacy == by_default else self.model.legacy
        model = dataclasses.replace(self.model, ckpt=ckpt, legacy=wanted)
        legacy = legacy_to_use(ckpt, model.legacy)
        origin = self.origin and dataclasses.replace(self.origin, arguments={"model.ckpt": "--ckpt"})
        return dataclasses.replace(self, model=dataclasses.replace(model, legacy=legacy), origin=origin)

    def second_stage(self, ckpt: str, overrides: Sequence[str] = ()) -> Config | None:
        """The configuration of the stage after this one, starting from adapter `ckpt`; None without
        `run.auto_second`."""
        if not self.run.auto_second:
            return None
        if self.run.second_stage_config is not None:
            path = paths.beside(self.path, self.run.second_stage_config)
            config = load_config(path, overrides)
            model = dataclasses.replace(config.model, ckpt=ckpt, legacy=self.model.legacy)
            return dataclasses.replace(config, model=model)
        if self.datasets.train_stage2_path is None:
            raise ConfigError(
                f"{self.path}: run.auto_second is true, but neither run.second_stage_config nor "
                "datasets.train_stage2_path says what the second stage trains on; set one, or run.auto_second: false"
            )
        datasets = dataclasses.replace(
            self.datasets,
            train_ann_path=self.datasets.train_stage2_path,
            valid_ann_path=self.datasets.valid_stage2_path or self.datasets.valid_ann_path,
        )
        run = dataclasses.replace(
            self.run,
            auto_second=False,
            resume=None,
            optims=self.run.optims_stage2 or self.run.optims,
            output_dir=self.run.output_dir_stage2 or f"{self.run.output_dir.rstrip('/')}_stage2",
        )
        model = dataclasses.replace(self.model, ckpt=ckpt)
        return dataclasses.replace(self, model=model, datasets=datasets, run=run, ignored=(), notes=())  # reported once


def _plain(section: Any, secrets: bool) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if field.metadata.get("secret") and not secrets:
            value = None
        elif dataclasses.is_dataclass(value):
            value = _plain(value, secrets)
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, dict):
            value = copy.deepcopy(value)
        result[field.name] = value
    return result


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = (), *, needs: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply `section.key=value` overrides.

    Keys of the SALMONN family with a better name here are mapped, those without effect are listed in `Config.ignored`.
    OmegaConf's interpolation (`${run.seed}`, `${oc.env:HOME}`) works. Overrides are YAML, except for keys of text:
    there everything after `=` is the text, unless it is quoted. `key=` and `key=null` set null, if the key may be null.

    Args:
        needs: keys as `Config.require_paths` takes them; where there is an error anyway, it names those of their paths
            that do not exist, too.

    Raises:
        ConfigError: naming file, line, key, what was found and the nearest valid name.
    """
    given, origin, translation = loading.read(os.fspath(path), list(overrides), Config)
    builder = Builder(origin, _places_of_names())
    for key, text in translation.problems:
        builder.add(key, text)
    augmentation_notes = _check_augmentation(given, builder)
    config = builder.build(Config, given)
    if builder.problems:
        raise_problems(origin.file, [*builder.problems, *_missing_paths(given, origin, needs)])
    run = config.run
    if not (given.get("run") or {}).get("output_dir"):  # null and "" mean "not given" in the family's files
        if "run.output_dir" in origin.overrides:
            raise ConfigError(f"{origin.of('run.output_dir')}: run.output_dir: expected a folder, found nothing")
        run = dataclasses.replace(run, output_dir=paths.default_output_dir(origin.file))
    notes = [*translation.notes, *augmentation_notes]
    model = _located(config.model, "model", origin, notes)
    distillation = config.distillation
    if distillation.teacher is not None:
        teacher = _located(distillation.teacher, "distillation.teacher", origin, [])
        distillation = dataclasses.replace(distillation, teacher=teacher)
    return dataclasses.replace(
        config,
        model=model,
        distillation=distillation,
        run=run,
        path=origin.file,
        ignored=tuple(translation.ignored),
        notes=tuple(notes),
        origin=origin,
    )


def _missing_paths(given: Mapping[str, Any], origin: Origin, needs: Sequence[str]) -> list[Problem]:
    """Those of the paths of `needs` that do not exist, in a file whose other content is wrong."""
    only_paths = {
        section: {field.name: given[section].get(field.name) for field in dataclasses.fields(cls) if _is_path(field)}
        for section, cls in field_types(Config).items()
        if section in loading.SECTIONS and isinstance(given.get(section), Mapping)
    }
    config = Builder(origin, {}).build(Config, only_paths)
    if config is None:
        return []
    sections = vars(config) | {"model": _located(config.model, "model", origin, [])}
    return paths.missing_paths(origin.file, sections, needs, origin.of, given_alone=True)


def _is_path(field: dataclasses.Field) -> bool:
    return field.metadata.get("path", "output") != "output"


def _places_of_names() -> dict[str, str]:
    """A key's last name -> its dotted key, of all sections and of the mappings in them; the shallowest wins."""
    found: dict[str, str] = {}
    level = {section: field_types(Config)[section] for section in loading.SECTIONS}
    while level:
        inner: dict[str, Any] = {}
        for prefix, cls in level.items():
            for name, annotation in field_types(cls).items():
                found.setdefault(name, f"{prefix}.{name}")
                nested = dataclass_of(annotation)
                if nested is not None and nested is not ModelConfig:
                    inner[f"{prefix}.{name}"] = nested
        level = inner
    return found


def _check_augmentation(given: Mapping[str, Any], builder: Builder) -> list[str]:
    """What is wrong with `datasets.augmentation` goes to `builder`; the result is what to say of it."""
    spec = (given.get("datasets") or {}).get("augmentation")
    if not isinstance(spec, Mapping):
        return []
    reading = augmentation.read(spec)
    for key, text in reading.problems:
        builder.add(key, f"{key}: {text}")
    return reading.notes


def _located(model: ModelConfig, section: str, origin: Origin, notes: list[str]) -> ModelConfig:
    """The model with its prompt files found and the token of the environment; `notes` gets what to say of them."""
    changes: dict[str, Any] = {}
    for key in ("prompt_path", "test_prompt_path"):
        path = getattr(model, key)
        found = paths.prompt_file(origin.file, path) if path else path
        if found != path:
            changes[key] = found
            if found in paths.SHIPPED_PROMPTS.values():
                written = origin.renamed.get(f"{section}.{key}", f"{section}.{key}")
                notes.append(
                    f"{written}: there is no {path}; the prompts that come with the program are used ({found})"
                )
    token = model.token or os.environ.get("HF_TOKEN") or None
    if token != model.token:
        changes["token"] = token
    return dataclasses.replace(model, **changes) if changes else model


def dump_config(config: Config, path: str | os.PathLike[str]) -> None:
    """Write a YAML that `load_config` reads back as the same configuration, secrets left out."""

    def escaped(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: escaped(item) for key, item in value.items()}
        if isinstance(value, list):
            return [escaped(item) for item in value]
        return value.replace("${", "\\${") if isinstance(value, str) else value

    text = yaml.safe_dump(escaped(config.to_dict()), sort_keys=False, allow_unicode=True, width=120)
    Path(path).write_text(text, encoding="utf-8")


def holds_secret(override: str) -> bool:
    """Whether `section.key=value` gives a secret, which must not be shown."""
    section, _, name = override.partition("=")[0].strip().rpartition(".")
    if section in ("distillation.teacher", *compat.STUDENT_AND_TEACHER):
        section = "model"
    fields = getattr(field_types(Config).get(section), "__dataclass_fields__", {})
    return name in fields and bool(fields[name].metadata.get("secret"))


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--cfg-path FILE` and `--options section.key=value ...`."""
    parser.add_argument("--cfg-path", required=True, metavar="FILE", help="YAML file of the run")
    parser.add_argument(
        "--options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="settings that override the file's, such as run.seed=1 model.lora_rank=16",
    )


def config_from_arguments(arguments: argparse.Namespace, *, needs: Sequence[str] = ()) -> Config:
    """The configuration that parsed arguments ask for; `needs` as in `load_config`."""
    return load_config(arguments.cfg_path, arguments.options, needs=needs)

"""Keys of the SALMONN family of YAML files: which have another name here, which have no effect and why.

The family: SALMONN itself, the 3B baseline's trainer and evaluator, and the programs made from them. Their files load
unchanged; what has no effect is listed once at the start, never dropped silently. The tables are in
`configs/family_keys.py`; what a program's code adds to its files is in `configs/family_programs.py`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from configs import family_programs as programs
from configs.family_keys import ABSENT, IGNORED, RENAMED
from configs.family_programs import TEACHER
from configs.family_reading import MODELS, Reading
from configs.parsing import ConfigError, shown

__all__ = ["ABSENT", "IGNORED", "RENAMED", "STUDENT_AND_TEACHER", "Translation", "our_key", "translate"]

PLACEHOLDERS = ("<hf_token>", "")
"""Values in the family's files where a secret was removed."""

STUDENT_AND_TEACHER = {"model_S": "model", "model_T": TEACHER}
"""Sections of the distillation variant -> ours."""


@dataclass(frozen=True)
class Translation:
    """What became of a file's keys."""

    renamed: dict[str, str]
    """Our key -> the name written."""
    ignored: list[str]
    """Keys without effect, each with the reason."""
    notes: list[str]
    """What else a reader of the file should know."""
    problems: list[tuple[str, str]]
    """Keys that a user must change, as written, each with a sentence that names it."""


def translate(given: dict[str, Any], file: str, overridden: frozenset[str]) -> Translation:
    """Rename and drop the family's keys, in place.

    Raises:
        ConfigError: a section that is none, or a stage or a student that contradicts itself.
    """
    reading = Reading(given, file, overridden)
    _student_and_teacher(reading)
    _stages(reading)
    _test_files(reading)
    for section in MODELS:
        if reading.holder(section) is not None:
            programs.read_kind_of_model(reading, section)
    for pair in RENAMED.items():
        for theirs, ours in _in_every_model(*pair):
            found, value = reading.pop(theirs)
            if found:
                reading.put(ours, value, theirs)
    if given.get("canary") == {}:
        del given["canary"]
    _wandb(reading)
    for section in MODELS:
        if reading.holder(section) is not None:
            _model(reading, section)
    for key, why in IGNORED.items():
        for (place,) in _in_every_model(key):
            if reading.pop(place)[0]:
                reading.ignore(place, why)
    programs.read_distillation_of_one_section(reading)
    return Translation(reading.origins, reading.ignored, reading.notes, reading.problems)


def our_key(key: str) -> str:
    """The dotted key here of one that a user wrote, whether the family's or ours."""
    section, _, rest = key.partition(".")
    if section in STUDENT_AND_TEACHER:
        key = f"{STUDENT_AND_TEACHER[section]}.{rest}"
    if key.startswith("run.output_dir."):
        return "run.output_dir"
    return next((ours for pair in RENAMED.items() for theirs, ours in _in_every_model(*pair) if theirs == key), key)


def _in_every_model(*keys: str) -> list[tuple[str, ...]]:
    """The same keys of the model and of the teacher; keys of other sections as they are."""
    if not keys[0].startswith("model."):
        return [keys]
    return [keys, tuple(key.replace("model.", f"{TEACHER}.", 1) for key in keys)]


def _student_and_teacher(reading: Reading) -> None:
    """`model_S` and `model_T`: the student is the model, the teacher the distillation's."""
    for theirs, ours in STUDENT_AND_TEACHER.items():
        if theirs not in reading.given:
            continue
        section = reading.given.pop(theirs)
        if section is None:
            continue
        if not isinstance(section, dict):
            raise ConfigError(f"{reading.file}: {theirs}: expected a mapping, found {shown(section)}")
        if ours == TEACHER:
            distillation = reading.given.setdefault("distillation", {})
            if not isinstance(distillation, dict):
                raise ConfigError(f"{reading.file}: distillation: expected a mapping, found {shown(distillation)}")
            if distillation.get("teacher") is None:
                distillation["teacher"] = {}
        target = reading.holder(ours)
        if target is None:
            target = reading.given[ours] = {}
        reading.sections[ours] = theirs
        for name, value in section.items():
            mine = f"{ours}.{name}"
            if name in target and target[name] != value and f"{theirs}.{name}" not in reading.overridden:
                if mine in reading.overridden:
                    continue
                raise ConfigError(
                    f"{reading.file}: {theirs}.{name} and {mine} name the same thing, but they differ: "
                    f"{shown(value)} and {shown(target[name])}; keep one of them"
                )
            target[name] = value
            reading.origins[mine] = f"{theirs}.{name}"


def _stages(reading: Reading) -> None:
    """Both stages in one file: `run.output_dir` and `run.optims` as mappings of one entry a stage."""
    file, run = reading.file, reading.given.get("run", {})
    folders = run.get("output_dir")
    if isinstance(folders, dict):
        run.pop("output_dir")
        for theirs, ours in (("stage1_output_dir", "output_dir"), ("stage2_output_dir", "output_dir_stage2")):
            if folders.get(theirs):
                reading.put(f"run.{ours}", folders[theirs], f"run.output_dir.{theirs}")
        unknown = set(folders) - {"stage1_output_dir", "stage2_output_dir"}
        if unknown:
            raise ConfigError(
                f"{file}: run.output_dir.{min(unknown)}: expected text, or stage1_output_dir and stage2_output_dir"
            )
    optims = run.get("optims")
    if isinstance(optims, dict) and {"optims_1", "optims_2"} & set(optims):
        common = {name: value for name, value in optims.items() if name not in ("optims_1", "optims_2")}
        for theirs, ours in (("optims_1", "optims"), ("optims_2", "optims_stage2")):
            stage = optims.get(theirs) or {}
            if not isinstance(stage, dict):
                raise ConfigError(f"{file}: run.optims.{theirs}: expected a mapping, found {shown(stage)}")
            chosen = {name: value for name, value in common.items() if f"run.optims.{name}" in reading.overridden}
            run[ours] = {**common, **stage, **chosen}
            reading.origins.update(
                {f"run.{ours}.{name}": f"run.optims.{theirs}.{name}" for name in stage if name not in chosen}
            )


def _wandb(reading: Reading) -> None:
    """`wandb.log: true/false` is the family's switch; `wandb.mode` is ours and wins."""
    found, log = reading.pop("wandb.log")
    if not found or log is None:
        return
    if not isinstance(log, bool):
        raise ConfigError(f"{reading.file}: wandb.log: expected true or false, found {shown(log)}")
    section = reading.given["wandb"]
    has_key = bool(section.get("key") or os.environ.get("WANDB_API_KEY"))
    section.setdefault("mode", ("online" if has_key else "offline") if log else "disabled")


def _test_files(reading: Reading) -> None:
    """nlp-07: a test file for each stage; both are evaluated."""
    paths = {name: reading.pop(f"datasets.{name}")[1] for name in ("test_ann_path_1", "test_ann_path_2")}
    given = {name: path for name, path in paths.items() if path not in (None, "")}
    if given:
        values = list(given.values())
        reading.put("datasets.test_ann_path", values[0] if len(values) == 1 else values, f"datasets.{min(given)}")


def _model(reading: Reading, section: str) -> None:
    """A model's switches that are a value of another key here, and what its program's code adds."""
    model = reading.holder(section)
    programs.take_pruned_model(reading, section)
    programs.take_over_defaults(reading, section)
    programs.read_encoders(reading, section)
    if model.get("token") in PLACEHOLDERS:
        model.pop("token", None)
    if isinstance(model.get("legacy"), bool):  # YAML also reads the bare words on and off as booleans
        model["legacy"] = "exact" if model["legacy"] else "off"
    programs.read_pruning_of_checkpoints(reading, section)
    programs.read_quantisation(reading, section)
    programs.refuse_absent_features(reading, section)

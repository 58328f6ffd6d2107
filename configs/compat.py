"""Keys of the SALMONN family of YAML files: which have another name here, which have no effect and why.

The family: SALMONN itself, the 3B baseline's trainer and evaluator, and the programs made from them. Their files load
unchanged; what has no effect is listed once at the start, never dropped silently.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.parsing import ConfigError, shown

RENAMED = {
    "model.llm_path": "model.llama_path",
    "model.gemma_path": "model.llama_path",
    "model.qwen_path": "model.llama_path",
    "model.canary_path": "model.parakeet_path",
    "model.freeze_canary": "model.freeze_parakeet",
    "model.speech_gemma_proj_model": "model.speech_llama_proj_model",
    "model.speech_qwen_proj_model": "model.speech_llama_proj_model",
    "model.freeze_speech_gemma_proj": "model.freeze_speech_llama_proj",
    "model.freeze_speech_qwen_proj": "model.freeze_speech_llama_proj",
    "datasets.train_ann_path_1": "datasets.train_ann_path",
    "datasets.train_stage1_path": "datasets.train_ann_path",
    "datasets.valid_ann_path_1": "datasets.valid_ann_path",
    "datasets.valid_stage1_path": "datasets.valid_ann_path",
    "datasets.train_ann_path_2": "datasets.train_stage2_path",
    "datasets.valid_ann_path_2": "datasets.valid_stage2_path",
    "datasets.test_asr_path": "datasets.test_ann_path_asr",
    "datasets.test_aac_path": "datasets.test_ann_path_aac",
    "run.use_wandb": "wandb.log",
    "run.wandb_project": "wandb.project",
    "run.wandb_entity": "wandb.entity",
    "run.wandb_name": "wandb.name",
    "run.wandb_local_dir": "wandb.dir",
    "run.exp_name": "wandb.name",
}
"""Dotted key of the family -> dotted key here."""

_LAUNCHER = "the launcher (torchrun) sets the number of processes and their address"
_MANIFEST = "clips are read from the annotation files"
IGNORED = {
    "model.only_preprocessor": "parts are loaded when they are needed",
    "model.beats_to_eat": "EAT is not supported; BEATs is used if model.beats_path is set",
    "model.distillation": "distillation is on if distillation.teacher (model_T) is given",
    "model.is_output_saved": "the teacher runs during training; saved outputs are not read",
    "model.device_8bit": "run.device sets the model's device",
    "generate.end_sym": "model.end_sym is the end symbol, and every special token is removed from texts",
    "datasets.whisper_path": "features are computed for model.whisper_path",
    "datasets.whisper_path2": "the teacher's features are computed for distillation.teacher.whisper_path",
    "datasets.stage1_use_valid": "validation runs if datasets.valid_ann_path is given",
    "datasets.stage2_use_valid": "validation runs if datasets.valid_stage2_path or valid_ann_path is given",
    "datasets.train_manifest_path": _MANIFEST,
    "datasets.valid_manifest_path": _MANIFEST,
    "datasets.asr_manifest_path": _MANIFEST,
    "datasets.aac_manifest_path": _MANIFEST,
    "datasets.mock_manifest_path": _MANIFEST,
    "run.gpu": "run.device, or the launcher, selects the GPU",
    "run.device2": "teacher and student run on run.device",
    "run.use_distributed": _LAUNCHER,
    "run.world_size": _LAUNCHER,
    "run.dist_url": _LAUNCHER,
    "run.dist_backend": _LAUNCHER,
    "run.distributed": _LAUNCHER,
    "run.rank": _LAUNCHER,
}
"""Dotted key of the family -> why it has no effect here."""

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CED_NAMES = {f"ced_{size}": f"mispeech/ced-{size}" for size in ("tiny", "mini", "small", "base")}
"""Names in nlp-07's code -> hub names."""

PLACEHOLDERS = ("<hf_token>", "")
"""Values in the family's files where a secret was removed."""

TEACHER = "distillation.teacher"
STUDENT_AND_TEACHER = {"model_S": "model", "model_T": TEACHER}
"""Sections of the distillation variant -> ours."""


@dataclass(frozen=True)
class _Reading:
    """A file while its keys are being renamed; `given` is changed in place."""

    given: dict[str, Any]
    file: str
    overridden: frozenset[str]
    """Dotted keys given after `--options`, as they were written."""
    origins: dict[str, str] = field(default_factory=dict)
    """Our key -> the name written, where they differ."""
    sections: dict[str, str] = field(default_factory=dict)
    """Our section -> the section written, where they differ."""
    ignored: list[str] = field(default_factory=list)
    """Keys without effect, each with the reason."""

    def ignore(self, key: str, why: str) -> None:
        self.ignored.append(f"{self.written(key)}: ignored, because {why}")

    def holder(self, section: str) -> dict[str, Any] | None:
        """The mapping at a dotted name, or None."""
        found: Any = self.given
        for name in section.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else None

    def written(self, key: str) -> str:
        """A key as written in the file, with the section it was written in."""
        section, _, name = key.rpartition(".")
        return f"{self.sections.get(section, section)}.{name}"

    def is_overridden(self, key: str) -> bool:
        return key in self.overridden or self.written(key) in self.overridden

    def pop(self, key: str) -> tuple[bool, Any]:
        section, _, name = key.rpartition(".")
        holder = self.holder(section)
        return (True, holder.pop(name)) if holder is not None and name in holder else (False, None)

    def put(self, ours: str, value: Any, theirs: str) -> None:
        """Store a renamed value; where our key is there too, an override wins, equal or empty values do no harm."""
        section, _, name = ours.rpartition(".")
        holder = self.holder(section)
        if holder is None:
            holder = self.given[section] = {}
        present = holder.get(name)
        if present in (None, "") or present == value or (self.is_overridden(theirs) and not self.is_overridden(ours)):
            holder[name] = value
            self.origins[ours] = self.written(theirs)
        elif value not in (None, "") and not self.is_overridden(ours):
            other = self.origins.get(ours, self.written(ours))
            raise ConfigError(
                f"{self.file}: {self.written(theirs)} and {other} name the same thing, but they differ: "
                f"{shown(value)} and {shown(present)}; keep one of them"
            )


def translate(given: dict[str, Any], file: str, overridden: frozenset[str]) -> tuple[dict[str, str], list[str]]:
    """Rename and drop the family's keys, in place. Returns our key -> the name written, and the keys without effect.

    Raises:
        ConfigError: two names of one key hold different values.
    """
    reading = _Reading(given, file, overridden)
    _student_and_teacher(reading)
    _stages(reading)
    for pair in RENAMED.items():
        for theirs, ours in _in_every_model(*pair):
            found, value = reading.pop(theirs)
            if found:
                reading.put(ours, value, theirs)
    for key, why in IGNORED.items():
        for (place,) in _in_every_model(key):
            if reading.pop(place)[0]:
                reading.ignore(place, why)
    _wandb(reading)
    for section in ("model", TEACHER):
        if reading.holder(section) is not None:
            _program_defaults(reading, section)
            _encoders(reading, section)
            _model(reading, section)
    return reading.origins, reading.ignored


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


def _student_and_teacher(reading: _Reading) -> None:
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


def _stages(reading: _Reading) -> None:
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


def _wandb(reading: _Reading) -> None:
    """`wandb.log: true/false` is the family's switch; `wandb.mode` is ours and wins."""
    found, log = reading.pop("wandb.log")
    if not found or log is None:
        return
    if not isinstance(log, bool):
        raise ConfigError(f"{reading.file}: wandb.log: expected true or false, found {shown(log)}")
    section = reading.given["wandb"]
    has_key = bool(section.get("key") or os.environ.get("WANDB_API_KEY"))
    section.setdefault("mode", ("online" if has_key else "offline") if log else "disabled")


def _program_defaults(reading: _Reading, section: str) -> None:
    """What two programs have in their code and not in their files, where the file is recognisably theirs."""
    model = reading.holder(section)
    llm = str(model.get("llama_path") or "").lower()
    wrote_qwen_path = reading.origins.get(f"{section}.llama_path", "").endswith(".qwen_path")
    if (wrote_qwen_path or model.get("ced_path") in CED_NAMES) and "qwen" in llm:
        model.setdefault("bos_token", "<|im_start|>")
        model.setdefault("lora_target_modules", ["q_proj", "v_proj", "gate_proj"])
    if "qlora" in model and not reading.is_overridden(f"{section}.qlora"):  # cv-16
        model.setdefault("lora_target_modules", list(ALL_LINEAR))
        if "qwen" in llm and "deepseek" not in llm:  # token 151643, where a tokenizer has no BOS
            model.setdefault("bos_token", "<|endoftext|>")


def _encoders(reading: _Reading, section: str) -> None:
    """Encoders that replace another and use its switches: CED for BEATs, Canary's for Whisper."""
    model = reading.holder(section)
    found, use_beats = reading.pop(f"{section}.use_beats")
    if found and use_beats is False:
        model["beats_path"] = None
    name = model.get("ced_path")
    if name in CED_NAMES and not Path(name).exists():
        model["ced_path"] = CED_NAMES[name]
    if name and not model.get("beats_path") and "freeze_beats" in model:
        model.setdefault("freeze_ced", model["freeze_beats"])
    written = reading.origins.get(f"{section}.parakeet_path", "")
    if written.endswith(".canary_path") and model.get("parakeet_path"):
        if "freeze_whisper" in model:
            model.setdefault("freeze_parakeet", model["freeze_whisper"])
        if model.get("whisper_path") and not reading.is_overridden(f"{section}.whisper_path"):
            model["whisper_path"] = None
            reading.ignore(f"{section}.whisper_path", "Canary's encoder replaces Whisper")


def _model(reading: _Reading, section: str) -> None:
    """The family's switches that are a value of another key here."""
    model = reading.holder(section)
    if model.get("token") in PLACEHOLDERS:
        model.pop("token", None)
    if isinstance(model.get("legacy"), bool):  # YAML also reads the bare words on and off as booleans
        model["legacy"] = "exact" if model["legacy"] else "off"
    if isinstance(model.get("quantization"), bool) and not model["quantization"]:
        model["quantization"] = "none"
    for switch, back_end in (("qlora", "nf4"), ("low_resource", "int8")):
        key = f"{section}.{switch}"
        found, on = reading.pop(key)
        if not found or on is None:
            continue
        if not isinstance(on, bool):
            raise ConfigError(f"{reading.file}: {reading.written(key)}: expected true or false, found {shown(on)}")
        present = model.get("quantization")
        if not on or reading.is_overridden(f"{section}.quantization"):
            continue
        if present not in (None, back_end) and not reading.is_overridden(key):
            raise ConfigError(
                f"{reading.file}: {reading.written(key)}: true means quantization: {back_end}, but the file also asks "
                f"for {present}; keep one"
            )
        model["quantization"] = back_end

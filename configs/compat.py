"""Keys of the SALMONN family of YAML files: which have another name here, which have no effect and why.

The family: SALMONN itself, the 3B baseline's trainer and evaluator, and the programs made from them. Their files load
unchanged; what has no effect is listed once at the start, never dropped in silence.
"""

from __future__ import annotations

import os
from typing import Any

from configs.parsing import ConfigError, shown

RENAMED = {
    "model.llm_path": "model.llama_path",
    "model.gemma_path": "model.llama_path",
    "model.qwen_path": "model.llama_path",
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

_LAUNCHER = "the launcher (torchrun) says how many processes there are and where they meet"
_MANIFEST = "clips are read from the annotation files"
IGNORED = {
    "model.only_preprocessor": "parts are loaded when they are needed",
    "model.device_8bit": "run.device says where the model is",
    "generate.end_sym": "model.end_sym is the end symbol, and texts lose every special token",
    "datasets.whisper_path": "features are made for model.whisper_path",
    "datasets.stage1_use_valid": "validation runs where datasets.valid_ann_path is given",
    "datasets.stage2_use_valid": "validation runs where datasets.valid_stage2_path or valid_ann_path is given",
    "datasets.train_manifest_path": _MANIFEST,
    "datasets.valid_manifest_path": _MANIFEST,
    "datasets.asr_manifest_path": _MANIFEST,
    "datasets.aac_manifest_path": _MANIFEST,
    "datasets.mock_manifest_path": _MANIFEST,
    "run.gpu": "run.device, or the launcher, says which GPU",
    "run.use_distributed": _LAUNCHER,
    "run.world_size": _LAUNCHER,
    "run.dist_url": _LAUNCHER,
    "run.dist_backend": _LAUNCHER,
    "run.distributed": _LAUNCHER,
    "run.rank": _LAUNCHER,
}
"""Dotted key of the family -> why it has no effect here."""

PLACEHOLDERS = ("<hf_token>", "")
"""What stands in the family's files where a secret was taken out."""


def translate(given: dict[str, Any], file: str, overridden: frozenset[str]) -> tuple[dict[str, str], list[str]]:
    """Rename and drop the family's keys, in place. Returns our key -> the name written, and the keys without effect.

    Raises:
        ConfigError: two names of one key hold different values.
    """
    origins: dict[str, str] = {}
    _stages(given, file, overridden, origins)
    for theirs, ours in RENAMED.items():
        found, value = _pop(given, theirs)
        if found:
            _put(given, ours, value, theirs, file, overridden, origins)
    ignored = [f"{key}: ignored, because {why}" for key, why in IGNORED.items() if _pop(given, key)[0]]
    _wandb(given, file)
    _model(given, file, overridden)
    return origins, ignored


def _pop(given: dict[str, Any], key: str) -> tuple[bool, Any]:
    section, _, name = key.partition(".")
    holder = given.get(section)
    return (True, holder.pop(name)) if isinstance(holder, dict) and name in holder else (False, None)


def _put(
    given: dict[str, Any],
    ours: str,
    value: Any,
    theirs: str,
    file: str,
    overridden: frozenset[str],
    origins: dict[str, str],
) -> None:
    """Store a renamed value; where our key is there too, an override wins, equal or empty values do no harm."""
    section, _, name = ours.partition(".")
    holder = given.setdefault(section, {})
    present = holder.get(name)
    if present in (None, "") or present == value or (theirs in overridden and ours not in overridden):
        holder[name] = value
        origins[ours] = theirs
    elif value not in (None, "") and ours not in overridden:
        other = origins.get(ours, ours)
        raise ConfigError(
            f"{file}: {theirs} and {other} name the same thing, but they differ: {shown(value)} and {shown(present)}; "
            "keep one of them"
        )


def _stages(given: dict[str, Any], file: str, overridden: frozenset[str], origins: dict[str, str]) -> None:
    """Both stages in one file: `run.output_dir` and `run.optims` as mappings of one entry a stage."""
    run = given.get("run", {})
    folders = run.get("output_dir")
    if isinstance(folders, dict):
        run.pop("output_dir")
        for theirs, ours in (("stage1_output_dir", "output_dir"), ("stage2_output_dir", "output_dir_stage2")):
            if folders.get(theirs):
                _put(given, f"run.{ours}", folders[theirs], f"run.output_dir.{theirs}", file, overridden, origins)
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
            chosen = {name: value for name, value in common.items() if f"run.optims.{name}" in overridden}
            run[ours] = {**common, **stage, **chosen}
            origins.update(
                {f"run.{ours}.{name}": f"run.optims.{theirs}.{name}" for name in stage if name not in chosen}
            )


def _wandb(given: dict[str, Any], file: str) -> None:
    """`wandb.log: true/false` is the family's switch; `wandb.mode` is ours and wins."""
    found, log = _pop(given, "wandb.log")
    if not found or log is None:
        return
    if not isinstance(log, bool):
        raise ConfigError(f"{file}: wandb.log: expected true or false, found {shown(log)}")
    section = given["wandb"]
    has_key = bool(section.get("key") or os.environ.get("WANDB_API_KEY"))
    section.setdefault("mode", ("online" if has_key else "offline") if log else "disabled")


def _model(given: dict[str, Any], file: str, overridden: frozenset[str]) -> None:
    """The family's switches whose sense another key of ours holds."""
    model = given.get("model", {})
    if model.get("token") in PLACEHOLDERS:
        model.pop("token", None)
    if isinstance(model.get("legacy"), bool):  # YAML also reads the bare words on and off as booleans
        model["legacy"] = "exact" if model["legacy"] else "off"
    if isinstance(model.get("quantization"), bool) and not model["quantization"]:
        model["quantization"] = "none"
    for switch, back_end in (("qlora", "nf4"), ("low_resource", "int8")):
        found, on = _pop(given, f"model.{switch}")
        if not found or on is None:
            continue
        if not isinstance(on, bool):
            raise ConfigError(f"{file}: model.{switch}: expected true or false, found {shown(on)}")
        present = model.get("quantization")
        if not on or "model.quantization" in overridden:
            continue
        if present not in (None, back_end) and f"model.{switch}" not in overridden:
            raise ConfigError(
                f"{file}: model.{switch}: true means quantization: {back_end}, but the file also asks for {present}; "
                "keep one"
            )
        model["quantization"] = back_end
    found, use_beats = _pop(given, "model.use_beats")
    if found and use_beats is False:
        model["beats_path"] = None

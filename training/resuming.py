"""Whether a run continues from a checkpoint as if it had never stopped: what must be equal, and what has changed."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.parsing import ConfigError
from configs.schema import Config, load_config
from data.annotations import Annotation
from data.prompts import Prompts
from models.checkpoint.adapter_folder import CONFIG_FILE
from training.run_folder import RunFolderError

TRAINING_SETTINGS = (
    "model",
    "distillation",
    "datasets.max_audio_s",
    "datasets.augmentation",
    "datasets.join_clips",
    "datasets.bucket_batches",
    "datasets.task_weights",
    "run.optims",
    "run.max_grad_norm",
    "run.amp",
)
"""Keys, or sections, that change what a run learns. What is compared by its content is not among them."""
WITHOUT_EFFECT = frozenset(
    {
        "model.ckpt",  # the checkpoint takes the place of both
        "model.speech_llama_proj_model",
        "model.prompt_path",  # compared by its content
        "model.test_prompt_path",
        "model.stop_strings",
        "model.allow_slow_kernels",
    }
)
"""Keys within them that change nothing for a resumed run's training."""


def data_digest(clips: Iterable[Annotation]) -> str:
    """Digest of what the clips are, in order; not of their folders, since a corpus may be moved."""
    digest = hashlib.blake2b(digest_size=8)
    for clip in clips:
        names = [Path(path).name for path in (clip.path, *clip.expand_wav)]
        part = [] if clip.part is None else [str(clip.part)]
        digest.update(json.dumps([names, *part, clip.task, clip.text, clip.texts, clip.Q]).encode() + b"\n")
    return digest.hexdigest()


def prompts_digest(prompts: Prompts, tasks: Iterable[str]) -> str:
    """Digest of the prompts of these tasks."""
    used = {task: prompts.choices(task) for task in sorted(set(tasks))}
    return hashlib.blake2b(json.dumps(used).encode(), digest_size=8).hexdigest()


def require_same_run(checkpoint: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that a run of the shape `now` can continue exactly from a checkpoint of one of the shape `before`.

    Raises:
        RunFolderError: naming everything that differs.
    """
    changed = [f"{key}: {before.get(key)} -> {value}" for key, value in now.items() if before.get(key) != value]
    if changed:
        raise RunFolderError(
            f"{checkpoint}: cannot resume, the run is not the same ({'; '.join(changed)}). Undo the change, or "
            "start a new run from this adapter with model.ckpt and another run.output_dir."
        )


def describe_changes(checkpoint: Path, config: Config, *, other_prompts: bool) -> str | None:
    """A warning that names the settings of training that differ from the checkpoint's; None where none does."""
    changed = list(_changed_settings(checkpoint, config))
    if other_prompts:
        changed.append(f"model.prompt_path: {config.model.prompt_path} holds other prompts than before")
    if not changed:
        return None
    listed = "".join(f"\n  {line}" for line in changed)
    return (
        f"warning: {checkpoint} was trained with other settings; from here on this is not the run that an "
        f"uninterrupted one would have been:{listed}"
    )


def _changed_settings(checkpoint: Path, config: Config) -> Iterator[str]:
    try:
        saved = load_config(checkpoint / CONFIG_FILE)
    except (ConfigError, OSError) as error:
        yield f"settings could not be compared: {error}"
        return
    before, now = saved.to_dict(), config.to_dict()
    for key in TRAINING_SETTINGS:
        if key == "distillation" and saved.distillation.teacher is None and config.distillation.teacher is None:
            continue
        yield from _differences(key, setting(before, key), setting(now, key))


def setting(sections: Mapping[str, Any], key: str) -> Any:
    """The value under a dotted key of `Config.to_dict()`."""
    value: Any = sections
    for name in key.split("."):
        value = value[name]
    return value


def _differences(key: str, before: Any, now: Any) -> Iterator[str]:
    if key in WITHOUT_EFFECT or before == now:
        return
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys((*before, *now)):
            yield from _differences(f"{key}.{name}", before.get(name), now.get(name))
    else:
        yield f"{key}: {_shown(before)} -> {_shown(now)}"


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)

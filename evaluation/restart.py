"""Whether an interrupted evaluation may continue: hashes of what its predictions depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from configs.schema import Config
from data.annotations import Annotation
from models.checkpoint.adapter_folder import adapter_state_dict
from models.salmonn import SALMONN


def run_hashes(
    model: SALMONN, config: Config, annotations: Sequence[Annotation], prompts: Mapping[str, object]
) -> dict[str, str]:
    """What predictions depend on, a hash each; a restart continues only where all are equal."""
    adapter = hashlib.sha256()
    for name, tensor in sorted(adapter_state_dict(model).items()):
        adapter.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        adapter.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    settings = config.to_dict()
    # Adapter and prompts are hashed by content, so their paths do not matter; weights are identified by their files.
    by_content = ("ckpt", "prompt_path", "test_prompt_path")
    model_settings = {name: value for name, value in settings["model"].items() if name not in by_content}
    files = {name: _file_marks(value) for name, value in model_settings.items() if name.endswith("_path")}
    clips = [
        [a.clip, a.expand_wav, a.task, a.Q, a.testset_id, a.text, a.texts, a.extra, config.datasets.max_audio_s]
        for a in annotations
    ]
    seed = config.run.seed if config.generate.do_sample else None
    return {
        "adapter": adapter.hexdigest(),
        "model": _digest([model_settings, files]),
        "generation settings": _digest([settings["generate"], seed]),
        "prompts": _digest([prompts.get(task) for task in sorted({a.task for a in annotations})]),
        "annotations": _digest(clips),
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _file_marks(path: object) -> list[list[object]]:
    """Name, size and time of each file of local weights; nothing for hub names."""
    if not isinstance(path, str) or not path or not Path(path).exists():
        return []
    files = [Path(path)] if Path(path).is_file() else sorted(p for p in Path(path).iterdir() if p.is_file())
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]

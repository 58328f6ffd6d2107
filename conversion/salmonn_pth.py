"""Checkpoints of SALMONN and its forks (`.pth`) to adapter folders, and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig

from configs.schema import Config
from configs.sections import ModelConfig
from models.checkpoint.adapter_folder import checkpoint_of, read_adapter, write_adapter
from models.checkpoint.adapter_tensors import PAD_ROWS, CheckpointError, listed
from models.checkpoint.pad_rows import pad_rows_of_head, read_pad_rows
from models.checkpoint.released import read_released, sorted_out
from models.checkpoint.released_names import HEAD, lora_targets, released_name
from models.hub import located
from models.tensor_file import TensorFileError, read_tensor_file
from support.files import write_whole

LEFTOVER_FILE = "released.pt"
SECRETS = ("token", "hf_token", "key", "api_key", "wandb_key")  # keys of those trainers' configurations


def to_folder(source: Path, folder: Path, config: Config, pad_rows: Path | None = None) -> int:
    """Write the adapter folder of a `.pth`. Returns how many tensors the adapter has.

    Raises CheckpointError for a file that cannot be read, or has tensors unknown to the family.
    """
    content = read_released(source)
    entries = content.pop("model")
    audio = "ced" if config.model.ced_path and not config.model.beats_path else "beats"
    state, origin, unknown = sorted_out(entries, audio)
    if unknown:
        raise CheckpointError(f"{source} holds {len(unknown)} tensors of no known name: {listed(unknown)}.")
    if not state:
        raise CheckpointError(f"{source} holds no trained parameters.")
    head = next((tensor for name, tensor in entries.items() if HEAD.match(name)), None)
    adapter = {**state, **_pad_rows(pad_rows, head, config.model)}
    placed = {name for names in origin.values() for name in names}
    try:
        rest = _without_secrets(content)
    except RecursionError as error:
        raise CheckpointError(f"{source}: what it holds besides tensors is nested too deeply to be kept.") from error
    leftovers = {
        "model": {name: tensor for name, tensor in entries.items() if name not in placed},
        "names": origin,
        "order": list(entries),
        "rest": rest,
    }
    model = replace(
        config.model,
        ckpt=None,
        legacy="exact" if config.model.legacy == "exact" else "weights",
        lora_target_modules=lora_targets(state) or config.model.lora_target_modules,
    )
    write_adapter(
        adapter,
        folder,
        config=replace(config, model=model),
        extra=lambda draft: torch.save(leftovers, draft / LEFTOVER_FILE),
    )
    return len(adapter)


def to_released(folder: Path, target: Path) -> int:
    """Write the `.pth` of an adapter folder. Returns how many tensors it has.

    Raises CheckpointError where the adapter has parts that the public code has not.
    """
    folder = checkpoint_of(folder)
    adapter = {name: tensor for name, tensor in read_adapter(folder).items() if not name.startswith(PAD_ROWS)}
    leftovers = _read_leftovers(folder / LEFTOVER_FILE)
    names = {name: leftovers["names"].get(name) or [released_name(name)] for name in adapter}
    homeless = [name for name, theirs in names.items() if theirs == [None]]
    if homeless:
        raise CheckpointError(
            f"{folder}: the public code has no place for {len(homeless)} tensors of this adapter: {listed(homeless)}."
        )
    entries = {theirs: adapter[name] for name, all_theirs in names.items() for theirs in all_theirs}
    entries |= leftovers["model"]
    order = [name for name in leftovers["order"] if name in entries]
    entries = {name: entries[name] for name in dict.fromkeys((*order, *entries))}
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, lambda draft: torch.save({"model": entries, **leftovers["rest"]}, draft))
    return len(entries)


def _pad_rows(path: Path | None, head: Tensor | None, config: ModelConfig) -> dict[str, Tensor]:
    """Those of the file given; else those of a tied head, in the checkpoint as the embedding's second name."""
    if path is not None:
        return read_pad_rows(path)
    if head is None:
        return {}
    name, revision = located(config.llama_path)
    try:
        llm_config = AutoConfig.from_pretrained(name, revision=revision, token=config.token)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"model.llama_path: {config.llama_path!r} tells no vocabulary ({str(error).splitlines()[0]}); it is needed "
            "to find the [PAD] row in the checkpoint's head, unless --pad-rows gives it."
        ) from error
    return pad_rows_of_head(head, llm_config.get_text_config().vocab_size)


def _read_leftovers(path: Path) -> dict:
    if not path.is_file():
        return {
            "model": {},
            "names": {},
            "order": [],
            "rest": {"optimizer": {}, "config": {}, "scaler": None, "epoch": 0},
        }
    fix = "delete it to convert the trained parameters alone."
    try:
        leftovers = read_tensor_file(path)
    except TensorFileError as error:
        raise CheckpointError(f"{path} {error} Or {fix}") from error
    parts = {"model": dict, "names": dict, "order": list, "rest": dict}
    if not isinstance(leftovers, dict) or not all(isinstance(leftovers.get(k), kind) for k, kind in parts.items()):
        raise CheckpointError(f"{path} is no file of this tool: expected {', '.join(parts)} in it; {fix}")
    return leftovers


def _without_secrets(value: object, copies: dict[int, object] | None = None) -> object:
    """A copy with empty strings for secrets. What is referenced in several places is copied once: a small file can hold
    a structure of enormous size if written out."""
    copies = {} if copies is None else copies
    if id(value) in copies:
        return copies[id(value)]
    copy = value
    if isinstance(value, dict):
        copy = copies[id(value)] = {}
        for key, item in value.items():
            copy[key] = "" if key in SECRETS and isinstance(item, str) else _without_secrets(item, copies)
    elif isinstance(value, list):
        copy = copies[id(value)] = []
        copy.extend(_without_secrets(item, copies) for item in value)
    return copy

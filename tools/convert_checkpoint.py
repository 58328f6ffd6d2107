"""Turn a `.pth` of SALMONN's public code, or of a trainer made from it, into an adapter folder, and back.

    python -m tools.convert_checkpoint checkpoint_best.pth outputs/salmonn --cfg-path configs/salmonn_3b/evaluate.yaml
    python -m tools.convert_checkpoint outputs/salmonn checkpoint_again.pth

The folder loads by itself (`models.load_model`), and evaluates with `--ckpt`; its config.yaml says `legacy: weights`,
and on which layers the file has low-rank adapters, whatever the YAML says.
Every tensor keeps its bits. What has no place in an adapter (buffers, optimiser, epoch) is kept in `released.pt`, so
that the way back gives the whole file again; secrets in its configuration are left out. An adapter that was trained
here has no such file: it gives a `.pth` of the trained parameters alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig

from configs.schema import Config, ConfigError, ModelConfig, load_config
from models.adapter_tensors import PAD_ROWS, listed
from models.checkpoint import CheckpointError, checkpoint_of, read_adapter, write_adapter
from models.legacy_checkpoint import pad_rows_of_head, read_pad_rows, read_released, sorted_out
from models.legacy_names import HEAD, lora_targets, released_name
from models.tensor_file import TensorFileError, read_tensor_file
from models.text import split_revision

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
        raise CheckpointError(f"{source}: what it holds beside its tensors is nested too deeply to be kept.") from error
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
    draft = target.with_name(f".{target.name}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.save({"model": entries, **leftovers["rest"]}, draft)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    return len(entries)


def _pad_rows(path: Path | None, head: Tensor | None, config: ModelConfig) -> dict[str, Tensor]:
    """Those of the file given; else those of a tied head, in the checkpoint as the embedding's second name."""
    if path is not None:
        return read_pad_rows(path)
    if head is None:
        return {}
    name, revision = split_revision(config.llama_path)
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
    mend = "delete it to convert the trained parameters alone."
    try:
        leftovers = read_tensor_file(path)
    except TensorFileError as error:
        raise CheckpointError(f"{path} {error} Or {mend}") from error
    parts = {"model": dict, "names": dict, "order": list, "rest": dict}
    if not isinstance(leftovers, dict) or not all(isinstance(leftovers.get(k), kind) for k, kind in parts.items()):
        raise CheckpointError(f"{path} is no file of this tool: expected {', '.join(parts)} in it; {mend}")
    return leftovers


def _without_secrets(value: object, copies: dict[int, object] | None = None) -> object:
    """A copy with empty strings for secrets. What stands in several places is copied once: a small file can hold a
    structure that would be astronomical if written out."""
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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help=".pth file, or adapter folder")
    parser.add_argument("target", type=Path, help="adapter folder, or .pth file")
    parser.add_argument("--cfg-path", metavar="FILE", help="YAML that the .pth was trained with; not needed back")
    parser.add_argument("--options", nargs="+", default=[], metavar="section.key=value", help="changes to the YAML")
    parser.add_argument("--pad-rows", type=Path, metavar="FILE", help="safetensors with the vocabulary's [PAD] rows")
    options = parser.parse_args(arguments)
    try:
        if options.target.suffix == ".pth":
            count = to_released(options.source, options.target)
        elif options.cfg_path is None:
            parser.error("--cfg-path is needed: the folder holds the configuration that its adapter belongs to")
        else:
            config = load_config(options.cfg_path, [*options.options, "model.ckpt="])
            count = to_folder(options.source, options.target, config, options.pad_rows)
    except (CheckpointError, ConfigError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{options.target}: {count} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())

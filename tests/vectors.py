"""What the folder of reference vectors contains, read before tests are collected: each case in it is a test.

Sizes, rows, clips and settings come from the folder, so that a set with other ones runs through the same tests.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

from configs.schema import load_config
from configs.sections import ModelConfig

ROOT = Path(__file__).resolve().parent.parent
PARITY = Path(os.environ.get("SMOLT_PARITY") or ROOT.parent / "shared" / "parity")


def settings(folder: Path) -> dict:
    """The settings of a set."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"]


def tensor_names(file: Path) -> list[str]:
    with safe_open(file, "pt") as tensors:
        return list(tensors.keys())


def matches(pattern: str, names: list[str]) -> list:
    """The groups of `pattern` in each name that matches it fully: a string each, or a tuple of several."""
    found = [match.groups() for name in names if (match := re.fullmatch(pattern, name))]
    return [groups[0] if len(groups) == 1 else groups for groups in found]


def cases(names: str | tuple[str, ...], set_name: str, find: Callable[[Path], list]) -> pytest.MarkDecorator:
    """A test for each case that `find` returns for the set's folder; without the folder, one that skips or fails.

    The test must ask for the fixture `parity_dir`, which says why there are no vectors.
    """
    folder = PARITY / set_name
    found = sorted(find(folder)) if folder.is_dir() else []
    if folder.is_dir():
        assert found, f"{folder}: no case found"
    absent = "none" if isinstance(names, str) else ("none",) * len(names)
    return pytest.mark.parametrize(names, found or [absent])


# The complete model, `salmonn_loss`


def salmonn_config(folder: Path, *options: str) -> ModelConfig:
    """The model section of the set's YAML in float32: its paths are the folder's own, its Q-Former's size the set's."""
    written = yaml.safe_load((folder / "train.yaml").read_text(encoding="utf-8"))["model"]
    bert = settings(folder)["bert"]
    names = list(torch.load(folder / "checkpoint_0.pth", map_location="cpu", weights_only=True)["model"])
    layers = set(matches(r"speech_Qformer\.bert\.encoder\.layer\.(\d+)\..*", names))
    here = [
        f"model.{key}={folder / value}"
        for key, value in written.items()
        if key.endswith("_path") and value and (folder / value).exists()
    ]
    size = {
        "qformer_hidden_size": bert["hidden_size"],
        "qformer_num_heads": bert["num_attention_heads"],
        "qformer_intermediate_size": bert["intermediate_size"],
        "qformer_layers": len(layers),
        "dtype": "float32",
    }
    sizes = [f"model.{key}={value}" for key, value in size.items()]
    return load_config(folder / "train.yaml", [*here, *sizes, *options]).model


def salmonn_modes(folder: Path) -> list[str]:
    """Ways in which the set asks for the loss: with several prompts, with one, with none."""
    return matches(r"(.+)\.inputs_embeds", tensor_names(folder / "output.safetensors"))


def rows_of(facts: dict, mode: str) -> range:
    """The batch's rows that a mode takes: `…_row2` begins with that one, the others with the first."""
    named = re.search(r"_row(\d+)$", mode)
    first = int(named[1]) if named else 0
    return range(first, first + len(facts[mode]["task"]))


def train_prompts(folder: Path, mode: str) -> list[str]:
    """A mode's prompts, one for each of its rows."""
    facts = settings(folder)
    if mode == "no_prompt":
        return ["<SpeechHere>"] * len(facts[mode]["task"])
    templates = json.loads((folder / "train_prompt.json").read_text(encoding="utf-8"))
    questions = json.loads((folder / "batch.json").read_text(encoding="utf-8"))["Q"]
    pairs = zip(facts[mode]["task"], rows_of(facts, mode), strict=True)
    first = {task: next(text for text in several if "<SpeechHere>" in text) for task, several in templates.items()}
    return [first[task].replace("{}", questions[row]) for task, row in pairs]


def generation_prompts(folder: Path) -> list[str]:
    """The prompts of generation, a row each."""
    batch = json.loads((folder / "batch.json").read_text(encoding="utf-8"))
    templates = json.loads((folder / "test_prompt.json").read_text(encoding="utf-8"))
    return [templates[task].replace("{}", q) for task, q in zip(batch["task"], batch["Q"], strict=True)]

"""Checkpoints of SALMONN and of the trainers made from it: one `.pth` with the trained parameters.

    {'model': {name: tensor}, 'optimizer': …, 'config': …, 'scaler': …, 'epoch': …}

`model` contains what required gradients. Because those trainers filter by name, also every buffer, and every further
name of a shared tensor: BEATs' table of relative positions, and the language model's head if tied to the embedding.

The vocabulary was extended by a `[PAD]` row, random and not saved (except in a tied head). It is part of the softmax,
so a loss can only be reproduced with the row itself: `pad_rows`.

Files are read as tensors and plain containers. Code in them is never run.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.sections import ModelConfig
from models.checkpoint.adapter_tensors import (
    PAD_ROWS,
    CheckpointError,
    LoadReport,
    compare,
    listed,
    loaded_names,
    misfit,
    named_tensors,
)
from models.checkpoint.pad_rows import append_pad_rows, is_tied, vocabulary_rows
from models.checkpoint.released_names import HEAD, WITHOUT_EFFECT, lora_targets, own_name, released_name
from models.tensor_file import TensorFileError, read_tensor_file

logger = logging.getLogger(__name__)

_BEATS = "encoders.encoders.beats."


def load_legacy(
    model: nn.Module, path: str | Path, pad_rows: Mapping[str, Tensor] | str | Path | None = None
) -> LoadReport:
    """Load a released checkpoint into `model`; the report has the file's names.

    Args:
        model: a `SALMONN` whose `model.legacy` is `weights` or `exact`.
        path: the `.pth` file.
        pad_rows: the `[PAD]` rows to append to the vocabulary, `….embed_tokens.weight` and (unless tied)
            `….lm_head.weight`, `[1, H]` each, or a safetensors file of them.

    Raises:
        CheckpointError: the file is missing, damaged, contains code, or does not fit; the model is then unchanged.
    """
    path = Path(path)
    if model.config.legacy == "off":
        raise CheckpointError(
            f"{path} is a checkpoint of the public SALMONN code, and model.legacy is off: the model would encode audio "
            "and text not as in its training. Set model.legacy to weights (or null), or to exact for the bugs too."
        )
    entries = read_released(path)["model"]
    state, origin, unexpected = sorted_out(entries, audio_name(model))
    own = _expected(model, state)
    head = next((entries[name] for name in entries if HEAD.match(name)), None)
    rows, report = vocabulary_rows(model.llm, head, pad_rows), compare(state, own)
    report = LoadReport(
        matched=tuple(name for ours in report.matched for name in origin[ours]),
        missing=tuple(released_name(name) or name for name in report.missing),
        unexpected=(*unexpected, *(name for ours in report.unexpected for name in origin[ours])),
        misshapen=tuple(_with_file_name(text, origin) for text in report.misshapen),
        from_base=report.from_base,
        ignored=tuple(name for name in entries if WITHOUT_EFFECT.match(name)),
    )
    if head is not None:
        tied = is_tied(model.llm)
        kind = "matched" if tied and head.shape[1:] == (model.llm.hidden_size,) else "unexpected"
        report = replace(report, **{kind: (*getattr(report, kind), *(n for n in entries if HEAD.match(n)))})
    if not report.fits:
        hints = [_encoder_hint(report), _lora_hint(model.config, state)]
        raise CheckpointError("\n  ".join([misfit(path, report), *filter(None, hints)]))
    with torch.no_grad():
        for name, tensor in state.items():
            own[name][0].copy_(tensor)
        if head is not None:
            embedding = model.llm.model.get_input_embeddings().weight
            size = min(len(head), len(embedding))
            embedding[:size].copy_(head[:size])
    if rows:
        append_pad_rows(model.llm, rows)
    model._loaded_adapter_names = loaded_names(model) | set(state)
    logger.info("%s: %s", path, report.summary())
    return report


def read_released(path: Path) -> dict[str, Any]:
    """The content of a `.pth`, with its state dict as `model`; a bare state dict is accepted too.

    Raises:
        CheckpointError: no such file, a damaged one, one with objects that only running code could make, no tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; expected a .pth file of trained parameters.")
    try:
        content = read_tensor_file(path)
    except TensorFileError as error:
        raise CheckpointError(f"{path} {error}") from error
    if isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values()):
        content = {"model": content}
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        found = f"the keys {listed(content) or '(none)'}" if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path} holds {found}; expected {{'model': {{name: tensor}}, …}}.")
    pruned = [name for name in ("pruned_layers", "whisper_prune") if content.get(name)]
    if pruned:  # recsys-08
        raise CheckpointError(
            f"{path} was trained with layers left out ({pruned[0]}: {listed(content[pruned[0]])}), which is not "
            "supported; give a checkpoint of the whole model."
        )
    for name, tensor in state.items():
        if WITHOUT_EFFECT.match(str(name)):
            continue
        if found := _not_dense(tensor):
            raise CheckpointError(f"{path}: {name} is a {found}, expected a dense tensor.")
        stored = tensor.untyped_storage().nbytes()
        if tensor.nbytes > stored:  # one number can be expanded to any shape
            raise CheckpointError(
                f"{path}: {name} has the shape {list(tensor.shape)}, {tensor.nbytes:,} bytes, of which the file holds "
                f"{stored:,}; expected a tensor that is stored whole."
            )
    return {**content, "model": {str(name): tensor for name, tensor in state.items()}}


def _not_dense(value: object) -> str | None:
    """Why a value is not a dense tensor, or None; such a value could stop a load halfway."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.is_nested or value.is_quantized or value.layout != torch.strided:
        return "nested tensor" if value.is_nested else f"tensor of {value.dtype}, {value.layout}"
    return "tensor without numbers" if value.is_meta else None


def own_entries(entries: Mapping[str, Tensor], audio: str = "beats") -> dict[str, Tensor]:
    """The entries of a released state dict that exist here, under our names."""
    return sorted_out(entries, audio)[0]


def audio_name(model: nn.Module) -> str:
    """The encoder besides Whisper, whose LayerNorm is `ln_audio`."""
    return next((name for name in model.encoders.encoders if name != "whisper"), "beats")


def sorted_out(
    entries: Mapping[str, Tensor], audio: str
) -> tuple[dict[str, Tensor], dict[str, list[str]], tuple[str, ...]]:
    """Tensors under our names, the file's names of each, and the names that are unknown in the family."""
    state: dict[str, Tensor] = {}
    origin: dict[str, list[str]] = {}
    unknown = []
    for name, tensor in entries.items():
        if WITHOUT_EFFECT.match(name) or HEAD.match(name):
            continue
        ours = own_name(name, audio)
        if ours is None:
            unknown.append(name)
        else:
            state[ours] = tensor  # of a shared tensor's names the last one counts, as in PyTorch
            origin.setdefault(ours, []).append(name)
    return state, origin, tuple(unknown)


def _expected(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, bool]]:
    """The model's tensors, and whether each must be in the file."""
    own = {name: entry for name, entry in named_tensors(model).items() if not name.startswith(PAD_ROWS)}
    optional = []
    if not any(name.startswith(_BEATS) and "relative_attention_bias" not in name for name in state):
        optional.append(_BEATS)  # of a frozen BEATs only its shared table is in the file
    if model.config.freeze_speech_llama_proj and model.config.speech_llama_proj_model:
        optional.append("connector.to_llm.")  # has its own file
    return {name: (tensor, needed and not name.startswith(tuple(optional))) for name, (tensor, needed) in own.items()}


def _with_file_name(text: str, origin: Mapping[str, list[str]]) -> str:
    ours, _, shapes = text.partition(": ")
    return f"{origin[ours][0]}: {shapes}"


def _lora_hint(config: ModelConfig, state: Mapping[str, Tensor]) -> str:
    targets = lora_targets(state)
    if not config.lora or not targets or set(targets) == set(config.lora_target_modules):
        return ""
    return f"the file's low-rank adapters are on {', '.join(targets)}: set model.lora_target_modules to these."


def _encoder_hint(report: LoadReport) -> str:
    names = " ".join((*report.missing, *report.unexpected))
    if "ln_audio." in names:
        return "ln_audio belongs to the encoder besides Whisper: set model.beats_path (or ced_path), or leave it out."
    return ""

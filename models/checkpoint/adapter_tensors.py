"""Which tensors of a model are in an adapter, their names in the file, and the error when a file does not fit them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from support.command_line import UserError

NAMES_SHOWN = 12  # in an error
ALIGNMENT_IDS = "alignment.ids"
"""The entries of the vocabulary that the CTC head aligns to; their number is the adapter's own."""
PAD_ROWS = "llm.pad_rows."  # rows appended to a vocabulary, which are in no base checkpoint

_LLM_BLOCK = re.compile(r"^llm\.model\.(?:[a-z_]+\.)*?(layers\.\d+\.)")
_ENCODER_NORM = re.compile(r"^connector\.norms\.(.+)\.weight$")
_PROJECTION = re.compile(r"^connector\.projections\.(.+)\.(?:weight|bias)$")
_READS_FRAMES = re.compile(r"^connector\.qformer\.layers\.\d+\.cross_attention\.(?:key|value)\.weight$")
_ENCODER = re.compile(r"^encoders\.encoders\.[^.]+\.")


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or does not fit the model."""


@dataclass(frozen=True)
class LoadReport:
    """The result of loading an adapter. After a load that succeeded, `missing`, `unexpected`, `misshapen` are empty."""

    matched: tuple[str, ...]
    """Tensors loaded from the file."""
    missing: tuple[str, ...]
    """Tensors that the model needs and the file does not have."""
    unexpected: tuple[str, ...]
    """Tensors of the file that the model does not have."""
    misshapen: tuple[str, ...]
    """Tensors of another shape, or integers for floating-point numbers: `name: file [2, 3], model [4, 3]`."""
    from_base: tuple[str, ...] = ()
    """Parts that are not in the file and start from their base checkpoint: encoders that are trained from now on, and
    LoRA after an alignment stage."""
    ignored: tuple[str, ...] = ()
    """Entries without effect here: untrained buffers of a released file; LoRA, where only the alignment is asked for.
    """
    added: tuple[str, ...] = ()
    """Encoders that the adapter was trained without: a fresh LayerNorm, and zeros for their columns in the Q-Former
    (`fusion: concat`) or for their projection (`fusion: project`)."""

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.misshapen)

    def summary(self) -> str:
        """One line about what was loaded, and what was not."""
        base = f"; {', '.join(self.from_base)}: from the base checkpoint" if self.from_base else ""
        added = f"; {', '.join(self.added)}: new to this adapter, without effect until trained" if self.added else ""
        ignored = f"; {len(self.ignored)} without effect here" if self.ignored else ""
        return f"{len(self.matched)} tensors loaded{base}{added}{ignored}"


def named_tensors(model: nn.Module) -> dict[str, tuple[Tensor, bool]]:
    """File name -> (tensor, whether it is in the adapter), for all parameters and stored buffers."""
    loaded = loaded_names(model)
    named: dict[str, tuple[Tensor, bool]] = {}
    for prefix, module in model.named_modules():
        own_parameters = list(module.named_parameters(prefix, recurse=False))
        module_trains = any(parameter.requires_grad for _, parameter in own_parameters)
        buffers = [
            (name, buffer)
            for name, buffer in module.named_buffers(prefix, recurse=False)
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set
        ]
        for name, tensor in (*own_parameters, *buffers):
            file_name = _file_name(name)
            if file_name is None:
                continue
            trained = tensor.requires_grad or (module_trains and not isinstance(tensor, nn.Parameter))
            assert file_name not in named, f"two tensors are called {file_name}"
            named[file_name] = (tensor, trained or _has_no_base(file_name) or file_name in loaded)
    return _without_repeats(named)


def _without_repeats(named: dict[str, tuple[Tensor, bool]]) -> dict[str, tuple[Tensor, bool]]:
    """Keep a tensor that several modules share under its first name only."""
    seen: set[int] = set()
    kept = {}
    for name, entry in named.items():
        if id(entry[0]) not in seen:
            seen.add(id(entry[0]))
            kept[name] = entry
    return kept


def _file_name(name: str) -> str | None:
    """A tensor's name in the file; None for the language model's own weights, which are never trained."""
    if not name.startswith("llm.") or name.startswith(PAD_ROWS):
        return name
    if "lora_" not in name:
        return None
    return _LLM_BLOCK.sub(r"llm.\1", name).replace(".default.", ".")


def _has_no_base(name: str) -> bool:
    return name.startswith(("connector.", "alignment.", PAD_ROWS)) or ".lora_" in name


def loaded_names(model: nn.Module) -> set[str]:
    return getattr(model, "_loaded_adapter_names", set())


def compare(state: dict[str, Tensor], own: dict[str, tuple[Tensor, bool]], *, table_alone: bool = False) -> LoadReport:
    """How a file's tensors fit a model's; `table_alone`: the model has no language model for LoRA to be in."""
    aligned_alone = ALIGNMENT_IDS in state and not any(name.startswith("llm.") for name in state)
    ignored = tuple(sorted(name for name in state if table_alone and name.startswith("llm.") and name not in own))
    misshapen = {
        name: f"{name}: file {_shape(tensor)}, model {_shape(own[name][0])}"
        for name, tensor in state.items()
        if name in own and (tensor.shape != own[name][0].shape or _kind(tensor) != _kind(own[name][0]))
    }
    file_parts = {match[0] for name in state if (match := _ENCODER.match(name))}
    missing, from_base = [], set()
    for name, (_, in_adapter) in own.items():
        if not in_adapter or name in state:
            continue
        part = _ENCODER.match(name)
        if part and part[0] not in file_parts:  # nothing of this encoder is in the file
            from_base.add(part[0].removesuffix("."))
        elif aligned_alone and ".lora_" in name:  # written by an alignment stage
            from_base.add("LoRA")
        else:
            missing.append(name)
    return LoadReport(
        matched=tuple(sorted(name for name in state if name in own and name not in misshapen)),
        missing=tuple(sorted(missing)),
        unexpected=tuple(sorted(name for name in state if name not in own and name not in ignored)),
        misshapen=tuple(misshapen[name] for name in sorted(misshapen)),
        from_base=tuple(sorted(from_base)),
        ignored=ignored,
    )


def _kind(tensor: Tensor) -> str:
    """The kind of its numbers: conversion within a kind loses only precision."""
    return "floating" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "integer"


def _shape(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" of {str(tensor.dtype).removeprefix('torch.')}"
    return f"{list(tensor.shape)}{kind}"


def added_encoders(state: dict[str, Tensor], own: dict[str, tuple[Tensor, bool]]) -> tuple[str, ...]:
    """Encoders of the model that the file was trained without."""
    return tuple(match[1] for name in own if (match := _ENCODER_NORM.match(name)) and name not in state)


def with_added_encoders(
    state: dict[str, Tensor], own: dict[str, tuple[Tensor, bool]], added: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, bool]]]:
    """The file's tensors with zeros for the new encoders' frames; the model's without their LayerNorms.

    Zero columns in the Q-Former for concatenated frames, else zero projections: in both cases gradients are not zero.
    """
    widths = {match[1]: len(tensor) for name, (tensor, _) in own.items() if (match := _ENCODER_NORM.match(name))}
    known = torch.cat([torch.full((width,), name not in added) for name, width in widths.items()])  # [sum of D]
    widened = dict(state)
    for name, (tensor, _) in own.items():
        reads = _READS_FRAMES.match(name) and name in state and tensor.shape[1] == len(known)
        if reads and state[name].shape == (len(tensor), int(known.sum())):
            widened[name] = state[name].new_zeros(tensor.shape)
            widened[name][:, known] = state[name]
        elif (match := _PROJECTION.match(name)) and match[1] in added:
            widened[name] = torch.zeros_like(tensor, device="cpu")
    fresh = tuple(f"connector.norms.{name}." for name in added)
    return widened, {name: entry for name, entry in own.items() if not name.startswith(fresh)}


def listed(names: Iterable[object]) -> str:
    """Names for an error: the first ones, and the number of the others."""
    names = [str(name) for name in names]
    more = f", and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def misfit(path: Path, report: LoadReport) -> str:
    lines = [f"{path} does not fit the model; nothing was loaded."]
    for kind in ("missing", "unexpected", "misshapen"):
        names = getattr(report, kind)
        if names:
            lines.append(f"  {kind} ({len(names)}): {listed(names)}")
    lines.append("  " + _likely_cause(report))
    return "\n".join(lines)


def _likely_cause(report: LoadReport) -> str:
    if any(".lora_" in name for name in (*report.missing, *report.unexpected, *report.misshapen)):
        return "Set model.lora, lora_rank and lora_target_modules as when the adapter was trained."
    if report.misshapen:
        return "Use the encoders, the language model and the Q-Former sizes that the adapter was trained with."
    return "Use the model section of the config.yaml in the adapter's folder."

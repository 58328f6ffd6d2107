"""GPTQ over a language model, layer by layer, on sequences of its real input.

A layer is calibrated on the outputs of the rounded layers before it, as in the paper's code; within a layer, linear
layers that share an input are rounded together, in the order in which they run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from data.batch import Sample
from models.language.llm import LanguageModel
from models.quantization.gptq import WORD, GPTQSettings
from models.quantization.gptq_solver import Rounded, output_error, round_to_nearest, solve
from models.salmonn import SALMONN
from support.command_line import UserError


@dataclass(frozen=True)
class CalibrationSequence:
    """One input of the language model: embeddings `[1, L, H]` without padding."""

    embeds: Tensor
    kind: str
    """`audio` or `text`."""


@dataclass(frozen=True, kw_only=True)
class LinearReport:
    """The effect of rounding one linear layer: the relative change of its outputs on the calibration sequences."""

    layer: int
    name: str
    error: float
    """By GPTQ."""
    nearest: float
    """By rounding to nearest, for comparison."""


@dataclass(frozen=True)
class _Call:
    """The arguments of a layer for one sequence, other than the hidden states."""

    arguments: tuple[Any, ...]
    named: dict[str, Any]


@torch.no_grad()
def audio_sequences(model: SALMONN, samples: Sequence[Sample]) -> list[CalibrationSequence]:
    """Template, prompt, audio tokens and answer of each clip, as training and generation join them."""
    sequences = []
    for sample in samples:
        tokens, mask = model.encode_audio(sample.waveform[None], torch.tensor([len(sample.waveform)]))
        assembled = model.assemble(tokens, mask, model.text.batch([sample.prompt], [sample.text]))
        sequences.append(CalibrationSequence(assembled.embeds, "audio"))
    return sequences


@torch.no_grad()
def text_sequences(model: SALMONN, lines: Sequence[str], count: int, length: int) -> list[CalibrationSequence]:
    """At most `count` sequences of up to `length` tokens from lines of plain text, one after another."""
    bos, ids = list(model.text.bos_ids), []
    for line in lines:
        ids += model.text.plain.ids(line + "\n")
        if len(ids) >= count * length:
            break
    room = length - len(bos)
    pieces = [bos + ids[start : start + room] for start in range(0, len(ids), room)][:count]
    embeds = [model.llm.embed(torch.tensor([piece], device=model.device)) for piece in pieces]
    return [CalibrationSequence(piece, "text") for piece in embeds]


@torch.no_grad()
def quantize_layers(
    llm: LanguageModel,
    sequences: Sequence[CalibrationSequence],
    settings: GPTQSettings,
    *,
    damp: float = 0.01,
    after_layer: Callable[[int, list[LinearReport]], None] = lambda index, reports: None,
) -> dict[str, Rounded]:
    """Round every linear layer of the decoder; embeddings and output head stay.

    The layers of `llm` have the rounded values afterwards. `after_layer` is called after each layer. Returns module
    name within `llm.model` -> the packed tensors of the file.

    Raises:
        ValueError: no sequences, or a layer whose size does not fit the format or `settings.group_size`.
    """
    if not sequences:
        raise UserError("GPTQ needs sequences to calibrate on; there are none")
    llm.eval()
    layers = llm.model.get_decoder().layers
    names = {module: name for name, module in llm.model.named_modules()}
    for layer in layers:
        for linear in _linears(layer).values():
            _check_fit(names[linear], linear, settings)
    hidden, calls = _record(llm, layers, sequences)
    rounded: dict[str, Rounded] = {}
    for index, layer in enumerate(layers):
        reports = []
        for group in _groups(layer, hidden[0], calls[index][0]):
            hessian = _second_moments(layer, group[0][1], hidden, calls[index])
            for name, linear in group:
                result = solve(linear.weight, hessian, settings, damp=damp)
                nearest = round_to_nearest(linear.weight, settings)
                reports.append(
                    LinearReport(
                        layer=index,
                        name=name.removesuffix(".base_layer"),
                        error=output_error(linear.weight, result.weight, hessian),
                        nearest=output_error(linear.weight, nearest.weight, hessian),
                    )
                )
                linear.weight.copy_(result.weight)
                rounded[names[linear]] = result
        hidden = [_run(layer, states, call) for states, call in zip(hidden, calls[index], strict=True)]
        after_layer(index, reports)
    return rounded


def _linears(layer: nn.Module) -> dict[str, nn.Linear]:
    """The frozen linear layers of a decoder layer, including those under LoRA."""
    return {
        name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear) and "lora_" not in name
    }


def _check_fit(name: str, linear: nn.Linear, settings: GPTQSettings) -> None:
    inputs, outputs, size = linear.in_features, linear.out_features, settings.group_size
    if size != -1 and inputs % size:
        fitting = [group for group in (128, 64, 32) if inputs % group == 0]
        raise UserError(
            f"--group-size {size} does not divide the {inputs} inputs of {name.removesuffix('.base_layer')}; take "
            f"{' or '.join(map(str, fitting)) or '-1, one group for each output'}"
        )
    if inputs * settings.bits % WORD or outputs * settings.bits % WORD:
        raise UserError(f"{name}, {inputs} by {outputs}, does not fill words of {WORD} bits at {settings.bits} bits")


def _record(
    llm: LanguageModel, layers: nn.ModuleList, sequences: Sequence[CalibrationSequence]
) -> tuple[list[Tensor], list[list[_Call]]]:
    """The first layer's inputs, and each layer's arguments (masks and positions, which do not depend on weights)."""
    first: list[Tensor] = []
    calls: list[list[_Call]] = [[] for _ in layers]

    def hook(index: int) -> Callable[[nn.Module, tuple, dict], None]:
        def keep(module: nn.Module, arguments: tuple, named: dict) -> None:
            named = dict(named)
            states = arguments[0] if arguments else named.pop("hidden_states")
            calls[index].append(_Call(arguments[1:], named))
            if index == 0:
                first.append(states)

        return keep

    hooks = [layer.register_forward_pre_hook(hook(index), with_kwargs=True) for index, layer in enumerate(layers)]
    try:
        for sequence in sequences:
            length = sequence.embeds.shape[1]
            device = sequence.embeds.device
            mask = torch.ones(1, length, dtype=torch.bool, device=device)
            llm(sequence.embeds, mask, torch.arange(length, device=device)[None])
    finally:
        for handle in hooks:
            handle.remove()
    return first, calls


def _run(layer: nn.Module, states: Tensor, call: _Call) -> Tensor:
    outputs = layer(states, *call.arguments, **call.named)
    return outputs[0] if isinstance(outputs, tuple) else outputs


def _groups(layer: nn.Module, states: Tensor, call: _Call) -> list[list[tuple[str, nn.Linear]]]:
    """The linear layers in the order in which they run, grouped by input."""
    seen: list[tuple[Tensor, list[tuple[str, nn.Linear]]]] = []

    def hook(name: str) -> Callable[[nn.Linear, tuple[Tensor]], None]:
        def keep(linear: nn.Linear, arguments: tuple[Tensor]) -> None:
            for inputs, group in seen:
                if inputs is arguments[0]:
                    return group.append((name, linear))
            return seen.append((arguments[0], [(name, linear)]))

        return keep

    hooks = [linear.register_forward_pre_hook(hook(name)) for name, linear in _linears(layer).items()]
    try:
        _run(layer, states, call)
    finally:
        for handle in hooks:
            handle.remove()
    return [group for _, group in seen]


def _second_moments(layer: nn.Module, linear: nn.Linear, hidden: list[Tensor], calls: list[_Call]) -> Tensor:
    """`[in, in]`: the mean over all tokens of the products of the linear layer's inputs."""
    moments = torch.zeros(linear.in_features, linear.in_features, device=linear.weight.device)
    tokens = 0

    def add(module: nn.Module, arguments: tuple[Tensor]) -> None:
        nonlocal tokens
        rows = arguments[0].reshape(-1, linear.in_features).float()
        tokens += len(rows)
        moments.addmm_(rows.T, rows)

    handle = linear.register_forward_pre_hook(add)
    try:
        for states, call in zip(hidden, calls, strict=True):
            _run(layer, states, call)
    finally:
        handle.remove()
    return moments / tokens

"""Where a NaN came from: the first module of a forward or backward pass that gave a value that is not finite."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor, nn

from support.command_line import UserError


class NonFiniteError(UserError):
    """Too many steps in a row had a loss or gradients that are not finite."""


def first_nonfinite(model: nn.Module, loss: Callable[[], Tensor]) -> str | None:
    """Run `loss` (a forward pass of `model`) and its backward pass; say what first was not finite, or None.

    Looks at the trained weights, then at every module's output in the order they are computed (a module's parts come
    before itself, so the innermost is named), then at the loss, then at gradients in the order of the backward pass.
    Gradients of the parameters are left None.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not torch.isfinite(parameter.detach()).all():
            return f"the weights of {name}"
    found: list[str] = []
    handles = [
        module.register_forward_hook(_watch(name or "the model", found)) for name, module in model.named_modules()
    ]
    try:
        value = loss()
    finally:
        for handle in handles:
            handle.remove()
    forward = [finding for finding in found if finding.startswith("the output")]
    if forward:
        return forward[0]
    if not torch.isfinite(value.detach()).all():
        return "the loss itself: every module's output was finite"
    if value.requires_grad:
        value.backward()
    backward = [finding for finding in found if finding.startswith("the gradient")]
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    model.zero_grad(set_to_none=True)
    if backward:
        return backward[0]
    return f"the gradient of {bad[-1]}" if bad else None


def _watch(name: str, found: list[str]) -> Callable[[nn.Module, tuple, object], None]:
    """A forward hook that notes a non-finite output of `name`, and later a non-finite gradient at its output."""

    def look_at_gradient(gradient: Tensor) -> None:
        if not torch.isfinite(gradient).all():
            found.append(f"the gradient at the output of {name}")

    def look(module: nn.Module, inputs: tuple, output: object) -> None:
        for tensor in _tensors(output):
            if not torch.isfinite(tensor.detach()).all():
                found.append(f"the output of {name} ({type(module).__name__})")
                return
            if tensor.requires_grad:
                tensor.register_hook(look_at_gradient)

    return look


def _tensors(value: object) -> Iterator[Tensor]:
    """Floating-point tensors in a module's output, however nested."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif is_dataclass(value):
        yield from _tensors([getattr(value, item.name) for item in fields(value)])

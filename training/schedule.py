"""Learning-rate schedule and optimiser of a run: pure functions of the step, the names and the configuration."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from support.command_line import UserError

ADAM_EPS = 1e-8
NO_DECAY_LETTERS = ("bias", "ln", "bn")


def learning_rate(
    step: int,
    *,
    init_lr: float,
    min_lr: float,
    max_epoch: int,
    iters_per_epoch: int,
    warmup_steps: int,
    warmup_start_lr: float,
    restart_warmup: bool,
) -> float:
    """Rate of iteration `step` (counted from 0 over the whole run, one a batch): linear warm-up, then half a cosine.

    Warm-up rises from `warmup_start_lr` (below 0: `init_lr`, that is none) to `init_lr`. The cosine counts from
    step 0, as in the SALMONN family, so the rate steps down a little where warm-up ends, and the last step is not
    quite `min_lr`. `restart_warmup` repeats a bug of the family: warm-up counts iterations within the epoch, so a
    warm-up longer than an epoch falls back to its start at each epoch's beginning.
    """
    if step < warmup_steps:
        start = warmup_start_lr if warmup_start_lr >= 0 else init_lr
        risen = step % iters_per_epoch if restart_warmup else step
        return min(init_lr, start + (init_lr - start) * risen / max(warmup_steps, 1))
    progress = step / (max_epoch * iters_per_epoch)
    return (init_lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress)) + min_lr


def decay_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]]]:
    """Trainable parameters in order, as (with weight decay, without).

    The family's rule: no decay for fewer than 2 axes, nor for a name with the letters "bias", "ln" or "bn" anywhere.
    """
    decay, plain = [], []
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        without = parameter.ndim < 2 or any(letters in name for letters in NO_DECAY_LETTERS)
        (plain if without else decay).append((name, parameter))
    return decay, plain


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    init_lr: float,
    weight_decay: float,
    beta2: float,
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters in the two groups of `decay_groups`.

    Raises UserError where nothing is trainable.
    """
    decay, plain = decay_groups(named_parameters)
    if not decay and not plain:
        raise UserError(
            "nothing to train: every parameter is frozen. Unfreeze the connector (model.freeze_speech_QFormer, "
            "model.freeze_speech_llama_proj), switch model.lora on, or unfreeze an encoder."
        )
    groups = [
        {"params": [parameter for _, parameter in decay], "weight_decay": weight_decay},
        {"params": [parameter for _, parameter in plain], "weight_decay": 0.0},
    ]
    on_cpu = all(parameter.device.type == "cpu" for _, parameter in decay + plain)
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=init_lr,
        betas=(0.9, beta2),
        eps=ADAM_EPS,
        fused=True if on_cpu else None,  # on a CPU the default goes through the parameters one by one
    )

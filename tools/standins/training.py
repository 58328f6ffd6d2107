"""Shared by the three pretrainings: batches of similar lengths, the learning rate, storage in half precision."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

POOL_BATCHES = 16
"""Clips are sorted by length within this many batches: little padding, but a random order."""


def length_batches(lengths: list[int], size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Endless batches of indices; each pass over the data is a new order."""
    while True:
        order = torch.randperm(len(lengths), generator=generator).tolist()
        for start in range(0, len(order), size * POOL_BATCHES):
            pool = sorted(order[start : start + size * POOL_BATCHES], key=lengths.__getitem__)
            batches = [pool[i : i + size] for i in range(0, len(pool), size)]
            for number in torch.randperm(len(batches), generator=generator).tolist():
                yield batches[number]


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are replaced by the nearest orthogonal matrix (Jordan et al. 2024), for hidden weights.

    With the local attention that the encoder starts from, it needs less than half of AdamW's steps here (docs/log.md).
    """

    def __init__(
        self, matrices: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                velocity = state.setdefault("velocity", torch.zeros_like(weight))
                velocity.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonal(weight.grad.lerp(velocity, group["momentum"]))
                scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """All singular values brought near 1, by five Newton-Schulz iterations."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).to(matrix.dtype)


def optimisers(model: nn.Module, hidden: nn.Module, adam_rate: float, muon_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of `hidden` (the layers), AdamW for everything else that trains."""
    matrices = [p for p in hidden.parameters() if p.ndim == 2 and p.requires_grad]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    both = [Muon(matrices, muon_rate), torch.optim.AdamW(rest, lr=adam_rate, weight_decay=0.01, betas=(0.9, 0.98))]
    for optimiser in both:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return both


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then half a cosine to a hundredth of the peak."""
    if step <= warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def save_half(weights: dict[str, Tensor], path: Path) -> None:
    """Safetensors in float16: half the size, and much more precise than the 4 bits of the demo's LLM."""
    half = {name: value.detach().to(torch.float16).contiguous() for name, value in weights.items()}
    save_file(half, path, metadata={"format": "pt"})

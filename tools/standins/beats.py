"""The BEATs stand-in: a small BEATs trained on the demo's sounds, instruments and the gender of voices.

It is trained as a detector of the kinds that sound in every time step (160 ms), so that each window of the connector
has its own events, in order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from data.demo.captions import KINDS
from data.demo.sounds import CONTOURS, INSTRUMENTS, TEMPOS
from models.encoders.beats import BEATs
from models.encoders.beats_network import BEATsConfig
from models.frames import length_mask
from tools.standins.clips import PretrainingClip
from tools.standins.training import learning_rate, length_batches

CLASSES = (*KINDS, "male", "female", *CONTOURS, *TEMPOS)
CLASS_IDS = {name: number for number, name in enumerate(CLASSES)}
STEP_S = 0.16


@dataclass(frozen=True, kw_only=True)
class BEATsRecipe:
    """Sizes and training of the encoder."""

    patch_width: int = 64
    width: int = 128
    layers: int = 3
    heads: int = 4
    ffn: int = 256
    steps: int = 2000
    batch: int = 24
    peak_rate: float = 1e-3
    warmup_steps: int = 100
    seed: int = 0


def beats_config(recipe: BEATsRecipe) -> BEATsConfig:
    return BEATsConfig(
        embed_dim=recipe.patch_width,
        encoder_layers=recipe.layers,
        encoder_embed_dim=recipe.width,
        encoder_ffn_embed_dim=recipe.ffn,
        encoder_attention_heads=recipe.heads,
        layer_wise_gradient_decay_ratio=1.0,
        conv_pos=32,
        conv_pos_groups=8,
        num_buckets=64,
        max_distance=256,
        finetuned_model=True,
        predictor_class=len(CLASSES),
    )


@dataclass(frozen=True)
class Example:
    """One clip: its fbank and the kinds that sound in each step."""

    fbank: Tensor  # [F, 128] half
    labels: Tensor  # [steps, classes]

    @property
    def length(self) -> int:
        return len(self.labels)


def example(clip: PretrainingClip) -> Example:
    fbank = torch.from_numpy(clip.fbank)
    steps = len(fbank) // 16
    labels = torch.zeros(steps, len(CLASSES))

    def mark(name: str, start_s: float, end_s: float) -> None:
        first, last = round(start_s / STEP_S), max(round(start_s / STEP_S) + 1, round(end_s / STEP_S))
        labels[min(first, steps - 1) : last, CLASS_IDS[name]] = 1

    for kind, start_s, end_s in clip.events:
        mark(kind, start_s, end_s)
        if clip.melody is not None and kind in INSTRUMENTS and kind == clip.events[0][0]:
            for name in clip.melody:
                mark(name, start_s, end_s)
    if clip.gender is not None:
        mark(clip.gender, 0.0, steps * STEP_S)
    return Example(fbank[: steps * 16], labels)


def augment(fbank: Tensor, generator: torch.Generator) -> Tensor:
    """Random level, spectral tilt, noise and masked bands; fbanks are log energies divided by about 13."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    bins = fbank.shape[1]
    fbank = fbank + uniform(-0.2, 0.1) + torch.linspace(-1, 1, bins) * uniform(-0.08, 0.08)
    if uniform(0, 1) < 0.4:
        level = uniform(-0.9, float(fbank.max()) - 0.4)
        noise = (
            level + torch.linspace(0, uniform(-0.2, 0.1), bins) + 0.06 * torch.randn(fbank.shape, generator=generator)
        )
        fbank = torch.logaddexp(fbank * 13.1, noise * 13.1) / 13.1
    if uniform(0, 1) < 0.15:
        fbank = fbank.clone()
        fbank[:, int(uniform(90, 112)) :] = float(fbank.min())
    if uniform(0, 1) < 0.5:
        fbank = fbank.clone()
        start = int(uniform(0, bins - 14))
        fbank[:, start : start + int(uniform(2, 14))] = float(fbank.mean())
    return fbank


class Detector(BEATs):
    """BEATs with the classifier of fine-tuned files."""

    def reset_parameters(self) -> None:
        self.predictor = nn.Linear(self.dim, self.config.predictor_class)
        super().reset_parameters()


def step_logits(model: Detector, fbank: Tensor, steps: Tensor) -> Tensor:
    """fbank [B, F, 128], steps [B] -> logits [B, S, classes]: the mean over the tokens of a time step."""
    tokens = model.embed_patches(fbank)
    padded = ~length_mask(steps * model.tokens_per_step, tokens.shape[1])
    frames = model.encoder(tokens, padded)
    return model.predictor(frames).unflatten(1, (-1, model.tokens_per_step)).mean(2)


def train(recipe: BEATsRecipe, examples: list[Example], log) -> Iterator[tuple[int, Detector]]:
    """Train; yields (step, model) every 250 steps and at the end."""
    torch.manual_seed(recipe.seed)
    model = Detector(beats_config(recipe))
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.peak_rate, weight_decay=0.01, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(recipe.seed)
    batches = length_batches([item.length for item in examples], recipe.batch, generator)
    for step in range(1, recipe.steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, recipe.steps, recipe.peak_rate, recipe.warmup_steps)
        chosen = [examples[i] for i in next(batches)]
        steps = torch.tensor([item.length for item in chosen])
        size = int(steps.max())
        fbank = torch.stack(
            [F.pad(augment(i.fbank.float(), generator), (0, 0, 0, (size - i.length) * 16)) for i in chosen]
        )
        labels = torch.stack([F.pad(item.labels, (0, 0, 0, size - item.length)) for item in chosen])
        model.train()
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            logits = step_logits(model, fbank, steps).float()
            inside = length_mask(steps, size)
            loss = F.binary_cross_entropy_with_logits(logits[inside], labels[inside], reduction="sum") / inside.sum()
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0:
            log(step=step, loss=loss.item())
        if step % 250 == 0 or step == recipe.steps:
            yield step, model


@torch.no_grad()
def detection_scores(model: Detector, examples: list[Example]) -> tuple[float, float]:
    """Recall and precision of the events of all steps, at a probability of one half."""
    model.eval()
    hits = found = true = 0.0
    kinds = len(KINDS)
    for item in examples:
        logits = step_logits(model, item.fbank.float()[None], torch.tensor([item.length]))[0, :, :kinds]
        claimed, truth = logits > 0, item.labels[:, :kinds] > 0
        hits += float((claimed & truth).sum())
        found += float(claimed.sum())
        true += float(truth.sum())
    return hits / max(1.0, true), hits / max(1.0, found)


def save(model: Detector, path: Path) -> None:
    """`{'cfg', 'model'}` in half precision, including the classifier, as in fine-tuned files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save_checkpoint(path)
    file = torch.load(path, weights_only=True)
    file["model"] = {name: value.half() for name, value in file["model"].items()}
    torch.save(file, path)

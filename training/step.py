"""One optimiser step, on any number of processes: a window of batches in, a loss and changed weights out."""

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from data.batch import Batch
from models.encoders.frame_cache import FrameCache
from models.frames import Frames
from models.quantization.backends import require_trainable
from models.salmonn import SALMONN
from scoring.tasks import is_transcript
from support.random_state import rng_state, set_rng_state
from support.units import SAMPLE_RATE
from training.nonfinite import NonFiniteError, first_nonfinite

if TYPE_CHECKING:
    from training.distillation import Distiller

SMALLEST_LOSS_SCALE = 1.0  # an overflow at a smaller scale is not the scale's fault
SILENCE_PROMPT = "<Speech><SpeechHere></Speech>"

Outcome = Literal["ok", "overflow", "nonfinite", "empty"]


@dataclass(frozen=True)
class StepResult:
    """The result of a step; the same on every process."""

    loss_sum: float
    """Over `tokens` target tokens, all processes together."""
    tokens: int
    grad_norm: float
    """Before clipping."""
    outcome: Outcome
    """`overflow`: skipped while fp16's loss scale is being lowered; `nonfinite`: skipped; `empty`: every clip bad."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """With distillation or `model.ctc_weight`: each term's sum over the same tokens, before weighting."""


class TrainingStep:
    """Takes the optimiser steps of a run.

    Keeps `nonfinite_in_a_row` and raises NonFiniteError when it reaches `max_nonfinite_steps`.
    """

    def __init__(
        self,
        model: SALMONN,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        *,
        max_grad_norm: float | None,
        max_nonfinite_steps: int,
        cache: FrameCache | None = None,
        distiller: "Distiller | None" = None,
    ) -> None:
        require_trainable(model.llm.backend)
        self.model = model
        self.optimizer = optimizer
        self.accelerator = accelerator
        self.max_grad_norm = max_grad_norm
        self.max_nonfinite_steps = max_nonfinite_steps
        self.cache = cache
        self.distiller = distiller
        self.nonfinite_in_a_row = 0
        self._parameters = list(model.adapter_parameters())
        if distiller is not None:
            self._terms = tuple(distiller.terms)
        else:
            self._terms = model.loss_terms
        if accelerator.ddp_handler is not None:  # a trained encoder may have weights that some batches do not use
            accelerator.ddp_handler.find_unused_parameters = not all(model.encoders.frozen.values())
        with warnings.catch_warnings():  # about a name that accelerate uses; users cannot change it
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self._wrapped = accelerator.prepare_model(model, device_placement=False)

    def take(self, window: Sequence[Batch], tokens: int) -> StepResult:
        """Step over a window whose batches hold `tokens` target tokens on all processes together.

        Raises:
            NonFiniteError: this was the last non-finite step in a row that is allowed.
        """
        if tokens == 0:
            return StepResult(0.0, 0, 0.0, "empty")
        last_chance = self.nonfinite_in_a_row + 1 >= self.max_nonfinite_steps
        rng_before = rng_state() if last_chance else None
        loss_sum, parts = self._accumulate(window, tokens)
        norm = self._clip_gradients()
        outcome = self._update(loss_sum, norm)
        if outcome == "nonfinite" and rng_before is not None:
            set_rng_state(rng_before)
            self._give_up(window)
        return StepResult(loss_sum, tokens, norm, outcome, parts)

    def frames(self, waveforms: Tensor, lengths: Tensor) -> list[Frames] | None:
        """The frozen encoders' outputs from the cache; None where there is no cache and the model is to encode."""
        if self.cache is None:
            return None
        return self.cache.encode(waveforms, lengths)

    def _accumulate(self, window: Sequence[Batch], tokens: int) -> tuple[float, dict[str, float]]:
        """Forward and backward passes of a window; returns its loss, and the terms', summed over all processes."""
        self.model.train()
        accelerator = self.accelerator
        terms = self._terms
        local_sums = torch.zeros(1 + len(terms), device=accelerator.device)
        for index, batch in enumerate(window):
            exchanges = accelerator.num_processes > 1 and index == len(window) - 1
            if not len(batch) and not exchanges:
                continue
            with nullcontext() if exchanges else accelerator.no_sync(self._wrapped):
                if len(batch):
                    loss_sum, parts = self._losses(batch)
                    local_sums += torch.stack([loss_sum.detach(), *(parts[term] for term in terms)])
                else:  # every clip was bad here, but the other processes wait for gradients: zeros
                    loss_sum = 0.0 * self._losses(self._silence())[0]
                # Gradients are averaged over the processes, while the loss is divided by the tokens of all of them.
                accelerator.backward(loss_sum * (accelerator.num_processes / tokens))
        loss_sum, *parts = accelerator.reduce(local_sums, "sum").tolist()
        return loss_sum, dict(zip(terms, parts, strict=True))

    def _losses(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """A batch's loss, and the terms that it is made of where there are several."""
        if self.distiller is None:
            output = self._output(self._wrapped, batch)
            return output.loss_sum, output.parts
        waveforms, lengths = self._on_device(batch)
        losses = self.distiller.losses(self._wrapped, batch, waveforms, lengths, self.frames(waveforms, lengths))
        return losses.loss_sum, losses.parts

    def _output(self, model: torch.nn.Module, batch: Batch):
        waveforms, lengths = self._on_device(batch)
        return model(
            waveforms,
            lengths,
            text_batch=batch.text_batch,
            frames=self.frames(waveforms, lengths),
            transcripts=[
                text if is_transcript(task) else None for text, task in zip(batch.references, batch.tasks, strict=True)
            ],
        )

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        device = self.accelerator.device
        return batch.waveforms.to(device, non_blocking=True), batch.lengths.to(device, non_blocking=True)

    def _silence(self) -> Batch:
        return Batch(
            waveforms=torch.zeros(1, SAMPLE_RATE),
            lengths=torch.tensor([SAMPLE_RATE]),
            prompts=[SILENCE_PROMPT],
            references=[""],
            ids=[-1],
            tasks=["none"],
            text_batch=self.model.text.batch([SILENCE_PROMPT], [""]),  # an alignment's pieces spell this in any case
            bad=(),
        )

    def _clip_gradients(self) -> float:
        """Unscale and clip; returns the norm before clipping, the same on every process."""
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.unscale_(self.optimizer)
        limit = math.inf if self.max_grad_norm is None else self.max_grad_norm
        return torch.nn.utils.clip_grad_norm_(self._parameters, limit).item()

    def _update(self, loss_sum: float, norm: float) -> Outcome:
        """Step the optimiser, or skip where loss or gradients are not finite."""
        scaler = self.accelerator.scaler
        outcome: Outcome = "ok"
        if not math.isfinite(loss_sum):
            outcome = "nonfinite"
        elif not math.isfinite(norm):
            too_large = scaler is not None and scaler.get_scale() > SMALLEST_LOSS_SCALE
            outcome = "overflow" if too_large else "nonfinite"
        if outcome == "ok":
            scaler.step(self.optimizer) if scaler is not None else self.optimizer.step()
            self.nonfinite_in_a_row = 0
        elif outcome == "nonfinite":
            self.nonfinite_in_a_row += 1
        if scaler is not None:
            scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return outcome

    def _give_up(self, window: Sequence[Batch]) -> None:
        """Go through the window once more, looking at every module, and stop."""
        findings = []
        for batch in window:
            if len(batch) and not findings:
                finding = first_nonfinite(self.model, lambda batch=batch: self._output(self.model, batch).loss)
                findings = [f"{finding}, in a batch with clips {sorted(batch.ids)[:8]}"] if finding else []
        findings = gather_object(findings)
        first = findings[0] if findings else "not found, a second pass over the same clips was finite"
        raise NonFiniteError(
            f"{self.nonfinite_in_a_row} steps in a row had a loss or gradients that are not finite "
            f"(run.max_nonfinite_steps is {self.max_nonfinite_steps}). First non-finite value: {first} (positions in "
            "the training annotations). These steps changed no weights. Lower run.optims.init_lr, or compute in "
            "float32 (run.amp: false, model.dtype: float32)."
        )

"""Validation during training: loss per target token, task scores, and which checkpoint is the best so far."""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

import metrics
from configs.schema import Config
from data.batch import BadClip
from data.sampling import GlobalBatchSampler
from dataset import AudioTextDataset, build_loader, collate
from evaluation.hypotheses import evaluate_annotations
from models.frames import Frames
from models.released_rules import rules_of
from models.salmonn import SALMONN
from support.command_line import UserError
from support.random_state import preserved_rng
from training.stopping import Interrupted


class Validator:
    """Scores the model on the validation clips, and leaves every random generator as it was.

    The loss is over all clips that can be read; text is generated and scored, with `run.valid_scoring`, for
    `run.valid_max_samples` of them, the same ones every time, by the code of `evaluate.py`, so without autocast.
    Java metrics are left out: they take longer than decoding.
    """

    bad: dict[int, BadClip]
    """Clips that could not be read so far, by their index; the same on every process."""
    notices: list[str]
    """What the user is told about the last validation."""

    def __init__(
        self,
        config: Config,
        model: SALMONN,
        data: AudioTextDataset,
        accelerator: Accelerator,
        frame_source: Callable[[Tensor, Tensor], list[Frames] | None],
    ) -> None:
        self.config = config
        self.model = model
        self.data = data
        self.accelerator = accelerator
        self.frame_source = frame_source
        sampler = GlobalBatchSampler(
            data.durations(),
            batch_size=config.run.batch_size_eval,
            world_size=accelerator.num_processes,
            rank=accelerator.process_index,
            seed=config.run.seed,
            shuffle=False,
            bucket_batches=1,  # longest first
            tasks=None,
            task_weights=None,
        )
        self.loader = build_loader(
            data,
            sampler,
            collate=functools.partial(
                collate, text_processor=model.text, common_prompt=rules_of(config.model).common_prompt
            ),
            num_workers=min(config.run.num_workers, len(sampler)),
        )
        self.scored = data.annotations
        most = config.run.valid_max_samples
        if most is not None and most < len(data):
            chosen = np.random.default_rng(config.run.seed).permutation(len(data))[:most]
            self.scored = [data.annotations[index] for index in sorted(chosen)]
        self.bad = {}
        self.notices = []
        self._check_best_metric()

    def scores(self, stop: Callable[[], bool] = lambda: False) -> dict[str, float | None]:
        """`{"loss": …, "asr.wer": …, …}`, the same on every process.

        Raises:
            Interrupted: `stop` was true on one of the processes.
        """
        self.notices = []
        with preserved_rng(), torch.no_grad():
            loss = self._loss(stop)
            task_scores = self._task_scores(stop) if self.config.run.valid_scoring else {}
        return {"loss": loss, **task_scores}

    def _loss(self, stop: Callable[[], bool]) -> float:
        self.model.eval()
        device = self.accelerator.device
        totals = torch.zeros(3, dtype=torch.float64)  # loss, target tokens, asked to stop
        bad: list[BadClip] = []
        for batch in self.loader:
            if stop():
                break
            bad += batch.bad
            if not len(batch):
                continue
            waveforms, lengths = batch.waveforms.to(device), batch.lengths.to(device)
            frames = self.frame_source(waveforms, lengths)
            output = self.model(waveforms, lengths, text_batch=batch.text_batch, frames=frames)
            totals += torch.tensor([output.loss_sum.item(), output.target_tokens, 0.0], dtype=torch.float64)
        totals[2] = float(stop())
        loss_sum, tokens, stopped = self.accelerator.reduce(totals.to(device), "sum").tolist()
        if stopped:
            raise Interrupted
        self._set_aside(gather_object(bad))
        return loss_sum / tokens if tokens else math.nan

    def _set_aside(self, bad: list[BadClip]) -> None:
        new = {clip.index: clip for clip in bad if clip.index not in self.bad}
        if not new:
            return
        self.bad |= new
        first = min(new.values(), key=lambda clip: clip.index)
        others = f"; and {len(new) - 1} more, see quarantine.jsonl" if len(new) > 1 else ""
        self.notices.append(
            f"validation: {len(self.bad)} of {len(self.data)} clips cannot be read and are left out of the loss "
            f"({first.path}: {first.reason}{others})"
        )

    def _task_scores(self, stop: Callable[[], bool]) -> dict[str, float | None]:
        # One of several processes must not leave the exchange of hypotheses alone: then it runs to its end.
        alone = self.accelerator.num_processes == 1
        result = evaluate_annotations(
            self.model,
            self.scored,
            self.data.prompts,
            self.config,
            frame_source=self.frame_source,
            java=False,
            should_stop=stop if alone else lambda: False,
        )
        wanted = self.config.run.best_metric
        if wanted not in (None, "loss") and result.scores.get(wanted) is None:
            reasons = "; ".join(result.tasks[wanted.partition(".")[0]].reasons.values()) or "no reason given"
            self.notices.append(
                f"validation: no figure for run.best_metric = {wanted} ({reasons}); this checkpoint cannot be the best"
            )
        return result.scores

    def _check_best_metric(self) -> None:
        """Find a mistyped `run.best_metric` before the first epoch."""
        wanted = self.config.run.best_metric
        if wanted in (None, "loss"):
            return
        tasks = sorted({annotation.task for annotation in self.scored})
        if not self.config.run.valid_scoring:
            raise UserError(f"run.best_metric is {wanted!r}, which needs run.valid_scoring: true.")
        if wanted.split(".", 1)[0] not in tasks or "." not in wanted:
            example = f"{tasks[0]}.{metrics.primary_metric(tasks[0])[0]}"
            raise UserError(
                f"run.best_metric is {wanted!r}; expected 'loss' or task.metric, such as {example!r}, with one of the "
                f"validation tasks {', '.join(tasks)}."
            )
        task, _, name = wanted.partition(".")
        figures = metrics.score_with_reasons(task, [["a word"]], ["a word"], java=False).values
        if figures.get(name) is None:
            known = ", ".join(f"{task}.{figure}" for figure, value in figures.items() if value is not None)
            raise UserError(f"run.best_metric is {wanted!r}, which validation does not compute; it has {known}.")

"""The training loop: windows of batches in, steps, validations and checkpoints out; stops and resumes exactly.

One step takes `run.accum_grad_iters` batches a process. Its loss is the sum over all their target tokens divided by
the number of those tokens over all processes, which collation has counted before the step begins. So neither the
split into batches nor the number of processes changes what is learned, and every target token counts the same.
"""

import functools
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed

from configs.schema import Config
from data.batch import BadClip, Batch
from data.quarantine import Quarantine
from data.sampling import GlobalBatchSampler
from dataset import AudioTextDataset, BatchLoader, build_loader, collate
from models.checkpoint.adapter_folder import load_adapter, save_adapter
from models.encoders.frame_cache import FrameCache
from models.released_rules import rules_of
from models.salmonn import SALMONN
from support.command_line import UserError, disk_problem
from support.files import jsonable
from support.folder_lock import FolderInUse, require_held
from support.random_state import rng_state, set_rng_state
from training.best_checkpoint import criterion, is_better, shown_scores
from training.distillation import Distiller
from training.precision import make_accelerator, prepare_trained_parameters
from training.resuming import data_digest, describe_changes, prompts_digest, require_same_run
from training.run_folder import Progress, RunFolder, RunFolderError, TrainerState
from training.run_lock import lock_run
from training.run_log import RunLog, draw_curve
from training.schedule import build_optimizer, learning_rate
from training.step import StepResult, TrainingStep
from training.stopping import Interrupted, StopRequest

SMOOTHING = 0.98  # of the running loss in the progress bar
RANK_SEED_STRIDE = 1_000_003  # processes draw dropout from seeds far apart


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended."""

    folder: Path
    step: int
    total_steps: int
    last: Path | None
    """The newest checkpoint."""
    best: Path | None
    """The checkpoint with the best validation; None without validation."""
    scores: dict[str, float | None]
    """Of the best checkpoint."""
    stopped_by: signal.Signals | None
    """The signal that ended it early, else None."""
    bad_clips: int = 0
    """Training clips that could not be used."""

    @property
    def adapter(self) -> Path:
        """What to evaluate, or to start the next stage from: the best checkpoint, or the last without validation."""
        chosen = self.best or self.last
        assert chosen is not None, "a run that ended has a checkpoint"
        return chosen


class Runner:
    """Trains `model` on `train_data` as `config.run` says, in `folder`."""

    validator: Any = None
    """What scores the model after an epoch, an `evaluation.validation.Validator`; None trains without validation."""

    def __init__(
        self,
        config: Config,
        model: SALMONN,
        train_data: AudioTextDataset,
        *,
        accelerator: Accelerator | None = None,
        resume: Path | None = None,
        distiller: Distiller | None = None,
    ) -> None:
        self.config = config
        self.run = config.run
        self.rules = rules_of(config.model)
        self.model = model
        self.accelerator = accelerator or make_accelerator(config)
        self.device = self.accelerator.device
        self.folder = RunFolder(config.run.output_dir)
        self.train_data = train_data
        self.sampler, self.loader = self._make_loader()
        self.iters_per_epoch = len(self.sampler) if self.run.epoch_based else self.run.iters_per_epoch
        self.optimizer = build_optimizer(
            prepare_trained_parameters(model, self.accelerator),
            init_lr=self.run.optims.init_lr,
            weight_decay=self.run.optims.weight_decay,
            beta2=self.run.optims.beta2,
        )
        self.progress = Progress(
            shape=self._shape(),
            prompts=prompts_digest(train_data.prompts, train_data.tasks),
            sampler=self.sampler.state_dict(),
        )
        self._rng: dict | None = None
        self._saved_step: int | None = None
        if resume is not None:
            self._restore(resume)
        cache_folder = config.datasets.cache_encoder_outputs
        self.training_step = TrainingStep(
            model,
            self.optimizer,
            self.accelerator,
            max_grad_norm=self.run.max_grad_norm,
            max_nonfinite_steps=self.run.max_nonfinite_steps,
            cache=FrameCache(cache_folder, model.encoders) if cache_folder else None,
            distiller=distiller,
        )
        self.training_step.nonfinite_in_a_row = self.progress.nonfinite_in_a_row
        self.quarantine = Quarantine(
            self.folder.quarantine_path if self.accelerator.is_main_process else None,
            total=len(train_data),
            max_bad_fraction=config.datasets.max_bad_fraction,
        )
        self.quarantine.take_up(BadClip(**clip) for clip in self.progress.bad_clips)
        self._stop = StopRequest()
        self._interval_clips = 0
        self._clock = self._interval_clock = time.monotonic()

    # -- the run -----------------------------------------------------------------------------------------------------

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.iters_per_epoch / self.run.accum_grad_iters)

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.run.optims.max_epoch

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self.progress.iteration // self.iters_per_epoch

    def train(self) -> RunResult:
        """Train to the end, or to a signal; either way the newest checkpoint holds all that was done.

        Raises:
            FolderInUse: another process works in the folder.
            NonFiniteError: too many non-finite steps in a row.
            TooManyBadClips: more clips than `datasets.max_bad_fraction` cannot be read.
            RunFolderError: a checkpoint cannot be written.
        """
        with lock_run(self.folder, self.accelerator):
            return self._train_in_folder()

    def _train_in_folder(self) -> RunResult:
        notes = self._prepare_folder()
        self.log = RunLog(
            self.config,
            self.folder,
            total_steps=self.total_steps,
            done_steps=self.progress.step,
            active=self.accelerator.is_main_process,
        )
        for note in notes:
            self.log.say(note)
        self._clock = self._interval_clock = time.monotonic()
        try:
            with self._stop.noted(self.log.say):
                self._train()
        finally:
            self.log.close()
        return self._result()

    def _prepare_folder(self) -> list[str]:
        """Make the folder ready for the steps to come; returns messages for the user. Every process takes part."""
        progress, notes, lost = self.progress, [], False
        if self.accelerator.is_main_process:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            self.folder.sweep()
            notes = self.folder.go_on_from(progress.step, progress.best and progress.best["step"])
            lost = progress.best is not None and self.folder.best() is None
        if any(self._sum_over_processes(lost)):
            progress.best = None
        return notes

    def _train(self) -> None:
        if self._rng is not None:
            set_rng_state(self._rng)
        else:
            set_seed(self.run.seed + RANK_SEED_STRIDE * self.accelerator.process_index)
        if self._validation_is_due() and not self._finish_epoch():
            return
        for window in self._windows():
            if not self._step(window):  # a signal came, on whichever process
                if self._saved_step != self.progress.step:  # else that checkpoint stays, with its scores
                    self._save()
                return
            if self.progress.iteration % self.iters_per_epoch == 0:
                if not self._finish_epoch():
                    return
            elif self.run.checkpoint_every_steps and self.progress.step % self.run.checkpoint_every_steps == 0:
                self._save()
        if self._saved_step != self.progress.step:  # nothing was left to do, and the checkpoint is another folder's
            self._save()

    def _windows(self) -> Iterator[list[Batch]]:
        """The batches of each step still to do; the last window of an epoch may hold fewer."""
        batches = self._batches()
        while self.epoch < self.run.optims.max_epoch:
            left = self.iters_per_epoch - self.progress.iteration % self.iters_per_epoch
            yield [next(batches) for _ in range(min(self.run.accum_grad_iters, left))]

    def _batches(self) -> Iterator[Batch]:
        """Batches of this process without end, pass after pass over the data."""
        while True:
            yield from self.loader

    # -- one step ----------------------------------------------------------------------------------------------------

    def _step(self, window: list[Batch]) -> bool:
        """One optimiser step; False where a signal asks to stop, and nothing was done."""
        tokens, clips, bad, stop = self._sum_over_processes(
            sum(batch.text_batch.target_tokens for batch in window if len(batch)),
            sum(len(batch) for batch in window),
            sum(len(batch.bad) for batch in window),
            bool(self._stop),
        )
        if stop:
            return False
        if bad:
            for clip in gather_object([clip for batch in window for clip in batch.bad]):
                self.quarantine.add(clip)
            self.progress.bad_clips = [asdict(clip) for clip in self.quarantine.clips.values()]
        progress = self.progress
        rate = self._set_learning_rate(progress.iteration + len(window) - 1)
        result = self.training_step.take(window, tokens)
        progress.step += 1
        progress.iteration += len(window)
        progress.sampler = self.sampler.advanced(progress.sampler, len(window))
        progress.clips += clips
        progress.target_tokens += tokens
        progress.nonfinite_steps += result.outcome == "nonfinite"
        progress.nonfinite_in_a_row = self.training_step.nonfinite_in_a_row
        progress.overflow_steps += result.outcome == "overflow"
        self._interval_clips += clips
        self._log_step(result, rate)
        return True

    def _set_learning_rate(self, iteration: int) -> float:
        optims = self.run.optims
        rate = learning_rate(
            iteration,
            init_lr=optims.init_lr,
            min_lr=optims.min_lr,
            max_epoch=optims.max_epoch,
            iters_per_epoch=self.iters_per_epoch,
            warmup_steps=optims.warmup_steps,
            warmup_start_lr=optims.warmup_start_lr,
            restart_warmup=self.rules.restart_warmup,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _log_step(self, result: StepResult, rate: float) -> None:
        progress = self.progress
        if result.outcome in ("ok", "overflow"):
            loss = result.loss_sum / result.tokens
            progress.interval_loss_sum += result.loss_sum
            progress.interval_tokens += result.tokens
            for term, value in result.parts.items():
                progress.interval_parts[term] = progress.interval_parts.get(term, 0.0) + value
            before = loss if progress.smooth_loss is None else progress.smooth_loss
            progress.smooth_loss = SMOOTHING * before + (1 - SMOOTHING) * loss
        now = time.monotonic()
        speed = self._interval_clips / max(now - self._interval_clock, 1e-9)
        self.log.step(loss=progress.smooth_loss, samples_per_s=speed)
        if progress.step % self.run.log_freq and progress.step != self.total_steps:
            return
        tokens = progress.interval_tokens
        mean = progress.interval_loss_sum / tokens if tokens else None
        parts = {f"loss_{term}": value / tokens for term, value in progress.interval_parts.items()} if tokens else {}
        if mean is not None:
            progress.curve.append((progress.step, mean))
        self.log.line(
            {
                "step": progress.step,
                "iteration": progress.iteration,
                "epoch": progress.iteration / self.iters_per_epoch,
                "loss": mean,
                **parts,
                "lr": rate,
                "grad_norm": result.grad_norm,
                "samples": progress.clips,
                "target_tokens": progress.target_tokens,
                "samples_per_s": round(speed, 3),
                "seconds": round(progress.seconds + now - self._clock, 3),
                "skipped": progress.nonfinite_steps,
                "overflows": progress.overflow_steps,
                "bad_clips": len(self.quarantine),
            }
        )
        progress.interval_loss_sum, progress.interval_tokens, progress.interval_parts = 0.0, 0, {}
        self._interval_clips, self._interval_clock = 0, now

    # -- validation and checkpoints ----------------------------------------------------------------------------------

    def _validation_is_due(self) -> bool:
        """Whether the run was stopped between an epoch's last step and the end of its validation."""
        at_end = self.progress.iteration > 0 and self.progress.iteration % self.iters_per_epoch == 0
        return at_end and self.progress.validated_epochs < self.epoch

    def _finish_epoch(self) -> bool:
        """Validate, draw, save; False where a signal came meanwhile (a resumed run validates again)."""
        progress, epoch = self.progress, self.epoch
        metrics = self._metrics()
        improved = False
        wanted = epoch % self.run.valid_freq == 0 or epoch == self.run.optims.max_epoch
        if self.validator is not None and wanted:
            try:
                scores = self.validator.scores(stop=lambda: bool(self._stop))
            except Interrupted:
                self._save()
                return False
            for clip in self.validator.bad.values():
                self.quarantine.note(clip, "validation")
            name, value = criterion(scores, self.run.best_metric)
            improved = is_better(name, value, scores, progress.best)
            metrics |= {"scores": scores, "criterion": name, "value": value, "best_so_far": improved}
            progress.validations.append({"step": progress.step, "epoch": epoch, "scores": scores})
            if improved:
                progress.best = {"step": progress.step, "criterion": name, "value": value, "scores": scores}
            self.log.validation(progress.step, scores, len(self.validator.bad))
            shown = ", ".join(f"{key} {score:.4g}" for key, score in shown_scores(scores).items())
            note = " (best so far)" if improved else ""
            for message in (*self.validator.notices, f"epoch {epoch}, step {progress.step}: validation {shown}{note}"):
                self.log.say(message)
        progress.validated_epochs = epoch
        if self.accelerator.is_main_process:
            points = [(entry["step"], shown_scores(entry["scores"])) for entry in progress.validations]
            draw_curve(self.folder.curve_path, progress.curve, points)
        self._save(metrics, best=improved)
        self._interval_clock = time.monotonic()
        return True

    def _save(self, metrics: dict | None = None, *, best: bool = False) -> None:
        """Write a whole checkpoint, move the pointers, drop old ones; every process takes part."""
        now = time.monotonic()
        self.progress.seconds += now - self._clock
        self._clock = now
        rng = gather_object([rng_state()])
        error: OSError | FolderInUse | None = None
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = TrainerState(
                self.progress, self.optimizer.state_dict(), scaler.state_dict() if scaler is not None else None, rng
            )
            metrics = jsonable(metrics or self._metrics())
            target = self.folder.checkpoint_path(self.progress.step)
            try:
                require_held(self.folder.path)
                save_adapter(self.model, target, config=self.config, metrics=metrics, extra=state.write)
                self.folder.point("last", target)
                if best:
                    self.folder.point("best", target)
                self.folder.prune(self.run.keep_checkpoints)
            except (OSError, FolderInUse) as failure:
                error = failure
        (failed,) = self._sum_over_processes(error is not None)
        if isinstance(error, FolderInUse):
            raise error
        if failed:
            last = self.folder.last()
            kept = (
                f"{last} is complete; continue from it with --resume, once there is room"
                if last
                else "no checkpoint was written before; make room, then train again"
            )
            raise RunFolderError(
                f"step {self.progress.step}: the checkpoint could not be written to {self.folder.path} "
                f"({disk_problem(error) if error else 'on the first process'}); {kept}."
            ) from error
        self._saved_step = self.progress.step

    def _metrics(self) -> dict:
        return {"step": self.progress.step, "epoch": self.epoch, "train_loss": self.progress.smooth_loss}

    def _restore(self, checkpoint: Path) -> None:
        """Continue a run exactly where `checkpoint` left it."""
        state = TrainerState.read(checkpoint)
        fresh = self.progress
        require_same_run(checkpoint, {"stage": "train"} | state.progress.shape, fresh.shape)  # older ones name none
        changes = describe_changes(checkpoint, self.config, other_prompts=state.progress.prompts != fresh.prompts)
        if changes is not None:
            self.accelerator.print(changes)
        load_adapter(self.model, checkpoint)
        self.optimizer.load_state_dict(state.optimizer)
        if self.accelerator.scaler is not None and state.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.progress = state.progress
        self.progress.prompts = fresh.prompts
        if checkpoint.resolve() == self.folder.checkpoint_path(self.progress.step).resolve():
            self._saved_step = self.progress.step
        self.sampler.load_state_dict(state.progress.sampler)
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        if len(state.rng) == ranks:
            self._rng = state.rng[rank]
        else:
            self.accelerator.print(
                f"resuming with {ranks} processes instead of {len(state.rng)}: the same clips in the same steps, but "
                "dropout differs from here on."
            )

    def _shape(self) -> dict:
        return {
            "stage": self.run.stage,
            "seed": self.run.seed,
            "clips": len(self.train_data),
            "global_batch": self.run.batch_size_train * self.accelerator.num_processes,
            "accum_grad_iters": self.run.accum_grad_iters,
            "iters_per_epoch": self.iters_per_epoch,
            "annotations": data_digest(self.train_data.annotations),
        }

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _make_loader(self) -> tuple[GlobalBatchSampler, BatchLoader]:
        sampler = GlobalBatchSampler(
            self.train_data.durations(),
            batch_size=self.run.batch_size_train,
            world_size=self.accelerator.num_processes,
            rank=self.accelerator.process_index,
            seed=self.run.seed,
            shuffle=True,
            bucket_batches=self.config.datasets.bucket_batches,
            tasks=self.train_data.tasks,
            task_weights=self.config.datasets.task_weights,
        )
        if not len(sampler):
            raise UserError(f"datasets.train_ann_path: no clip to train on in {self.config.datasets.train_ann_path}.")
        loader = build_loader(
            self.train_data,
            sampler,
            collate=functools.partial(collate, text_processor=self.model.text, common_prompt=self.rules.common_prompt),
            num_workers=self.run.num_workers,
        )
        return sampler, loader

    def _sum_over_processes(self, *values: float) -> tuple[int, ...]:
        """Whole numbers summed over all processes, in one exchange."""
        if self.accelerator.num_processes == 1:
            return tuple(int(value) for value in values)
        total = self.accelerator.reduce(torch.tensor(values, dtype=torch.int64, device=self.device), "sum")
        return tuple(total.tolist())

    def _result(self) -> RunResult:
        best = self.progress.best
        return RunResult(
            folder=self.folder.path,
            step=self.progress.step,
            total_steps=self.total_steps,
            last=self.folder.last(),
            best=self.folder.best(),
            scores=dict(best["scores"]) if best else {},
            stopped_by=self._stop.signal if self.progress.step < self.total_steps else None,
            bad_clips=len(self.quarantine),
        )

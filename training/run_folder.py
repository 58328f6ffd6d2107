"""A run's folder: whole checkpoints, the pointers `last` and `best`, and what a run needs to continue exactly.

    <output_dir>/
        checkpoint_000300/      adapter.safetensors, config.yaml, metrics.json
            trainer_state/      progress.json, optimizer.pt, rng.pt
        last -> checkpoint_000300           a link, or a small file where there are none
        best -> checkpoint_000200
        abandoned_checkpoint_000400/    set aside: the run continued from an older checkpoint
        log.jsonl, loss.png, quarantine.jsonl, wandb_run_id

A checkpoint appears under its name only when all of it is on disk; a folder under another name was left by a
killed save and is never read. So the newest `checkpoint_*` is always whole, whatever the pointers say.
"""

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from pickle import UnpicklingError

import torch

from support.command_line import UserError
from support.files import recover, write_whole
from support.pointers import point, pointed

STATE_FOLDER = "trainer_state"
ABANDONED = "abandoned_"  # before the name of a checkpoint that the run has left behind
_CHECKPOINT = re.compile(r"checkpoint_(\d+)")


class RunFolderError(UserError):
    """A run's folder cannot be used as asked."""


@dataclass(kw_only=True)
class Progress:
    """How far a run is: everything of its state that is neither a tensor nor a random generator."""

    step: int = 0
    """Optimiser steps (accumulation windows) so far, skipped ones included."""
    iteration: int = 0
    """Batches a rank so far; the learning rate counts these."""
    validated_epochs: int = 0
    sampler: dict = field(default_factory=dict)
    """The sampler's state: global samples consumed."""
    nonfinite_steps: int = 0
    """Steps skipped because loss or gradients were not finite."""
    nonfinite_in_a_row: int = 0
    overflow_steps: int = 0
    """fp16 steps skipped while the loss scale was being lowered: ordinary."""
    bad_clips: list[dict] = field(default_factory=list)
    """{"index", "path", "reason"} of each clip set aside so far."""
    clips: int = 0
    """Clips trained on, over all ranks."""
    target_tokens: int = 0
    seconds: float = 0.0
    """Wall-clock time of training and validation, over all restarts."""
    interval_loss_sum: float = 0.0
    interval_tokens: int = 0
    """Loss since the last line of the log."""
    interval_parts: dict = field(default_factory=dict)
    """With distillation: the same of each term."""
    smooth_loss: float | None = None
    """Exponential mean of the step losses, as the progress bar shows it."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """(step, training loss), a point each log line."""
    validations: list[dict] = field(default_factory=list)
    """{"step", "epoch", "scores"} of each validation."""
    best: dict | None = None
    """{"step", "criterion", "value", "scores"} of the best validation so far; higher values are better."""
    shape: dict = field(default_factory=dict)
    """What must not change for a resumed run to be the same run: seed, clips, global batch, …"""
    prompts: str = ""
    """Digest of the training prompts: a change is reported, and the run continues."""


@dataclass(frozen=True)
class TrainerState:
    """Contents of `trainer_state/`."""

    progress: Progress
    optimizer: dict
    scaler: dict | None
    rng: list[dict]
    """Random generator states, one a rank."""

    def write(self, folder: Path) -> None:
        """Write into `folder/trainer_state/`."""
        target = folder / STATE_FOLDER
        target.mkdir(parents=True, exist_ok=True)
        (target / "progress.json").write_text(json.dumps(asdict(self.progress), indent=1), encoding="utf-8")
        for name, state in (
            ("optimizer.pt", {"optimizer": self.optimizer, "scaler": self.scaler}),
            ("rng.pt", self.rng),
        ):
            try:
                torch.save(state, target / name)
            except RuntimeError as error:  # how PyTorch reports a full disk
                raise OSError(f"{target / name}: not written whole; is the disk full? ({error})") from error

    @classmethod
    def read(cls, checkpoint: Path) -> "TrainerState":
        """Read from a checkpoint.

        Raises:
            RunFolderError: where the checkpoint holds no trainer state, or another version's.
        """
        source = checkpoint / STATE_FOLDER
        try:
            raw = json.loads((source / "progress.json").read_text(encoding="utf-8"))
            tensors = torch.load(source / "optimizer.pt", map_location="cpu", weights_only=True)
            rng = torch.load(source / "rng.pt", map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise RunFolderError(
                f"{checkpoint}: cannot resume, {error.filename} is missing. An adapter alone cannot be resumed; "
                "start a new run from it with model.ckpt."
            ) from error
        except (json.JSONDecodeError, UnpicklingError, RuntimeError, EOFError) as error:
            raise RunFolderError(
                f"{source} is damaged: {error}. Delete {checkpoint}, and continue from an older one with --resume."
            ) from error
        unknown = set(raw) - {item.name for item in fields(Progress)}
        if unknown:
            raise RunFolderError(
                f"{source}/progress.json: unknown entries {sorted(unknown)}; another version wrote it."
            )
        raw["curve"] = [tuple(point) for point in raw.get("curve", [])]
        return cls(Progress(**raw), tensors["optimizer"], tensors["scaler"], rng)


class RunFolder:
    """Checkpoints of one run and the pointers to its last and best."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def log_path(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def curve_path(self) -> Path:
        return self.path / "loss.png"

    @property
    def quarantine_path(self) -> Path:
        return self.path / "quarantine.jsonl"

    @property
    def wandb_path(self) -> Path:
        """Holds the id of the run at Weights & Biases."""
        return self.path / "wandb_run_id"

    def checkpoint_path(self, step: int) -> Path:
        return self.path / f"checkpoint_{step:06d}"

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return [child for _, child in self._by_step()]

    def _by_step(self) -> list[tuple[int, Path]]:
        if not self.path.is_dir():
            return []
        for child in self.path.glob("checkpoint_*.previous"):  # its replacement was killed
            recover(child.with_suffix(""))
        return sorted(
            (int(match[1]), child)
            for child in self.path.iterdir()
            if (match := _CHECKPOINT.fullmatch(child.name)) and (child / STATE_FOLDER).is_dir()
        )

    def holds(self, checkpoint: Path) -> bool:
        """Whether this is a checkpoint of the folder, not another run's nor one set aside."""
        return pointed(checkpoint) in [own.resolve() for own in self.checkpoints()]

    def last(self) -> Path | None:
        """The newest whole checkpoint: found by its name, since a kill may fall between save and pointer."""
        checkpoints = self.checkpoints()
        return checkpoints[-1] if checkpoints else None

    def best(self) -> Path | None:
        target = pointed(self.path / "best")
        recover(target)
        return target if target.is_dir() else None

    def point(self, name: str, checkpoint: Path) -> None:
        """Set the pointer `name` to `checkpoint`, in one rename."""
        pointer = self.path / name
        if pointer.is_dir() and not pointer.is_symlink():  # a copy of the run that has the folder itself there
            os.replace(pointer, self._free_name(f"{ABANDONED}{name}"))
        point(pointer, checkpoint)

    def prune(self, keep: int | None) -> None:
        """Delete all but the `keep` newest checkpoints and those that pointers point to (None: keep all)."""
        if keep is None:
            return
        kept = {pointed(self.path / name) for name in ("last", "best")}
        for checkpoint in self.checkpoints()[: -max(keep, 1)]:
            if checkpoint.resolve() not in kept:
                doomed = checkpoint.with_name(f".deleted_{checkpoint.name}")  # half a checkpoint must not keep its name
                os.replace(checkpoint, doomed)
                shutil.rmtree(doomed)

    def sweep(self) -> None:
        """Delete what killed saves and deletions left behind."""
        self.checkpoints()  # those whose replacement was killed get their name back first
        for child in (*self.path.glob(".*checkpoint_*"), *self.path.glob("checkpoint_*.previous")):
            shutil.rmtree(child, ignore_errors=True)

    def go_on_from(self, step: int, best_step: int | None = None) -> list[str]:
        """Make the folder what it was at `step` of its run; returns messages for the user.

        Later checkpoints belong to a branch that the run leaves: they are set aside, so that none of them is taken for
        the newest. Later lines of the log go; at Weights & Biases, where none can go, a new run begins. The pointers
        are set again, wherever a kill left them: `last` to the newest checkpoint, `best` to that of `best_step`; where
        that one is not here there is no `best`.
        """
        notes = []
        if step == 0 or any(number > step for number, _ in self._by_step()):
            self.wandb_path.unlink(missing_ok=True)  # first: a kill after the renaming would hide that there is a need
        aside = self._set_aside(step)
        if aside:
            notes.append(
                f"{self.path}: continuing from step {step}, so the later checkpoints are set aside as "
                f"{', '.join(path.name for path in aside)}; delete them if you do not want them."
            )
        self.cut_log(step)
        self._point_or_remove("last", self.last())
        best = None if best_step is None else self.checkpoint_path(best_step)
        if best is not None and not self.holds(best):
            best = None
            notes.append(
                f"{self.path}: the best checkpoint so far, of step {best_step}, is not in this folder; the next "
                "validation sets `best` again."
            )
        self._point_or_remove("best", best)
        return notes

    def _set_aside(self, step: int) -> list[Path]:
        """Rename the checkpoints after `step`, the newest first: after a kill, what is left has no gap."""
        renamed = []
        for number, checkpoint in reversed(self._by_step()):
            if number <= step:
                break
            target = self._free_name(f"{ABANDONED}{checkpoint.name}")
            os.replace(checkpoint, target)
            renamed.insert(0, target)
        return renamed

    def _free_name(self, name: str) -> Path:
        names = (name, *(f"{name}_{count}" for count in range(2, 1_000_000)))
        return next(path for other in names if not (path := self.path / other).exists())

    def _point_or_remove(self, name: str, checkpoint: Path | None) -> None:
        pointer = self.path / name
        if checkpoint is not None:
            self.point(name, checkpoint)
        elif pointer.is_dir() and not pointer.is_symlink():
            os.replace(pointer, self._free_name(f"{ABANDONED}{name}"))
        else:
            pointer.unlink(missing_ok=True)

    def cut_log(self, step: int) -> None:
        """Drop log lines after `step`: the run continues from there and will write them again."""
        if not self.log_path.exists():
            return
        kept = []
        for line in self.log_path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except json.JSONDecodeError:  # the line a kill cut off; it is later than the checkpoint
                break
        write_whole(self.log_path, "".join(kept))


def find_resume(argument: str, folder: RunFolder) -> Path | None:
    """The checkpoint that `--resume` means: "auto" the run's own newest (None where there is none yet), else a path.

    A path may name a checkpoint, a pointer such as `last`, or a run's folder.
    """
    if argument == "auto":
        return folder.last()
    path = pointed(Path(argument))
    recover(path)
    if (path / STATE_FOLDER).is_dir():
        return path
    newest = RunFolder(path).last()
    if newest is None:
        raise RunFolderError(
            f"--resume {argument}: no checkpoint there. Name a checkpoint folder (it holds {STATE_FOLDER}/), "
            "a run's folder, or use --resume auto."
        )
    return newest

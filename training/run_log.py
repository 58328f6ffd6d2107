"""What a run says while it trains: progress bar, log.jsonl, the loss curve, Weights & Biases."""

import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from configs.schema import Config
from support.command_line import UserError
from support.files import jsonable, write_whole
from training.run_folder import RunFolder


class RunLog:
    """Log of one run; silent where `active` is False (every rank but the first)."""

    def __init__(
        self, config: Config, folder: RunFolder, *, total_steps: int, done_steps: int, active: bool = True
    ) -> None:
        self.folder = folder
        self.active = active
        self._bar = tqdm(
            total=total_steps,
            initial=done_steps,
            desc=folder.path.name,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5,
            disable=not active,
        )
        self._wandb = start_wandb(config, folder) if active else None

    def step(self, *, loss: float | None, samples_per_s: float) -> None:
        """Move the bar by a step; `loss` is the running mean."""
        shown = {} if loss is None else {"loss": f"{loss:.4f}"}
        self._bar.set_postfix(shown | {"samples/s": f"{samples_per_s:.1f}"}, refresh=False)
        self._bar.update()

    def line(self, entry: dict[str, Any]) -> None:
        """Append one line to log.jsonl; non-finite numbers become null, so that every line is JSON."""
        if not self.active:
            return
        with open(self.folder.log_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(jsonable(entry)) + "\n")
        if self._wandb is not None:
            numbers = {key: value for key, value in entry.items() if isinstance(value, (int, float))}
            self._wandb.log(numbers, step=entry["step"])

    def validation(self, step: int, scores: Mapping[str, float | None], bad_clips: int) -> None:
        """Append a validation's line to log.jsonl."""
        figures = {f"valid/{name}": score for name, score in scores.items()}
        self.line({"step": step, **figures, "valid/bad_clips": bad_clips})

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        if self.active:
            tqdm.write(message)

    def close(self) -> None:
        self._bar.close()
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None


def draw_curve(
    path: Path, training: Sequence[tuple[int, float]], validations: Sequence[tuple[int, dict[str, float]]]
) -> None:
    """Write the loss curve as PNG: training and validation loss and, on a second axis, task scores, over steps.

    `training` holds (step, loss), `validations` (step, scores) with `loss` among the scores.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    if training:
        axes.plot(*zip(*training, strict=True), linewidth=1, label="training loss")
    names = sorted({name for _, scores_then in validations for name in scores_then})
    scores = None
    for number, name in enumerate(names):
        points = [(step, scores_then[name]) for step, scores_then in validations if name in scores_then]
        if name == "loss":
            axes.plot(*zip(*points, strict=True), marker="o", label="validation loss")
        else:
            scores = scores or axes.twinx()
            scores.plot(
                *zip(*points, strict=True), marker=".", linestyle="--", linewidth=1, label=name, color=f"C{number + 2}"
            )
    axes.set(xlabel="step", ylabel="loss per target token")
    axes.grid(alpha=0.3)
    if scores is not None:
        scores.set_ylabel("score")
        scores.legend(loc="upper right", fontsize="small")
    if axes.lines:
        axes.legend(loc="upper left", fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def start_wandb(config: Config, folder: RunFolder) -> Any | None:
    """A Weights & Biases run where `wandb.mode` is online or offline, else None.

    Its id is kept in the folder, so that a resumed run continues in the same one.

    Raises:
        UserError: it is asked for, and the package is not installed.
    """
    settings = config.wandb
    if settings.mode not in ("online", "offline"):
        return None
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"wandb.mode is {settings.mode}, but the package wandb is not installed: "
            "pip install wandb, or set wandb.mode to disabled."
        ) from error
    if settings.mode == "online" and settings.key:
        wandb.login(key=settings.key)
    if not folder.wandb_path.exists():
        write_whole(folder.wandb_path, secrets.token_hex(8) + "\n")
    return wandb.init(
        mode=settings.mode,
        id=folder.wandb_path.read_text(encoding="utf-8").strip(),
        resume="allow",
        project=settings.project,
        entity=settings.entity,
        name=settings.name or folder.path.name,
        dir=settings.dir or str(folder.path),
        config=config.to_dict(),  # without secrets
    )

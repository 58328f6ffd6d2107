"""Which folder a command means where `run.output_dir` has `{date}` or `{time}`: decided once, when it starts.

A new run takes this moment; `--resume` the newest run's folder, or the one it names; an evaluation the folder of the
adapter that it evaluates, else the newest run's. A command with several processes asks in one of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from configs.dated import existing, fill, is_dated, moment_of, placeholders, this_moment
from configs.schema import Config
from training.run_folder import RunFolder

Moment = Mapping[str, str]


def dated(config: Config) -> bool:
    """Whether the run's folder has a placeholder; else its second stage's has none either."""
    return is_dated(config.run.output_dir)


def with_moment(config: Config, moment: Moment) -> Config:
    """The configuration with the folders of that moment; a second stage gets the moment of the first."""
    filled = {**this_moment(), **moment}
    run = config.run
    second = run.output_dir_stage2 and fill(run.output_dir_stage2, filled)
    run = dataclasses.replace(run, output_dir=fill(run.output_dir, filled), output_dir_stage2=second)
    return dataclasses.replace(config, run=run)


def moment_to_train(config: Config, resume: str | None, say: Callable[[str], None] = print) -> Moment:
    """The moment whose folder training writes to; `resume` is what `--resume` or `run.resume` gives."""
    if resume is None:
        return this_moment()
    if resume not in ("auto", "last"):
        return _moment_around(Path(resume), config) or this_moment()
    pattern = config.run.output_dir
    for moment in existing(pattern):
        folder = fill(pattern, moment)
        if RunFolder(folder).checkpoints():
            say(f"--resume: {folder}, the newest run's of run.output_dir = {pattern}")
            return moment
    return this_moment()


def moment_to_evaluate(config: Config, say: Callable[[str], None] = print) -> Moment:
    """The moment whose folder an evaluation writes to."""
    pattern, ckpt = config.run.output_dir, config.model.ckpt
    own = _moment_around(Path(ckpt), config) if ckpt else None
    if own is not None:
        return own
    for moment in existing(pattern):
        say(f"run.output_dir = {pattern}: writing to {fill(pattern, moment)}, the newest such folder")
        return moment
    return this_moment()


def _moment_around(path: Path, config: Config) -> Moment | None:
    """The moment of the run's folder that a path is, or is in; None where it is in none."""
    whole = path.expanduser().absolute()
    first = config.run.output_dir
    second = config.run.output_dir_stage2 or f"{first.rstrip('/')}_stage2"  # with `run.auto_second`
    for folder in (whole, *whole.parents, *whole.resolve().parents):  # `best` and `last` are links
        for pattern in (first, second):
            moment = moment_of(folder, pattern)
            if moment is not None and set(moment) == placeholders(first):
                return moment
    return None

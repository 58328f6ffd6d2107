"""What the checks of clips and texts cost, as a share of an epoch of training.

    python -m benchmarks.clip_checks --cfg-path configs/demo/stage1.yaml [--steps 20] [--rounds 5] [--out FILE]

Claim: all checks together take less than 5 % of an epoch of the demo (stage 1).

Two kinds: those of every clip as it is loaded (what its header says against what it holds, channels that cancel,
samples out of range, the stated length), and those of all clips before training (texts, lengths, positions). The first
is the difference between loading every clip with the checks and without, in turns over the same clips, the median of
the rounds. An epoch is its loading without checks, and `--steps` steps of the trainer scaled to its number of steps.
All times are processor seconds of this process, so that other jobs on the machine matter little.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from benchmarks.suite import RESULTS, origin, write_report
from configs.schema import add_config_arguments, config_from_arguments
from support import command_line
from support.command_line import require_writable

if TYPE_CHECKING:
    from configs.schema import Config
    from dataset import AudioTextDataset
    from runner import Runner

CLAIMED_SHARE = 0.05
RESULT = RESULTS / "clip_checks.json"


def measure(config: Config, steps: int, rounds: int) -> dict[str, object]:
    """Processor seconds of an epoch, of its checks while loading, and of those before it."""
    import torch

    from models.build import build_model
    from runner import Runner
    from training_data import check_content, load_data, without_long_clips

    train_data, _ = load_data(config)
    lengths_s = _taken(train_data.whole_durations)
    with_checks, without = _loading(train_data, rounds)
    torch.manual_seed(config.run.seed)
    model = build_model(config.model, device="cpu")
    before_s = lengths_s + _taken(
        lambda: check_content(config, model, without_long_clips(config, train_data, print), None, print)
    )
    runner = Runner(config, model, train_data)
    step_s = _step_seconds(runner, steps)
    epoch_s = without + step_s * runner.iters_per_epoch
    return {
        "clips": len(train_data),
        "steps": runner.iters_per_epoch,
        "epoch_s": epoch_s,
        "step_s": step_s,
        "loading_s": without,
        "checks_while_loading_s": max(0.0, with_checks - without),
        "checks_before_training_s": before_s,
        "share": (max(0.0, with_checks - without) + before_s) / epoch_s,
        "claimed_share": CLAIMED_SHARE,
    }


def _loading(data: AudioTextDataset, rounds: int) -> tuple[float, float]:
    """Median seconds to load every clip once, with the checks and without them."""

    def load() -> None:
        for position in range(len(data)):
            data[(0, position)]

    load()  # from the disk into memory
    pairs = []
    for _ in range(rounds):
        with_checks = _taken(load)
        with _no_checks():
            pairs.append((with_checks, _taken(load)))
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


@contextmanager
def _no_checks() -> Iterator[None]:
    """Loading that believes every header and every sample."""
    from data.findings import WHOLE

    with (
        mock.patch("data.opening.inspect", lambda file, decoded=None: WHOLE),
        mock.patch("data.channels.energy", lambda samples: 0.0),
        mock.patch("data.audio.problem_with", lambda low, high: None),
        mock.patch("dataset.misstated", lambda annotation, found_s, capped=False: []),
    ):
        yield


def _step_seconds(runner: Runner, steps: int) -> float:
    """Processor seconds of a trainer's step, without loading."""
    batches = [batch for batch, _ in zip(runner.loader, range(steps + 1), strict=False)]
    tokens = [batch.text_batch.target_tokens for batch in batches]
    runner.training_step.take(batches[:1], tokens[0])
    return _taken(
        lambda: [
            runner.training_step.take([batch], count) for batch, count in zip(batches[1:], tokens[1:], strict=True)
        ]
    ) / (len(batches) - 1)


def _taken(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def work(arguments: argparse.Namespace) -> int:
    config = config_from_arguments(arguments)
    config.require_paths("model", "model.prompt_path", "datasets.train_ann_path")
    require_writable(str(arguments.out.parent), "--out")
    figures = measure(config, arguments.steps, arguments.rounds)
    for name, value in figures.items():
        print(f"{name:<28}{value:>12.5g}")
    reached = figures["share"] < CLAIMED_SHARE
    report = {
        "benchmark": "clip_checks",
        "higher_is_better": False,
        "settings": {"cfg_path": arguments.cfg_path, "steps": arguments.steps, "rounds": arguments.rounds},
        "figures": figures,
        "reached": reached,
        **origin("cpu"),
    }
    write_report(arguments.out, report)
    print(f"written to {arguments.out}")
    return 0 if reached else 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.clip_checks", description=__doc__.split("\n", 1)[0])
    add_config_arguments(result)
    result.add_argument("--steps", type=int, default=20, help="steps of the trainer to time")
    result.add_argument("--rounds", type=int, default=5, help="passes over the clips, of each kind")
    result.add_argument("--out", type=Path, default=RESULT, help="JSON to write")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return command_line.run(work, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())

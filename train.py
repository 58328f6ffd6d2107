"""Train a model from one YAML.

python train.py --cfg-path configs/demo/stage1.yaml [--options run.seed=1 …] [--resume [PATH]] [--dryrun]
torchrun --nproc-per-node 2 train.py --cfg-path …
"""

from __future__ import annotations

import argparse
import gc
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs.dated import placeholders
from configs.schema import Config, add_config_arguments, config_from_arguments, holds_secret
from data.usable import require_some_usable
from support import command_line
from training_data import (
    check_content,
    load_data,
    prepare_alignment,
    require_no_teacher,
    transcripts_to_align,
    without_long_clips,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dataset import AudioTextDataset
    from models.salmonn import SALMONN
    from runner import Runner, RunResult
    from training.distillation import Distiller
    from training.run_folder import RunFolder

PRECISION_WORDS = {"fp16": "fp16 with loss scaling", "bf16": "bf16"}
NEEDS = ("datasets.train_ann_path", "datasets.valid_ann_path", "model.prompt_path", "model")
"""Paths that a mistake elsewhere in the file must not hide."""
STAGE_OPTIONS = ("run.output_dir", "run.auto_second", "run.second_stage_config", "run.resume", "model.ckpt")
"""Options that belong to the first stage alone when a second one follows from its own YAML."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_config_arguments(result)
    result.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="PATH",
        help="continue from the newest checkpoint of this run, or from the checkpoint or run folder PATH",
    )
    result.add_argument(
        "--dryrun",
        action="store_true",
        help="print sizes, a memory plan and the first batch, of what is available, and stop",
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status (128 + n where signal n ended the run)."""
    return command_line.run(work, parser(), argv)


def work(arguments: argparse.Namespace) -> int:
    """Train every stage; with `run.evaluate`, evaluate instead."""
    config = config_from_arguments(arguments, needs=() if arguments.dryrun else NEEDS)
    if config.run.evaluate and not arguments.dryrun:
        from evaluation.modes import chosen_modes
        from evaluation.run import evaluate_modes

        evaluate_modes(config, chosen_modes(config))
        return 0
    from torch import distributed

    try:
        return _train_stages(config, arguments)
    finally:
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def _train_stages(config: Config, arguments: argparse.Namespace) -> int:
    """Train the stage that the file describes and those it chains with `run.auto_second`."""
    import torch

    from training.dated_folder import dated, with_moment
    from training.precision import make_accelerator

    accelerator = make_accelerator(config)
    asked = arguments.resume or config.run.resume
    was_dated, moment = dated(config), {}
    if was_dated:
        moment = _agreed(accelerator, config, asked)
        config = with_moment(config, moment)
    later_options = [option for option in arguments.options if option.partition("=")[0] not in STAGE_OPTIONS]
    stage = 1
    while True:
        if stage > 1 or config.run.auto_second:
            accelerator.print(f"stage {stage}: {config.path} -> {config.run.output_dir}")
        with config.named():
            result = _train_stage(config, accelerator, _resume_argument(config, arguments), arguments.dryrun)
        if result is None:  # a dry run
            return 0
        if result.stopped_by is not None:
            done = f"stopped by {result.stopped_by.name} after step {result.step} of {result.total_steps}"
            place = f" {shlex.quote(config.run.output_dir)}" if was_dated else ""
            accelerator.print(f"{done}; saved {result.last}\ncontinue with: {_command(arguments)} --resume{place}")
            return 128 + result.stopped_by
        following = config.second_stage(str(result.adapter), later_options)
        if following is None:
            break
        config, stage = following, stage + 1
        if dated(config):  # of a YAML of its own
            named = placeholders(config.run.output_dir) <= set(moment)
            moment = moment if named else _agreed(accelerator, config, "auto" if asked else None)
            config, was_dated = with_moment(config, moment), True
        accelerator.free_memory()  # it still holds the finished stage's model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    accelerator.print(_closing_words(config, result))
    return 0


def _agreed(accelerator: Accelerator, config: Config, resume: str | None) -> Mapping[str, str]:
    """When the run started, as its folder is named: the same in every process."""
    from accelerate.utils import broadcast_object_list

    from training.dated_folder import moment_to_train

    moments = [moment_to_train(config, resume) if accelerator.is_main_process else None]
    return broadcast_object_list(moments)[0]


def make_runner(
    config: Config,
    model: SALMONN,
    train_data: AudioTextDataset,
    valid_data: AudioTextDataset | None = None,
    *,
    accelerator: Accelerator | None = None,
    resume: Path | None = None,
    distiller: Distiller | None = None,
) -> Runner:
    """The training loop, with what scores the model after an epoch where there are validation clips."""
    from evaluation.validation import Validator
    from runner import Runner

    runner = Runner(config, model, train_data, accelerator=accelerator, resume=resume, distiller=distiller)
    if valid_data is not None:
        runner.validator = Validator(config, model, valid_data, runner.accelerator, runner.training_step.frames)
    return runner


def _train_stage(
    config: Config, accelerator: Accelerator, resume_argument: str | None, dryrun: bool
) -> RunResult | None:
    """Train one stage; returns its RunResult, or None after a dry run."""
    from training.run_folder import RunFolder, find_resume
    from training.run_lock import lock_run

    require_no_teacher(config)
    folder = RunFolder(config.run.output_dir)
    if dryrun:
        if resume_argument:
            find_resume(resume_argument, folder)
        _print_remarks(config, accelerator)
        _dry_run(config, accelerator)
        return None
    command_line.require_writable(config.run.output_dir, "run.output_dir")
    with lock_run(folder, accelerator):  # until the end: nobody may start, or continue, between check and first save
        resume = _checkpoint_to_resume(folder, resume_argument, accelerator)
        _print_remarks(config, accelerator)
        return _train_in(config, accelerator, resume)


def _checkpoint_to_resume(folder: RunFolder, argument: str | None, accelerator: Accelerator) -> Path | None:
    """The checkpoint that the run continues from; an error where the folder's own checkpoints would be in the way."""
    from training.run_folder import RunFolderError, find_resume

    resume = find_resume(argument, folder) if argument else None
    if folder.checkpoints() and not (resume is not None and folder.holds(resume)):
        raise RunFolderError(
            f"{folder.path} already holds checkpoints (the newest: {folder.last().name}). Continue from there with "
            "--resume, choose another run.output_dir, or delete the folder."
        )
    if argument and resume is None:
        accelerator.print(f"{folder.path}: no checkpoint to resume from yet, so this run starts from the beginning")
    return resume


def _print_remarks(config: Config, accelerator: Accelerator) -> None:
    for note in config.remarks:
        accelerator.print(note)


def _train_in(config: Config, accelerator: Accelerator, resume: Path | None) -> RunResult:
    """Train in the run's folder, which is this run's alone."""
    config.require_paths(*_data_paths(config), *_model_paths(config))  # all that is missing, in one error
    train_data, valid_data = load_data(config)
    train_data = without_long_clips(config, train_data, accelerator.print)
    train_data, valid_data = transcripts_to_align(config, train_data, valid_data, accelerator.print)
    model, distiller = _build(config, accelerator)
    prepare_alignment(config, model, train_data, valid_data, accelerator.print, resume=resume)
    check_content(config, model, train_data, valid_data, accelerator.print)
    runner = make_runner(
        config, model, train_data, valid_data, accelerator=accelerator, resume=resume, distiller=distiller
    )
    accelerator.print(_opening_words(config, runner, resume))
    result = runner.train()
    require_some_usable(runner.quarantine.clips.values(), len(train_data), config.datasets.prefix)
    return result


def _build(config: Config, accelerator: Accelerator) -> tuple[SALMONN, Distiller | None]:
    """The model to train, and the teacher where there is one; what they need is checked first."""
    import torch

    from models.build import build_model
    from training.distillation import build_distiller
    from training.precision import training_model_config

    config.require_paths(*_model_paths(config))
    torch.manual_seed(config.run.seed)  # the fresh adapter, the same on every process
    model = build_model(
        training_model_config(config, accelerator.device),
        device=accelerator.device,
        aligning=config.run.stage == "align",
    )
    return model, build_distiller(config, model)


def _data_paths(config: Config) -> list[str]:
    validation = [] if config.datasets.valid_ann_path is None else ["datasets.valid_ann_path"]
    return ["datasets.train_ann_path", "model.prompt_path", *validation]


def _model_paths(config: Config) -> list[str]:
    return ["model"] if config.distillation.teacher is None else ["model", "distillation.teacher"]


def _dry_run(config: Config, accelerator: Accelerator) -> None:
    """Print the memory plan, and of data and weights what is available; an error only where no plan can be made."""
    import dryrun
    from training.distillation import describe_plan

    weights, data = dryrun.missing_weights(config.model), dryrun.missing_data(config)
    teacher = config.distillation.teacher
    if teacher is not None:
        absent = dryrun.missing_weights(teacher)
        weights |= {key.replace("model.", "distillation.teacher.", 1): path for key, path in absent.items()}
    model = distiller = None
    if not weights and config.datasets.train_ann_path:
        model, distiller = _build(config, accelerator)
    device = dryrun.planned_device(config) if weights else accelerator.device
    accelerator.print(dryrun.plan(config, device, model))
    if weights:
        listed = "".join(f"\n  {key} = {path}" for key, path in weights.items())
        listed += dryrun.how_to_bring(weights)
        accelerator.print(f"\nweights not found, so the plan comes from the architectures alone:{listed}")
    if data:
        listed = "".join(f"\n  {what}" for what in data)
        accelerator.print(f"\ndata not found, so no clip was looked at:{listed}")
    else:
        config.require_paths(*_data_paths(config))
        train_data, valid_data = load_data(config)
        train_data = without_long_clips(config, train_data, accelerator.print)
        train_data, valid_data = transcripts_to_align(config, train_data, valid_data, accelerator.print)
        if model is None:
            accelerator.print(f"\n{dryrun.describe_data(train_data, valid_data)}")
        else:
            prepare_alignment(config, model, train_data, valid_data, accelerator.print)
            check_content(config, model, train_data, valid_data, accelerator.print)
            loader = make_runner(config, model, train_data, valid_data, accelerator=accelerator).loader
            accelerator.print(f"\n{dryrun.describe(model, train_data, valid_data, next(iter(loader)))}")
    if distiller is not None:
        accelerator.print(f"\n{distiller.describe()}")
    elif teacher is not None:
        accelerator.print(f"\n{describe_plan(config, dryrun.planned_device(config))}")


def _resume_argument(config: Config, arguments: argparse.Namespace) -> str | None:
    """What this stage resumes from: a path given for another stage of a chain means this one's own newest."""
    asked = arguments.resume or config.run.resume
    if asked in (None, "auto", "last"):
        return "auto" if asked else None
    inside = Path(config.run.output_dir).resolve() in (Path(asked).resolve(), *Path(asked).resolve().parents)
    return "auto" if config.run.auto_second and not inside else asked


def _opening_words(config: Config, runner: Runner, resume: Path | None) -> str:
    trained = sum(parameter.numel() for parameter in runner.model.adapter_parameters())
    processes = runner.accelerator.num_processes
    clips = config.run.batch_size_train * config.run.accum_grad_iters * processes
    lines = [
        f"{config.path} -> {runner.folder.path}",
        f"  {trained:,} trained parameters on {runner.device}, {processes} process{'es' if processes > 1 else ''}, "
        f"{PRECISION_WORDS.get(runner.accelerator.mixed_precision, 'fp32')}",
        f"  {len(runner.train_data):,} clips; {runner.total_steps:,} steps of {clips} clips in "
        f"{config.run.optims.max_epoch} epochs of {runner.iters_per_epoch:,} iterations",
    ]
    lines.append(f"  language model's weights: {runner.model.llm.kernel}")
    if runner.model.config.encoder_quantization != "none":
        lines += [f"  {line}" for line in runner.model.encoders.kernels(runner.model.device)]
    optims = config.run.optims
    iterations = runner.iters_per_epoch * optims.max_epoch
    if optims.warmup_steps > iterations and 0 <= optims.warmup_start_lr < optims.init_lr:
        lines.append(
            f"  warning: run.optims.warmup_steps, {optims.warmup_steps:,}, is more than the run's {iterations:,} "
            "iterations: the learning rate will not reach run.optims.init_lr"
        )
    if resume is not None:
        lines.append(f"  resumed from {resume} at step {runner.progress.step:,}")
    return "\n".join(lines)


def _closing_words(config: Config, result: RunResult) -> str:
    from training.best_checkpoint import shown_scores

    lines = [f"done: {result.step:,} steps"]
    if result.best is not None:
        scores = ", ".join(f"{name} {value:.4g}" for name, value in shown_scores(result.scores).items())
        lines.append(f"  best: {result.folder / 'best'} ({result.best.name}: {scores})")
    lines += [
        f"  last: {result.folder / 'last'} ({result.last.name})",
        f"  log:  {result.folder / 'log.jsonl'}, {result.folder / 'loss.png'}",
    ]
    if result.bad_clips:
        lines.append(f"  warning: {result.bad_clips:,} clips could not be used: {result.folder / 'quarantine.jsonl'}")
    adapter = result.folder / ("best" if result.best is not None else "last")
    lines.append(f"next: python evaluate.py --cfg-path {shlex.quote(config.path)} --ckpt {shlex.quote(str(adapter))}")
    return "\n".join(lines)


def _command(arguments: argparse.Namespace) -> str:
    """The command line of this run, for continuing it; secrets are left out."""
    processes = os.environ.get("LOCAL_WORLD_SIZE")
    launcher = f"torchrun --nproc-per-node {processes}" if processes else "python"
    words = ["train.py", "--cfg-path", arguments.cfg_path]
    options = [option for option in arguments.options if not holds_secret(option)]
    if options:
        words += ["--options", *options]
    return f"{launcher} {shlex.join(words)}"


if __name__ == "__main__":
    sys.exit(main())

"""Hypotheses for annotation files, the CSV made from them, and their scores.

    python evaluate.py --cfg-path configs/demo/stage2.yaml --mode submission_asr --ckpt outputs/demo/stage2/best
    python evaluate.py --cfg-path … --mode valid_aac --swap-audio
    torchrun --nproc-per-node 2 evaluate.py --cfg-path … --mode valid_all

Modes: `submission_asr`, `submission_aac` (test files; scored where every clip has a reference), `valid_asr`,
`valid_aac` (validation file, the tasks of that family), `valid_all`, `test_all` (every task, a table each). Older
scripts' `--task asr --skip_scoring` is `submission_asr`, `--task asr` is `valid_asr`. Without a mode: a submission for
every test file that the YAML names.

Into `<output_dir>/eval/<mode>/` go `submission.csv`, `predictions.jsonl` and `scores.json`. A run that was killed goes
on where it stopped if adapter, generation settings, prompts and annotations are the same, else it starts afresh.

In `scores.json`, `scores` names every figure `task.metric`, as `asr.wer`, `audiocaption.cider_d`, `QA.token_f1`. A
mode of one family has the figures of the family's own task (`asr`, `audiocaption`) under the plain name of the metric
too, as `wer`. Neither name depends on which other tasks the files hold. `tasks` has the same figures task by task, with
clip counts and, for those that are null, the reason; `by_file`, where several annotation files are evaluated together,
the figures of each file alone (without METEOR and SPICE, whose programs take seconds a call).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from configs.schema import Config, add_config_arguments, config_from_arguments
from data.prompts import load_prompts
from evaluation.hypotheses import EvaluationResult, Processes, evaluate_annotations, prompts_for
from evaluation.modes import FAMILIES, MODES, chosen_modes, select_annotations
from evaluation.run import evaluate_mode
from models.build import build_model
from models.device import pick_device
from support.command_line import is_for_user, quieten_libraries, require_writable

__all__ = ["EvaluationResult", "evaluate_annotations", "main"]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_config_arguments(parser)
    parser.add_argument("--mode", choices=MODES, help="what to evaluate; default: every test file that the YAML names")
    parser.add_argument("--task", choices=tuple(FAMILIES), help="as older scripts call it: valid_TASK")
    parser.add_argument("--skip_scoring", "--skip-scoring", action="store_true", help="with --task: submission_TASK")
    parser.add_argument("--ckpt", metavar="FOLDER", help="adapter to evaluate, over model.ckpt")
    parser.add_argument("--swap-audio", action="store_true", help="give every clip another one's audio: <mode>_swapped")
    parser.add_argument(
        "--no-java", action="store_true", help="leave out METEOR and SPICE, whose programs take seconds"
    )
    parser.add_argument("--device", help="over run.device")
    arguments = parser.parse_args(argv)
    if arguments.task and arguments.mode:
        parser.error("--mode and --task are two names of one thing; give one")
    return arguments


def _evaluate_modes(config: Config, arguments: argparse.Namespace, processes: Processes) -> None:
    modes = chosen_modes(config, arguments)
    config.require_paths("model", "model.test_prompt_path")
    require_writable(config.run.output_dir, "run.output_dir")
    prompts = load_prompts(config.model.test_prompt_path)
    for mode in modes:  # a broken file, or a task without a prompt, ends the run before the model is loaded
        prompts_for(select_annotations(config, mode), prompts, config)
    device = processes.device(pick_device(arguments.device or config.run.device))
    if processes.is_main:
        for note in config.ignored:
            print(note)
        if not config.model.ckpt:
            print("model.ckpt is not set: this evaluates an untrained connector", file=sys.stderr)
    torch.manual_seed(config.run.seed)  # an untrained connector is the same one every time, in every process
    model = build_model(config.model, device=device)
    lora = model.merge_for_serving()
    if processes.is_main:
        print(f"language model's weights: {model.llm.kernel}; LoRA: {lora}")
        if config.model.encoder_quantization != "none":
            print("\n".join(model.encoders.kernels(model.device)))
    for mode in modes:
        evaluate_mode(
            model,
            config,
            mode,
            processes,
            swapped=arguments.swap_audio,
            scoring=not arguments.skip_scoring,
            java=not arguments.no_java,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status."""
    arguments = parse_arguments(argv)
    processes = Processes.join()
    quieten_libraries()
    try:
        config = config_from_arguments(arguments)
        if arguments.ckpt:
            config = config.with_adapter(arguments.ckpt)
        with config.named():
            _evaluate_modes(config, arguments, processes)
        return 0
    except (ValueError, OSError) as error:
        if not is_for_user(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        processes.leave()


if __name__ == "__main__":
    sys.exit(main())

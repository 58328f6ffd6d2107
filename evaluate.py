"""Hypotheses for annotation files, the CSV made from them, and their scores.

    python evaluate.py --cfg-path configs/demo/stage2.yaml --mode submission_asr --ckpt outputs/demo/stage2/best
    python evaluate.py --cfg-path … --mode valid_aac --swap-audio
    torchrun --nproc-per-node 2 evaluate.py --cfg-path … --mode valid_all

Modes: `submission_asr`, `submission_aac` (test files; scored where every clip has a reference), `valid_asr`,
`valid_aac` (validation file, the tasks of that family), `valid_all`, `test_all` (every task, a table each). Older
scripts' `--task asr --skip_scoring` is `submission_asr`, `--task asr` is `valid_asr`. Without `datasets.valid_ann_path`
a validation mode scores the test files, which then need texts, as the baseline's evaluator does. Without a mode: a
submission for every test file that the YAML names (the baseline's evaluator: `valid_aac`).

Into `<output_dir>/eval/<mode>/` go `submission.csv`, `predictions.jsonl` and `scores.json`. A run that was killed
continues where it stopped. Lines whose digest is not that of what their text depends on now (clip, entry, prompt,
adapter, model files, settings, program: `evaluation/restart.py`) are made again. Results of another adapter are put
aside, in `adapter_<digest>/`, and come back with it. `predictions_sha256` in `scores.json` says which lines it is of.

In `scores.json`, `scores` names every figure `task.metric`, as `asr.wer`, `audiocaption.cider_d`, `QA.token_f1`. A
mode of one family has the figures of the family's own task (`asr`, `audiocaption`) under the plain name of the metric
too, as `wer`. Neither name depends on which other tasks the files hold. `tasks` has the same figures task by task, with
clip counts and, for those that are null, the reason. Where curly quotes, full-width letters or signs without width
change a task's main metric, which follows the published normaliser, it is there a second time, as `wer_plain_text`,
with the number of texts that have such (`typographic_texts`). `by_file`, where several annotation files are evaluated
together, the figures of each file alone (without METEOR and SPICE, whose programs take seconds a call).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from configs.schema import add_config_arguments, config_from_arguments
from evaluation.modes import FAMILIES, MODES, chosen_modes
from support import command_line


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_config_arguments(result)
    what = result.add_mutually_exclusive_group()
    what.add_argument("--mode", choices=MODES, help="what to evaluate; default: every test file that the YAML names")
    what.add_argument("--task", choices=tuple(FAMILIES), help="as older scripts call it: valid_TASK")
    result.add_argument("--skip_scoring", "--skip-scoring", action="store_true", help="with --task: submission_TASK")
    result.add_argument("--ckpt", metavar="FOLDER", help="adapter to evaluate, over model.ckpt")
    result.add_argument("--swap-audio", action="store_true", help="give every clip another one's audio: <mode>_swapped")
    result.add_argument(
        "--no-java", action="store_true", help="leave out METEOR and SPICE, whose programs take seconds"
    )
    result.add_argument("--device", help="over run.device")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status."""
    return command_line.run(work, parser(), argv)


def work(arguments: argparse.Namespace) -> None:
    """Evaluate the modes that the arguments ask for."""
    needs = ["model.test_prompt_path", *([] if arguments.ckpt else ["model"])]
    config = config_from_arguments(arguments, needs=needs)
    if arguments.ckpt:
        config = config.with_adapter(arguments.ckpt)
    scoring = not arguments.skip_scoring
    modes = chosen_modes(config, arguments.mode, family=arguments.task, scoring=scoring)
    from evaluation.run import evaluate_modes

    evaluate_modes(
        config,
        modes,
        swapped=arguments.swap_audio,
        scoring=scoring,
        java=not arguments.no_java,
        device=arguments.device,
    )


if __name__ == "__main__":
    sys.exit(main())

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
import dataclasses
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import metrics
import provenance
from command_line import is_for_user, quieten_libraries, require_writable
from configs.schema import Config, ConfigError, add_config_arguments, config_from_arguments
from data.annotations import Annotation, AnnotationError, load_annotations
from dataset import BadClip, Quarantine
from inference import (
    EvaluationResult,
    Processes,
    TaskScores,
    evaluate_annotations,
    flat_scores,
    frames_from_cache,
    prompts_for,
    score_predictions,
)
from models import SALMONN, build_model, pick_device
from models.checkpoint import adapter_state_dict
from predictions import (
    PREDICTIONS,
    SCORES,
    SUBMISSION,
    Prediction,
    PredictionStore,
    row_ids,
    shared_ids,
    write_atomically,
)
from prompting import load_prompts
from swap import swap_audio

__all__ = ["EvaluationResult", "evaluate_annotations", "main"]

MODES = ("submission_asr", "submission_aac", "valid_asr", "valid_aac", "valid_all", "test_all")
FAMILIES = {"asr": "asr", "aac": "audiocaption"}
"""Family -> the stem of its tasks' names."""


def in_family(task: str, family: str) -> bool:
    """Whether a task belongs to `asr` (`asr`, `asr_zh`, …) or `aac` (`audiocaption`, `audiocaption_v2`, …)."""
    stem = FAMILIES[family]
    return task == stem or task.startswith(f"{stem}_")


def select_annotations(config: Config, mode: str, *, announce: bool = False) -> list[Annotation]:
    """The annotations that a mode evaluates, each with its row's name in `testset_id`. With `announce` it is said where
    a name is not the one in the file.

    Raises:
        ConfigError: the YAML names no file for the mode, or the file has no clip of the family.
        AnnotationError: two clips of a submission have one `testset_id`.
    """
    which, _, family = mode.partition("_")
    datasets = config.datasets
    dedicated = {"asr": datasets.test_ann_path_asr, "aac": datasets.test_ann_path_aac}
    if which == "valid":
        key, paths, filtered = "datasets.valid_ann_path", datasets.valid_ann_path, family != "all"
    elif family == "all":
        key, paths, filtered = "datasets.test_ann_path", datasets.test_ann_path, False
        if paths is None:
            paths = [path for several in dedicated.values() for path in _as_list(several)] or None
    else:
        key, paths, filtered = f"datasets.test_ann_path_{family}", dedicated[family], False
        if paths is None:
            paths, filtered = datasets.test_ann_path, True
    if not paths:
        also = " (or datasets.test_ann_path)" if which != "valid" else ""
        raise ConfigError(f"{config.path}: {key}: not given{also}; --mode {mode} evaluates the clips of that file")
    everything = load_annotations(_as_list(paths), datasets.prefix, require_text=which == "valid")
    chosen = [a for a in everything if not filtered or in_family(a.task, family)]
    if not chosen:
        tasks = ", ".join(f"{task} ({count})" for task, count in Counter(a.task for a in everything).items())
        raise ConfigError(
            f"{', '.join(_as_list(paths))}: no clip for --mode {mode}, which takes tasks named {FAMILIES[family]}…; "
            f"the file has {tasks}"
        )
    shared = shared_ids(chosen)
    if shared and which == "submission":
        before, again = shared[0]
        raise AnnotationError(
            f"{again.source}: field 'testset_id': {again.testset_id!r} was used before, at {before.source} "
            f"({len(shared)} such in all); a submission needs a name of its own for every row. Change one, or evaluate "
            "the files one at a time"
        )
    if shared and announce:
        before, again = shared[0]
        print(
            f"{mode}: {len(shared)} clips have a testset_id that another file has too, first {again.testset_id!r} in "
            f"{before.source} and {again.source}; their rows are named FILE/ID"
        )
    return [
        dataclasses.replace(annotation, testset_id=name, index=position)
        for position, (annotation, name) in enumerate(zip(chosen, row_ids(chosen), strict=True))
    ]


def _as_list(paths: str | Sequence[str] | None) -> list[str]:
    return [] if paths is None else [paths] if isinstance(paths, str) else list(paths)


def run_hashes(
    model: SALMONN, config: Config, annotations: Sequence[Annotation], prompts: Mapping[str, object]
) -> dict[str, str]:
    """What predictions depend on, a hash each; a restart continues only where all are equal."""
    adapter = hashlib.sha256()
    for name, tensor in sorted(adapter_state_dict(model).items()):
        adapter.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        adapter.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    settings = config.to_dict()
    # Adapter and prompts are hashed by content, so where they lie does not matter; weights are named by their files.
    by_content = ("ckpt", "prompt_path", "test_prompt_path")
    model_settings = {name: value for name, value in settings["model"].items() if name not in by_content}
    files = {name: _file_marks(value) for name, value in model_settings.items() if name.endswith("_path")}
    clips = [
        [a.path, a.expand_wav, a.task, a.Q, a.testset_id, a.text, a.texts, a.extra, config.datasets.max_audio_s]
        for a in annotations
    ]
    seed = config.run.seed if config.generate.do_sample else None
    return {
        "adapter": adapter.hexdigest(),
        "model": _digest([model_settings, files]),
        "generation settings": _digest([settings["generate"], seed]),
        "prompts": _digest([prompts.get(task) for task in sorted({a.task for a in annotations})]),
        "annotations": _digest(clips),
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _file_marks(path: object) -> list[list[object]]:
    """Name, size and time of each file of local weights; nothing for hub names."""
    if not isinstance(path, str) or not path or not Path(path).exists():
        return []
    files = [Path(path)] if Path(path).is_file() else sorted(p for p in Path(path).iterdir() if p.is_file())
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def evaluate_mode(
    model: SALMONN,
    config: Config,
    mode: str,
    processes: Processes,
    *,
    swapped: bool = False,
    scoring: bool = True,
    java: bool = True,
) -> dict[str, object] | None:
    """Evaluate one mode and write its three files; returns the content of scores.json (None but in process 0)."""
    annotations = select_annotations(config, mode, announce=processes.is_main)
    prompts = load_prompts(config.model.test_prompt_path)
    swap = swap_audio(annotations, config.run.seed) if swapped else None
    folder = Path(config.run.output_dir) / "eval" / (f"{mode}_swapped" if swapped else mode)
    store = PredictionStore(folder, processes.rank)
    heard = swap.annotations if swap else annotations
    hashes = run_hashes(model, config, heard, prompts)
    if processes.is_main:
        changed = store.open_run(hashes)
        if changed:
            print(f"{folder}: starting afresh, because other {' and '.join(changed)} made the predictions found there")
    processes.wait()
    started = time.monotonic()
    result = evaluate_annotations(
        model,
        heard,
        prompts,
        config,
        processes=processes,
        store=store,
        spoken_by=annotations,
        frames=frames_from_cache(model, config),
        scoring=scoring,
        java=java,
        progress=folder.name,
    )
    if not processes.is_main:
        return None
    store.finish(result.predictions)
    _quarantine(folder / "quarantine.jsonl", result)
    report = _report(config, mode, result, hashes, seconds=time.monotonic() - started)
    by_file = scores_by_file(mode, result.predictions, annotations, scoring=scoring)
    if len(by_file) > 1:
        report["by_file"] = by_file
    report["device"] = provenance.machine(model.device)
    if swap:
        report["swap"] = {"seed": config.run.seed, "clips_with_a_common_reference": swap.same_reference}
    write_atomically(folder / SCORES, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    print(_summary(folder, report))
    return report


def _quarantine(path: Path, result: EvaluationResult) -> None:
    """Name the clips that could not be used, as training does; here they never end the run."""
    path.unlink(missing_ok=True)
    quarantine = Quarantine(path, total=len(result.predictions), max_bad_fraction=1.0)
    for p in result.predictions:
        if p.error is not None:
            quarantine.add(BadClip(index=p.index, path=p.audio_path or p.path, reason=p.error))


def named_scores(mode: str, tasks: Mapping[str, TaskScores]) -> dict[str, float | None]:
    """Figures by the names that the head of this file explains."""
    own = tasks.get(FAMILIES.get(mode.partition("_")[2], ""))
    return {**(own.values if own else {}), **flat_scores(tasks)}


def scores_by_file(
    mode: str, predictions: Sequence[Prediction], annotations: Sequence[Annotation], *, scoring: bool = True
) -> dict[str, dict[str, object]]:
    """Scores of each annotation file's clips alone, and counts, without the metrics that need Java."""
    files: dict[str, list[int]] = {}
    for position, annotation in enumerate(annotations):
        files.setdefault(annotation.source.rpartition("#")[0], []).append(position)
    rows: dict[str, dict[str, object]] = {}
    for file, positions in files.items():
        clips = [annotations[position] for position in positions]
        tasks = score_predictions([predictions[position] for position in positions], clips, scoring=scoring, java=False)
        rows[file] = {
            "clips": len(clips),
            "failed": sum(row.failed for row in tasks.values()),
            "scores": named_scores(mode, tasks),
            "reasons": {f"{task}.{name}": why for task, row in tasks.items() for name, why in row.reasons.items()},
        }
    return rows


def _report(
    config: Config, mode: str, result: EvaluationResult, hashes: Mapping[str, str], seconds: float
) -> dict[str, object]:
    """The content of scores.json."""
    failures = [p for p in result.predictions if p.error is not None]
    generated = len(result.predictions) - result.resumed
    return {
        "mode": mode,
        "scores": named_scores(mode, result.tasks),
        "directions": metrics.directions(name for task in result.tasks.values() for name in task.values),
        "tasks": {
            task: {
                "clips": scores.clips,
                "failed": scores.failed,
                "primary": scores.primary,
                "scores": scores.values,
                "reasons": scores.reasons,
            }
            for task, scores in result.tasks.items()
        },
        "clips": len(result.predictions),
        "failed": len(failures),
        "failures": [{"id": p.id, "path": p.audio_path or p.path, "reason": p.error} for p in failures],
        "cut_to_max_audio_s": sum(p.cut for p in result.predictions),
        "stopped_by_length": sum(p.stop_reason == "length" for p in result.predictions),
        "audio_seconds": round(sum(p.seconds for p in result.predictions), 2),
        "resumed_clips": result.resumed,
        "seconds": round(seconds, 2),
        "generation_seconds": round(result.generation_s, 2),
        "clips_per_second": round(generated / result.generation_s, 3) if generated else None,
        "checkpoint": config.model.ckpt,
        "hashes": dict(hashes),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "config": config.to_dict(),
    }


def _summary(folder: Path, report: Mapping[str, object]) -> str:
    lines = [f"{folder}: {report['clips']} clips, {report['failed']} failed, {report['seconds']} s"]
    if report["resumed_clips"]:
        lines[0] += f" ({report['resumed_clips']} clips were there from an earlier run)"
    for task, row in report["tasks"].items():
        shown = [f"{name} {value:.4g}" for name, value in row["scores"].items() if value is not None]
        lines.append(f"  {task} ({row['clips']} clips): {', '.join(shown) or 'not scored'}")
        whys = {reason: [n for n, r in row["reasons"].items() if r == reason] for reason in row["reasons"].values()}
        lines += [f"    {', '.join(names)}: {reason}" for reason, names in whys.items()]
    for file, row in report.get("by_file", {}).items():
        primaries = [f"{task}.{entry['primary']}" for task, entry in report["tasks"].items()]
        shown = [f"{name} {row['scores'][name]:.4g}" for name in primaries if row["scores"].get(name) is not None]
        lines.append(f"  {file} ({row['clips']} clips): {', '.join(shown) or 'not scored'}")
    for failure in report["failures"][:5]:
        lines.append(f"  failed: {failure['id']}: {failure['reason']}")
    if len(report["failures"]) > 5:
        lines.append(f"  … and {len(report['failures']) - 5} more; all of them in {SCORES}")
    lines.append(f"  written: {', '.join((SUBMISSION, PREDICTIONS, SCORES))}")
    return "\n".join(lines)


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


def chosen_modes(config: Config, arguments: argparse.Namespace) -> list[str]:
    """What the command line asks for.

    Raises:
        ConfigError: nothing is asked for and the YAML names no test file.
    """
    if arguments.mode:
        return [arguments.mode]
    if arguments.task:
        return [f"{'submission' if arguments.skip_scoring else 'valid'}_{arguments.task}"]
    named = {"submission_asr": config.datasets.test_ann_path_asr, "submission_aac": config.datasets.test_ann_path_aac}
    modes = [mode for mode, paths in named.items() if paths]
    if not modes and config.datasets.test_ann_path:
        modes = ["test_all"]
    if not modes:
        raise ConfigError(
            f"{config.path}: datasets.test_ann_path_asr, test_ann_path_aac and test_ann_path: none is given; "
            f"name one, or say --mode {' | '.join(MODES)}"
        )
    return modes


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

"""Modes of evaluation: one model, and for each mode predictions, scores and the files they are written to."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import torch

import metrics
from configs.schema import Config
from data.batch import BadClip
from data.prompts import load_prompts
from data.quarantine import Quarantine
from data.usable import require_files
from evaluation.hypotheses import EvaluationResult, evaluate_annotations, frames_from_cache, prompts_for
from evaluation.modes import annotation_keys, select_annotations
from evaluation.predictions import PREDICTIONS, QUARANTINE, SCORES, SUBMISSION, PredictionStore
from evaluation.processes import Processes
from evaluation.restart import digests
from evaluation.scores import named_scores, scores_by_file
from evaluation.swapped_audio import swap_audio
from models.build import build_model
from models.device import pick_device
from models.salmonn import SALMONN
from support import provenance
from support.command_line import UserError, require_writable
from support.content_hash import ContentHashes
from support.files import write_json
from support.folder_lock import locked_by_first
from training.dated_folder import dated, moment_to_evaluate, with_moment

MANY_FAILED = 0.5
"""A larger share of clips that could not be read is a warning of its own."""


def evaluate_modes(
    config: Config,
    modes: Sequence[str],
    *,
    swapped: bool = False,
    scoring: bool = True,
    java: bool = True,
    device: str | None = None,
) -> None:
    """Build the configuration's model and evaluate mode after mode, in every process that torchrun has started.

    Raises:
        UserError: what a mode needs is absent or broken, which is found before the model is loaded; or the model
            cannot be built.
    """
    with Processes.joined() as processes, config.named(), ExitStack() as locks:
        files = dict.fromkeys(key for mode in modes for key in annotation_keys(config, mode))
        config.require_paths("model", "model.test_prompt_path", *files)
        if dated(config):
            moments = processes.gather(moment_to_evaluate(config) if processes.is_main else None)
            config = with_moment(config, moments[0])
        require_writable(config.run.output_dir, "run.output_dir")
        prompts = load_prompts(config.model.test_prompt_path)
        for mode in modes:
            annotations = select_annotations(config, mode)
            require_files(annotations, config.datasets.prefix, f"--mode {mode}")
            prompts_for(annotations, prompts, config)
        for mode in modes:
            locks.enter_context(_lock(_folder(config, mode, swapped=swapped), processes))
        model = load_for_evaluation(config, processes, device or config.run.device)
        contents = ContentHashes()
        for mode in modes:
            evaluate_mode(
                model, config, mode, processes, swapped=swapped, scoring=scoring, java=java, contents=contents
            )


def _folder(config: Config, mode: str, *, swapped: bool) -> Path:
    return Path(config.run.output_dir) / "eval" / (f"{mode}_swapped" if swapped else mode)


def _lock(folder: Path, processes: Processes) -> AbstractContextManager[None]:
    return locked_by_first(
        folder,
        "evaluation",
        "wait until it has ended, or choose another run.output_dir",
        first=processes.is_main,
        exchange=processes.gather,
    )


def load_for_evaluation(config: Config, processes: Processes, device: str) -> SALMONN:
    """The model, merged for serving; says what runs."""
    own_device = processes.device(pick_device(device))
    if processes.is_main:
        for note in config.remarks:
            print(note)
        if not config.model.ckpt:
            print("model.ckpt is not set: this evaluates an untrained connector", file=sys.stderr)
    torch.manual_seed(config.run.seed)  # an untrained connector is the same one every time, in every process
    model = build_model(config.model, device=own_device, aligning=config.run.stage == "align")
    lora = model.merge_for_serving()
    if processes.is_main:
        print(f"language model's weights: {model.llm.kernel}; LoRA: {lora}")
        if config.model.encoder_quantization != "none":
            print("\n".join(model.encoders.kernels(model.device)))
    return model


def evaluate_mode(
    model: SALMONN,
    config: Config,
    mode: str,
    processes: Processes,
    *,
    swapped: bool = False,
    scoring: bool = True,
    java: bool = True,
    contents: ContentHashes | None = None,
) -> dict[str, object] | None:
    """Evaluate one mode and write its three files; returns the content of scores.json (None but in process 0)."""
    annotations = select_annotations(config, mode, announce=processes.is_main)
    prompts = load_prompts(config.model.test_prompt_path)
    swap = swap_audio(annotations, config.run.seed) if swapped else None
    folder = _folder(config, mode, swapped=swapped)
    evaluated = swap.annotations if swap else annotations
    hashes = digests(model, config, evaluated, prompts, contents=contents, processes=processes)
    store = PredictionStore(folder, hashes.lines, processes.rank)
    if processes.is_main:
        for note in store.open_run(hashes.parts, config.model.ckpt):
            print(note)
    processes.wait()
    started = time.monotonic()
    result = evaluate_annotations(
        model,
        evaluated,
        prompts,
        config,
        processes=processes,
        store=store,
        original_annotations=annotations,
        frame_source=frames_from_cache(model, config),
        scoring=scoring,
        java=java,
        progress=folder.name,
    )
    if not processes.is_main:
        _require_readable(folder, result, config.datasets.prefix, announce=False)
        return None
    lines = store.finish(result.predictions)
    with store.writing():
        _quarantine(folder / QUARANTINE, result)
    report = _report(config, mode, result, hashes.parts, seconds=time.monotonic() - started)
    report["predictions_sha256"] = lines
    by_file = scores_by_file(mode, result.predictions, annotations, scoring=scoring)
    if len(by_file) > 1:
        report["by_file"] = by_file
    report["device"] = provenance.machine(model.device)
    if swap:
        report["swap"] = {"seed": config.run.seed, "clips_with_a_common_reference": swap.same_reference}
    with store.writing():
        write_json(folder / SCORES, report)
    print(_summary(folder, report))
    _require_readable(folder, result, config.datasets.prefix, announce=True)
    return report


def _require_readable(folder: Path, result: EvaluationResult, prefix: str | None, *, announce: bool) -> None:
    """With `announce`, warn where most clips could not be read, since their rows count as empty texts.

    Raises:
        UserError: none could.
    """
    failed = [p for p in result.predictions if p.error is not None]
    if not failed:
        return
    first = f"the first is {failed[0].audio_path or failed[0].path}: {failed[0].error} (datasets.prefix = {prefix})"
    if len(failed) == len(result.predictions):
        raise UserError(f"{folder}: none of the {len(failed)} clips could be read; {first}")
    if announce and len(failed) > MANY_FAILED * len(result.predictions):
        print(
            f"warning: {folder}: {len(failed)} of {len(result.predictions)} clips could not be read, so the scores are "
            f"mostly of empty texts; {first}",
            file=sys.stderr,
        )


def _quarantine(path: Path, result: EvaluationResult) -> None:
    """Name the clips that could not be used, as training does; here they never end the run."""
    path.unlink(missing_ok=True)
    quarantine = Quarantine(path, total=len(result.predictions), max_bad_fraction=1.0)
    quarantine.take_up(
        BadClip(index=p.index, path=p.audio_path or p.path, reason=p.error)
        for p in result.predictions
        if p.error is not None
    )


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


def _limits(report: Mapping[str, object]) -> list[str]:
    """What limits took from clips and answers."""
    config, clips, lines = report["config"], report["clips"], []
    cut, stopped = report["cut_to_max_audio_s"], report["stopped_by_length"]
    if cut:
        lines.append(f"  cut to datasets.max_audio_s = {config['datasets']['max_audio_s']:g} s: {cut} of {clips} clips")
    if stopped:
        limit = config["generate"]["max_new_tokens"]
        lines.append(f"  stopped by generate.max_new_tokens = {limit}: {stopped} of {clips} answers")
    return lines


def _summary(folder: Path, report: Mapping[str, object]) -> str:
    lines = [f"{folder}: {report['clips']} clips, {report['failed']} failed, {report['seconds']} s"]
    if report["resumed_clips"]:
        lines[0] += f" ({report['resumed_clips']} clips were there from an earlier run)"
    lines += _limits(report)
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

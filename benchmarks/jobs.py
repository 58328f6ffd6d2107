"""What a job measures: ours or the reference model, in this process.

    python -m benchmarks.jobs RESULT.json < JOB

A job (suite.py), pickled on the standard input, names the model's files, what is measured and how often. Peak memory is
that of the whole process, loading included (on CUDA that of the allocator); in a process of its own it includes nothing
of another job.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.reference_model import ReferenceModel
from benchmarks.suite import Job, run_here
from configs.schema import Config
from configs.sections import GenerateConfig, RunConfig
from efficiency.gauges import Memory, clock
from efficiency.timing import TimedClip, decode, first_token, measure, reuse_prefix, synthetic_clip, warmup_rounds
from models.build import build_model
from support.units import GIB

ANSWER = " ".join(f"w{number}" for number in range(10, 50))
LEARNING_RATE = 3e-5


def run_job(job: Job) -> dict[str, Any]:
    """The figures of a job: load its side and measure it."""
    device = torch.device(job.device)
    torch.manual_seed(0)
    memory = Memory(device)
    before = memory.now_gib()
    memory.reset()
    start = time.perf_counter()
    if job.side == "ours":
        model: Any = build_model(job.config, device)
        merged = job.task != "training" and model.llm.merge_lora()
        about = {"kernel": model.llm.kernel, "lora_merged": merged}
    else:
        model = ReferenceModel(job.config, device)
        about = {"kernel": "transformers generate, dynamic cache, LoRA unmerged", "lora_merged": False}
    load_s = time.perf_counter() - start
    load_peak = memory.peak_gib()
    measured = MEASURES[job.side, job.task](model, job, memory)
    peak = max(load_peak, measured["peak_gib"])
    return {
        **measured,
        **about,
        "load_s": load_s,
        "before_load_gib": before,
        "load_peak_gib": load_peak,
        "peak_with_loading_gib": peak,
        "peak_with_loading_bytes": round(peak * GIB),
        "memory_kind": memory.kind,
        "threads": torch.get_num_threads(),
    }


def _our_latency(model: Any, job: Job, memory: Memory) -> dict[str, Any]:
    work = TimedClip(
        waveform=synthetic_clip(job.clip_s),
        prompt=job.prompt,
        decode_steps=job.decode_steps,
        iterations=job.iterations,
        warmup=job.warmup,
        calibration_s=job.calibration_s,
    )
    length = job.decode_steps
    return measure(model, work, {"num_beams": 1, "max_new_tokens": length, "min_length": length}, memory)


def _reference_latency(model: ReferenceModel, job: Job, memory: Memory) -> dict[str, Any]:
    now = clock(model.device)
    waveform = synthetic_clip(job.clip_s)
    length = job.decode_steps + 1
    rounds = []
    memory.reset()
    for iteration in range(job.warmup + job.iterations):
        marks: list[tuple[str, float]] = [("start", now())]
        model.generate(
            [waveform],
            [job.prompt],
            on_stage=lambda stage, marks=marks: marks.append((stage, now())),
            max_new_tokens=length,
            min_new_tokens=length,
            do_sample=False,
        )
        if iteration >= job.warmup:
            rounds.append(_stages(marks))
    figures, parts = (
        {name: statistics.median(part[name] for part in measured) for name in measured[0]}
        for measured in zip(*rounds, strict=True)
    )
    return {**figures, "ttft_parts_s": parts, "peak_gib": memory.peak_gib()}


def _stages(marks: Sequence[tuple[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Times of one pass and the parts of its TTFT, from the ends of its stages."""
    start, features, encoded = (at for _, at in marks[:3])
    tokens = [at for stage, at in marks if stage == "token"]
    figures = {
        "ttft_s": tokens[0] - start,
        "tpot_s": (tokens[-1] - tokens[0]) / (len(tokens) - 1),
        "contest_ttft_s": tokens[0] - features,
        "contest_tpot_s": tokens[1] - tokens[0],
    }
    parts = {
        "features.whisper": features - start,
        "encoders and connector": encoded - features,
        "prefill": tokens[0] - encoded,
    }
    return figures, parts


def _grid(model: Any, job: Job, memory: Memory) -> dict[str, Any]:
    """Every point of the grid, small ones first; one that would take too long or too much memory says so."""
    points: list[dict[str, Any]] = []
    for batch, clip_s in sorted(itertools.product(job.batches, job.clips_s), key=math.prod):
        point = {"batch": batch, "clip_s": clip_s}
        smaller = [row for row in points if "ttft_s" in row and row["batch"] <= batch and row["clip_s"] <= clip_s]
        growth = min((batch * clip_s / (row["batch"] * row["clip_s"]) for row in smaller), default=1.0)
        seconds = max((row["took_s"] for row in smaller), default=0.0) * growth
        if seconds > job.point_s:
            points.append(point | {"left_out": f"it would take about {seconds:.0f} s"})
            continue
        try:
            points.append(point | _point(model, job, memory, batch, clip_s))
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            points.append(point | {"left_out": "out of memory"})
    result = {"points": points, "peak_gib": max(row.get("peak_gib", 0.0) for row in points)}
    if job.annotations:
        result["scores"] = _scores(model, job)
    return result


def _point(model: Any, job: Job, memory: Memory, batch: int, clip_s: float) -> dict[str, Any]:
    work = TimedClip(waveform=synthetic_clip(clip_s), prompt=job.prompt, decode_steps=job.decode_steps, batch=batch)
    now = clock(model.device)
    begin = now()
    reuse_prefix(model, work)
    warmup = warmup_rounds(model, job.warmup)
    ttft, tpot = [], []
    memory.reset()
    for iteration in range(warmup + job.iterations):
        start = now()
        token, cache = first_token(model, work)
        first = now() - start
        steps = decode(model, token, cache, job.decode_steps, now)
        if iteration >= warmup:
            ttft.append(first)
            tpot.append(statistics.fmean(steps))
        del cache
    whole = statistics.median(ttft) + job.decode_steps * statistics.median(tpot)
    return {
        "ttft_s": statistics.median(ttft),
        "tpot_s": statistics.median(tpot),
        "tokens_per_s": batch / statistics.median(tpot),
        "rtfx": batch * clip_s / whole,
        "peak_gib": memory.peak_gib(),
        "took_s": now() - begin,
    }


def _evaluation(model: Any, job: Job, **limits: int) -> Callable[..., Any]:
    """`evaluate_annotations` of the job's clips, ready to be called."""
    from data.annotations import load_annotations
    from evaluation.hypotheses import evaluate_annotations

    annotations = load_annotations(job.annotations, prefix=job.prefix)
    config = Config(
        model=job.config,
        generate=GenerateConfig(num_beams=job.num_beams, **limits),
        run=RunConfig(batch_size_eval=job.batch, num_workers=0, device=job.device),
    )
    prompts = dict.fromkeys((annotation.task for annotation in annotations), job.prompt)
    return partial(evaluate_annotations, model, annotations, prompts, config)


def _scores(model: Any, job: Job) -> dict[str, Any]:
    """Task -> its metric, the value and the number of clips."""
    return {
        task: {"metric": row.primary, "value": row.values.get(row.primary), "clips": row.clips}
        for task, row in _evaluation(model, job)(java=False).tasks.items()
    }


def _our_evaluation(model: Any, job: Job, memory: Memory) -> dict[str, Any]:
    evaluate = _evaluation(model, job, max_new_tokens=job.decode_steps, min_length=job.decode_steps)
    return _timed(lambda: len(evaluate(scoring=False, progress=job.name).predictions), model, memory)


def _reference_evaluation(model: ReferenceModel, job: Job, memory: Memory) -> dict[str, Any]:
    """Batches in the file's order, as the public evaluators take them."""
    from data.annotations import load_annotations
    from data.audio import load_clip

    annotations = load_annotations(job.annotations)

    def evaluate() -> int:
        texts: list[str] = []
        for first in range(0, len(annotations), job.batch):
            batch = annotations[first : first + job.batch]
            ids = model.generate(
                [load_clip(clip.path, expand=clip.expand_wav, part=clip.part)[0] for clip in batch],
                [job.prompt] * len(batch),
                num_beams=job.num_beams,
                max_new_tokens=job.decode_steps,
                min_new_tokens=job.decode_steps,
                do_sample=False,
            )
            texts += model.tokenizer.batch_decode(ids, skip_special_tokens=True)
            print(f"{job.name}: {len(texts)} of {len(annotations)} clips", file=sys.stderr)
        return len(texts)

    return _timed(evaluate, model, memory)


def _timed(evaluate: Callable[[], int], model: Any, memory: Memory) -> dict[str, Any]:
    """Time and memory of `evaluate`, which returns how many clips it did."""
    now = clock(model.device)
    memory.reset()
    start, worked = now(), time.process_time()
    clips = evaluate()
    return {
        "seconds": now() - start,
        "processor_s": time.process_time() - worked,  # of all threads; other programs hardly count
        "clips": clips,
        "peak_gib": memory.peak_gib(),
    }


def _our_training(model: Any, job: Job, memory: Memory) -> dict[str, Any]:
    waveforms = synthetic_clip(job.clip_s).expand(job.batch, -1).contiguous()
    lengths = torch.full((job.batch,), waveforms.shape[1])

    def loss() -> torch.Tensor:
        return model(waveforms, lengths, [job.prompt] * job.batch, [ANSWER] * job.batch).loss

    return _training(model, loss, job, memory)


def _reference_training(model: ReferenceModel, job: Job, memory: Memory) -> dict[str, Any]:
    waveforms = [synthetic_clip(job.clip_s)] * job.batch
    return _training(model, lambda: model(waveforms, [job.prompt] * job.batch, [ANSWER] * job.batch), job, memory)


def _training(model: Any, loss: Callable[[], torch.Tensor], job: Job, memory: Memory) -> dict[str, Any]:
    """Seconds of an optimiser step on one batch: loss, gradients, AdamW."""
    now = clock(torch.device(job.device))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    model.train()
    memory.reset()
    seconds = []
    for _ in range(job.warmup + job.iterations):
        start = now()
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(now() - start)
    return {"seconds": statistics.median(seconds[job.warmup :]), "clips": job.batch, "peak_gib": memory.peak_gib()}


MEASURES: dict[tuple[str, str], Callable[[Any, Job, Memory], dict[str, Any]]] = {
    ("ours", "latency"): _our_latency,
    ("ours", "grid"): _grid,
    ("reference", "latency"): _reference_latency,
    ("ours", "evaluation"): _our_evaluation,
    ("reference", "evaluation"): _reference_evaluation,
    ("ours", "training"): _our_training,
    ("reference", "training"): _reference_training,
}


def main(argv: Sequence[str]) -> int:
    return run_here(argv, run_job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""One side of a comparison, ours or the reference way, measured in a process of its own.

    python -m benchmarks.sides JOB.json RESULT.json

A job names the model's files (random_weights.py), what is measured and how often. Peak memory is the whole process',
loading included (on CUDA the allocator's); a process of its own keeps one side's leavings out of the other's peak.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks import bare_machine  # noqa: F401 - before the program, whose readers of recordings may be absent
from benchmarks.reference_way import ReferenceModel
from configs.schema import Config
from configs.sections import GenerateConfig, ModelConfig, RunConfig
from efficiency.gauges import Memory, clock
from efficiency.limits import CALIBRATION_S
from efficiency.timing import TimedClip, decode, first_token, measure, reuse_prefix, synthetic_clip, warmup_rounds
from models.build import build_model
from support.command_line import quieten_libraries

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "<Speech><SpeechHere></Speech> Recognize the speech and give me the transcription."
ANSWER = " ".join(f"w{number}" for number in range(10, 50))
LEARNING_RATE = 3e-5


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process measures."""

    name: str
    side: Literal["ours", "reference"]
    task: Literal["latency", "grid", "evaluation", "training"]
    model: dict[str, Any]
    """The fields of `ModelConfig`, with paths of files that are there."""
    device: str = "cpu"
    clip_s: float = 10.0
    decode_steps: int = 32
    iterations: int = 3
    warmup: int = 1
    calibration_s: float = CALIBRATION_S
    """For each rate of the device; ours only."""
    annotations: str | None = None
    """Of the clips to evaluate."""
    batch: int = 1
    """Clips at once, in evaluation and training."""
    num_beams: int = 1
    """In evaluation."""
    batches: tuple[int, ...] = ()
    clips_s: tuple[float, ...] = ()
    """Of the grid: every number of clips with every length."""
    point_s: float = 60.0
    """Points of the grid that would take longer, judging by smaller ones, are left out."""
    prefix: str | None = None
    prompt: str = PROMPT
    """With `annotations`, a grid is scored: the folder that clip paths start from, and their prompt."""

    @classmethod
    def of(cls, config: ModelConfig, **fields: Any) -> Job:
        """A job on `config`, whose token stays behind: jobs are files."""
        return cls(model=dataclasses.asdict(dataclasses.replace(config, token=None)), **fields)

    @classmethod
    def read(cls, path: Path) -> Job:
        """From a JSON file, where tuples are lists."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})

    @property
    def config(self) -> ModelConfig:
        lists = {key: tuple(value) for key, value in self.model.items() if isinstance(value, list)}
        return ModelConfig(**(self.model | lists))


def run_job(job: Job) -> dict[str, Any]:
    """Load the job's side and measure it, in this process."""
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
        about = {"kernel": "transformers generate, dynamic cache, LoRA beside", "lora_merged": False}
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
        "peak_with_loading_bytes": round(peak * 2**30),
        "memory_kind": memory.kind,
        "threads": torch.get_num_threads(),
    }


def _our_latency(model: Any, job: Job, memory: Memory) -> dict[str, Any]:
    work = TimedClip(
        waveform=synthetic_clip(job.clip_s),
        prompt=PROMPT,
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
    rounds: list[dict[str, float]] = []
    memory.reset()
    for iteration in range(job.warmup + job.iterations):
        marks: list[tuple[str, float]] = [("start", now())]
        model.generate(
            [waveform],
            [PROMPT],
            on_stage=lambda stage, marks=marks: marks.append((stage, now())),
            max_new_tokens=length,
            min_new_tokens=length,
            do_sample=False,
        )
        if iteration >= job.warmup:
            rounds.append(_stages(marks))
    medians = {name: statistics.median(marks[name] for marks in rounds) for name in rounds[0]}
    parts = {name.removeprefix("part."): seconds for name, seconds in medians.items() if name.startswith("part.")}
    figures = {name: seconds for name, seconds in medians.items() if not name.startswith("part.")}
    return {**figures, "ttft_parts_s": parts, "peak_gib": memory.peak_gib()}


def _stages(marks: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Times of one pass, from when each of its stages was over."""
    start, features, encoded = (at for _, at in marks[:3])
    tokens = [at for stage, at in marks if stage == "token"]
    return {
        "ttft_s": tokens[0] - start,
        "tpot_s": (tokens[-1] - tokens[0]) / (len(tokens) - 1),
        "contest_ttft_s": tokens[0] - features,
        "contest_tpot_s": tokens[1] - tokens[0],
        "part.features.whisper": features - start,
        "part.encoders and connector": encoded - features,
        "part.prefill": tokens[0] - encoded,
    }


def _grid(model: Any, job: Job, memory: Memory) -> dict[str, Any]:
    """Every point of the grid, small ones first; what would take too long or too much memory is left out, and why."""
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


def _scores(model: Any, job: Job) -> dict[str, Any]:
    """Task -> its metric, the value and the number of clips."""
    from data.annotations import load_annotations
    from evaluation.hypotheses import evaluate_annotations

    annotations = load_annotations(job.annotations, prefix=job.prefix)
    config = Config(
        model=job.config,
        generate=GenerateConfig(num_beams=job.num_beams),
        run=RunConfig(batch_size_eval=job.batch, num_workers=0, device=job.device),
    )
    prompts = dict.fromkeys((annotation.task for annotation in annotations), job.prompt)
    result = evaluate_annotations(model, annotations, prompts, config, java=False)
    return {
        task: {"metric": row.primary, "value": row.values.get(row.primary), "clips": row.clips}
        for task, row in result.tasks.items()
    }


def _our_evaluation(model: Any, job: Job, memory: Memory) -> dict[str, Any]:
    from data.annotations import load_annotations
    from evaluation.hypotheses import evaluate_annotations

    annotations = load_annotations(job.annotations)
    length = job.decode_steps
    config = Config(
        model=job.config,
        generate=GenerateConfig(num_beams=job.num_beams, max_new_tokens=length, min_length=length),
        run=RunConfig(batch_size_eval=job.batch, num_workers=0, device=job.device),
    )
    now = clock(model.device)
    memory.reset()
    start, worked = now(), time.process_time()
    result = evaluate_annotations(model, annotations, {"asr": PROMPT}, config, scoring=False, progress=job.name)
    return {
        "seconds": now() - start,
        "processor_s": time.process_time() - worked,  # of all threads; what else runs on the machine hardly counts
        "clips": len(result.predictions),
        "peak_gib": memory.peak_gib(),
    }


def _reference_evaluation(model: ReferenceModel, job: Job, memory: Memory) -> dict[str, Any]:
    """Batches in the file's order, as the public evaluators take them."""
    from data.annotations import load_annotations
    from data.audio import load_waveform

    annotations = load_annotations(job.annotations)
    now = clock(model.device)
    texts: list[str] = []
    memory.reset()
    start, worked = now(), time.process_time()
    for first in range(0, len(annotations), job.batch):
        batch = annotations[first : first + job.batch]
        ids = model.generate(
            [load_waveform(annotation.path) for annotation in batch],
            [PROMPT] * len(batch),
            num_beams=job.num_beams,
            max_new_tokens=job.decode_steps,
            min_new_tokens=job.decode_steps,
            do_sample=False,
        )
        texts += model.tokenizer.batch_decode(ids, skip_special_tokens=True)
        print(f"{job.name}: {len(texts)} of {len(annotations)} clips, {now() - start:.0f} s", file=sys.stderr)
    return {
        "seconds": now() - start,
        "processor_s": time.process_time() - worked,
        "clips": len(texts),
        "peak_gib": memory.peak_gib(),
    }


def _our_training(model: Any, job: Job, memory: Memory) -> dict[str, Any]:
    waveforms = synthetic_clip(job.clip_s).expand(job.batch, -1).contiguous()
    lengths = torch.full((job.batch,), waveforms.shape[1])

    def loss() -> torch.Tensor:
        return model(waveforms, lengths, [PROMPT] * job.batch, [ANSWER] * job.batch).loss

    return _training(model, loss, job, memory)


def _reference_training(model: ReferenceModel, job: Job, memory: Memory) -> dict[str, Any]:
    waveforms = [synthetic_clip(job.clip_s)] * job.batch
    return _training(model, lambda: model(waveforms, [PROMPT] * job.batch, [ANSWER] * job.batch), job, memory)


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


def run_apart(job: Job, *, timeout_s: float | None = None) -> dict[str, Any]:
    """`run_job` in a process of its own; `{"error": why}` where it failed or took longer than `timeout_s`."""
    with tempfile.TemporaryDirectory(prefix="job_") as folder:
        given, made = Path(folder, "job.json"), Path(folder, "result.json")
        given.write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.sides", str(given), str(made)]
        try:
            status = subprocess.run(command, cwd=ROOT, timeout=timeout_s, check=False).returncode
        except subprocess.TimeoutExpired:
            return {"error": f"stopped after {timeout_s:.0f} s, the time it was given"}
        if not made.exists():
            return {"error": f"its process ended with status {status} and no result (memory?)"}
        return json.loads(made.read_text(encoding="utf-8"))


def ratio(slow: dict[str, Any] | None, fast: dict[str, Any] | None, figure: str) -> float | None:
    """How many times smaller `figure` is in `fast`; None where one of the two was not measured."""
    if not slow or not fast or slow.get(figure) is None or not fast.get(figure):
        return None
    return slow[figure] / fast[figure]


def main(argv: Sequence[str]) -> int:
    given, made = argv
    quieten_libraries()
    job = Job.read(Path(given))
    try:
        result = run_job(job)
    except Exception as error:  # whatever it was, the parent has other jobs to run and says what became of this one
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
    Path(made).write_text(json.dumps(result), encoding="utf-8")
    return int("error" in result)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Time to first token, time per token and peak memory of one model, at batch 1.

    python evaluate_efficiency.py --cfg-path configs/demo/stage2.yaml --ckpt outputs/demo/stage2/best

The lines timed are those that evaluation runs: `model.encode_audio`, `model.assemble`, `decoding.prefill`,
`decoding.decode_step`. Definitions:

- `ttft_s`: from the waveform in host memory to the first token's id, prompt tokenised and all transfers included.
  Its parts are taken in further iterations, one after each of the others, so that what else the machine does meets
  both alike; with a synchronised clock at every border, their sum may exceed the whole where the device would overlap
  them.
- `tpot_s`: mean over `--decode-steps` real steps, each with the cache one token longer and its token read back.
- `peak_gib`: most memory at inference, `load_peak_gib` while loading: of the CUDA allocator, or, on CPU, of the
  process' resident set, which holds Python and its libraries too (`before_load_gib`).
- `rtfx`: seconds of audio per second of `model.generate` with the YAML's generation settings.
- `contest_ttft_s`, `contest_tpot_s`: what the Nota contest's evaluator times, for comparison with published figures.
  The first starts with Whisper's log-mel spectrogram computed and everything on the device, and ends with the prefill;
  the second is one decode step straight after it. (That evaluator does not synchronise the device and counts its cold
  first run; here clocks are synchronised, after warm-ups.)

Every iteration does what a clip that was never met before takes: nothing of the clip is kept, and the prompt is
tokenised again. As in evaluation, keys and values of the fixed text before the audio are computed once and reused; the
report says of how many tokens (`reused_prefix_tokens`).

Beside the times stand the limits of the device, measured in the same run (device_limits.py), and the ratio to them.

Clocks are synchronised with the device; every figure at top level is the median over `--iterations`, after `--warmup`
(on CUDA at least three rounds, in which graphs are captured).
Writes `<output_dir>/efficiency.json` and prints a table beside the published systems.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import provenance
from command_line import is_for_user, quieten_libraries
from configs.schema import Config, add_config_arguments, config_from_arguments
from data.audio import SAMPLE_RATE, load_waveform
from device_gauges import Memory, clock
from device_limits import CALIBRATION_S, count_work, limits_of, measure_rates
from efficiency_report import comparison, format_table, published_rows, summary
from memory_plan import part_sizes
from models import SALMONN, beats, build_model, decoding, pick_device, whisper
from prompting import load_prompts

__all__ = ["Memory", "Workload", "clock", "comparison", "format_table", "measure", "published_rows", "summary"]

CAPTURED_AFTER = 3
"""Rounds after which every CUDA graph is captured: the first makes the place of the cache, and a shape that is met
again is captured."""
FEATURES = {"whisper": (whisper, "log_mel"), "beats": (beats, "kaldi_fbank")}
"""Encoder -> where it calls for its features, so that they are timed apart; others' are part of the encoder's time."""


@dataclass(frozen=True)
class Spread:
    """How a figure varied over the iterations."""

    median: float
    p90: float
    mean: float
    minimum: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        ordered = sorted(values)
        return cls(
            median=statistics.median(ordered),
            p90=float(np.percentile(ordered, 90)),
            mean=statistics.fmean(ordered),
            minimum=ordered[0],
            count=len(ordered),
        )


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is timed: one clip, one prompt, a number of decode steps, and how often."""

    waveform: Tensor
    """`[T]`, in host memory."""
    prompt: str
    decode_steps: int = 64
    iterations: int = 10
    warmup: int = 3
    calibration_s: float = CALIBRATION_S
    """For each of the device's rates."""
    batch: int = 1
    """Rows that `first_token` and `decode` do at once, all with this clip; `measure` is of one."""

    @property
    def seconds(self) -> float:
        return len(self.waveform) / SAMPLE_RATE


def synthetic_clip(seconds: float, seed: int = 0) -> Tensor:
    """Noise with the envelope and spectrum of speech, roughly: syllables at 4 Hz, falling above 500 Hz; `[T]`."""
    rng = np.random.default_rng(seed)
    samples = round(seconds * SAMPLE_RATE)
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency_hz = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    noise = np.fft.irfft(spectrum / np.maximum(1.0, frequency_hz / 500), samples)
    syllables = 0.55 + 0.45 * np.sin(2 * np.pi * 4 * np.arange(samples) / SAMPLE_RATE)
    wave = noise * syllables
    return torch.from_numpy((0.3 * wave / np.abs(wave).max()).astype(np.float32))


@torch.no_grad()
def first_token(model: SALMONN, work: Workload) -> tuple[Tensor, decoding.KeyValueCache]:
    """The way from waveform to first token; ids `[B]` and the cache to go on with."""
    model.text.forget_prompts()
    waveforms = work.waveform.expand(work.batch, -1)
    lengths = torch.full((work.batch,), len(work.waveform))
    tokens, mask = model.encode_audio(waveforms, lengths)
    assembled = model.assemble(tokens, mask, model.text.batch([work.prompt] * work.batch))
    cache = decoding.KeyValueCache(work.batch, assembled.embeds.shape[1] + work.decode_steps, assembled.embeds.device)
    return decoding.prefill(model.llm, assembled, cache).argmax(dim=-1), cache


@torch.no_grad()
def reuse_prefix(model: SALMONN, work: Workload) -> int:
    """Meet the prompt until keys and values of the text before the audio are kept; of how many tokens they are."""
    before = tuple(model.text.batch([work.prompt]).before[0].tolist())
    for _ in range(2):  # a text met once is not kept
        kept = model.llm.prefixes.of_rows(model.llm, [before])
    return len(kept[0]) if kept else 0


@torch.no_grad()
def decode(
    model: SALMONN, token: Tensor, cache: decoding.KeyValueCache, steps: int, now: Callable[[], float]
) -> list[float]:
    """Seconds of each of `steps` greedy steps. Ends of sequence are passed over, so that every run is equally long."""
    seconds = []
    start = now()
    for _ in range(steps):
        token = decoding.decode_step(model.llm, token, cache).argmax(dim=-1)
        token.tolist()  # generation reads every token to see whether it ends the text
        seconds.append(-start + (start := now()))
    return seconds


@contextmanager
def timed_parts(model: SALMONN, now: Callable[[], float]) -> Iterator[dict[str, float]]:
    """Seconds spent in each part of `first_token` while the context is open, summed over calls."""
    parts: dict[str, float] = {}
    restore: list[Callable[[], object]] = []

    def watch(owner: object, method: str, part: str, outer: str | None = None) -> None:
        """Time `owner.method`; what it takes is not counted in `outer`, the part it is called from."""
        original = getattr(owner, method)

        def timed(*args: object, **kwargs: object) -> object:
            start = now()
            result = original(*args, **kwargs)
            seconds = now() - start
            parts[part] = parts.get(part, 0.0) + seconds
            if outer is not None:
                parts[outer] = parts.get(outer, 0.0) - seconds
            return result

        own = method in vars(owner)
        setattr(owner, method, timed)
        restore.append(lambda: setattr(owner, method, original) if own else delattr(owner, method))

    for name, encoder in model.encoders.encoders.items():
        watch(encoder, "forward", f"encoder.{name}")
        if name in FEATURES:
            watch(*FEATURES[name], f"features.{name}", outer=f"encoder.{name}")
    watch(model.connector, "forward", "connector")
    watch(model.text, "batch", "assemble")
    watch(model, "assemble", "assemble")
    watch(decoding, "prefill", "prefill")
    try:
        yield parts
    finally:
        for undo in reversed(restore):
            undo()


def parts_of_first_token(model: SALMONN, work: Workload, now: Callable[[], float]) -> dict[str, float]:
    """Seconds of each part of one `first_token`, `other` being what lies between them: together its whole time."""
    with timed_parts(model, now) as parts:
        start = now()
        first_token(model, work)
        parts["other"] = now() - start - sum(parts.values())
    return parts


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """`owner.name` is `value` while the context is open."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def whisper_features(model: SALMONN, work: Workload) -> list[object]:
    """The log-mel spectrograms that Whisper computes for the clip: one, or one a part of a clip over 30 s."""
    recorded: list[object] = []
    owner, name = FEATURES["whisper"]
    original = getattr(owner, name)

    def recording(*args: object, **kwargs: object) -> object:
        recorded.append(original(*args, **kwargs))
        return recorded[-1]

    with replaced(owner, name, recording), torch.no_grad():
        model.encode_audio(work.waveform[None], torch.tensor([len(work.waveform)]))
    return recorded


def warmup_rounds(model: SALMONN, asked: int) -> int:
    """How often to go through all of it before the clock counts: as asked, or until every CUDA graph is captured."""
    return max(asked, CAPTURED_AFTER) if model.device.type == "cuda" and model.llm.captures else asked


def contest_times(model: SALMONN, work: Workload, now: Callable[[], float]) -> tuple[list[float], list[float]]:
    """The contest's narrower TTFT and TPOT (see the head of this file), once an iteration."""
    on_device = replace(work, waveform=work.waveform.to(model.device), decode_steps=1)
    spectrograms = whisper_features(model, work)
    warmup = warmup_rounds(model, work.warmup)
    ttft, tpot = [], []
    for iteration in range(warmup + work.iterations):
        waiting = iter(spectrograms)
        with replaced(*FEATURES["whisper"], lambda *_, **__: next(waiting)):  # noqa: B023 - called within this round
            start = now()
            token, cache = first_token(model, on_device)
        first = now() - start
        (step,) = decode(model, token, cache, 1, now)
        del cache  # else the next one would find its place among the graphs taken
        if iteration >= warmup:
            ttft.append(first)
            tpot.append(step)
    return ttft, tpot


def measure(model: SALMONN, work: Workload, options: dict, memory: Memory) -> dict[str, object]:
    """Times and peak memory of `model` on `work`; `options` are those of `model.generate`, for `rtfx`."""
    now = clock(model.device)
    model.eval()
    reused = reuse_prefix(model, work)
    counted = count_work(model, lambda: first_token(model, work), work.decode_steps)
    warmup = warmup_rounds(model, work.warmup)
    for _ in range(warmup):
        decode(model, *first_token(model, work), work.decode_steps, now)

    def generate() -> list[decoding.Generation]:
        model.text.forget_prompts()
        lengths = torch.tensor([len(work.waveform)])
        return model.generate(work.waveform[None], lengths, [work.prompt], return_details=True, **options)

    for _ in range(warmup if model.device.type == "cuda" else 0):  # beams have graphs of their own
        generate()

    memory.reset()
    ttft, tpot, runs = [], [], []
    for _ in range(work.iterations):
        start = now()
        token, cache = first_token(model, work)
        ttft.append(now() - start)
        tpot.append(statistics.fmean(decode(model, token, cache, work.decode_steps, now)))
        del cache
        runs.append(parts_of_first_token(model, work, now))
    part_spreads = {part: Spread.of([run[part] for run in runs]) for part in runs[0]}
    generated, generate_s = [], []
    for _ in range(max(1, work.iterations // 3)):
        start = now()
        generated = generate()
        generate_s.append(now() - start)
    inference_peak = memory.peak_gib()

    contest_ttft, contest_tpot = contest_times(model, work, now)
    spreads = {
        "ttft_s": Spread.of(ttft),
        "tpot_s": Spread.of(tpot),
        "generate_s": Spread.of(generate_s),
        "contest_ttft_s": Spread.of(contest_ttft),
        "contest_tpot_s": Spread.of(contest_tpot),
    }
    medians = {name: spread.median for name, spread in spreads.items()}
    parts = {part: spread.median for part, spread in part_spreads.items()}
    rates = measure_rates(model.device, [model.llm.dtype, *counted.dtypes.values()], budget_s=work.calibration_s)
    return {
        **medians,
        "rtfx": work.seconds / medians["generate_s"],
        "generated_tokens": len(generated[0].tokens),
        "reused_prefix_tokens": reused,
        "peak_gib": inference_peak,
        "ttft_parts_s": parts,
        "limits": limits_of({**medians, "ttft_parts_s": parts}, counted, rates),
        "spread": {name: asdict(spread) for name, spread in spreads.items()},
        "spread_of_parts": {part: asdict(spread) for part, spread in part_spreads.items()},
    }


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure TTFT, TPOT and peak memory of a model at batch 1.")
    add_config_arguments(parser)
    parser.add_argument("--ckpt", help="adapter folder or file to measure, in place of model.ckpt")
    parser.add_argument("--clip", help="audio file to measure on, as long as it is (default: a synthetic clip)")
    parser.add_argument("--clip-seconds", type=float, default=10.0, help="length of the synthetic clip (default: 10)")
    parser.add_argument("--task", default="asr", help="task whose test prompt is used (default: asr)")
    parser.add_argument("--decode-steps", type=int, default=64, help="decode steps an iteration (default: 64)")
    parser.add_argument("--iterations", "--num_it", type=int, default=10, help="timed iterations (default: 10)")
    parser.add_argument(
        "--warmup", "--num_warmup", type=int, default=3, help="untimed iterations before them (default: 3)"
    )
    parser.add_argument("--device", help="over run.device")
    parser.add_argument("--out", help="JSON file to write (default: <output_dir>/efficiency.json)")
    arguments = parser.parse_args(argv)
    for name, least in (("iterations", 1), ("decode_steps", 1), ("warmup", 0)):
        if getattr(arguments, name) < least:
            parser.error(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; expected at least {least}")
    if not 0.001 <= arguments.clip_seconds <= 3600:
        parser.error(f"--clip-seconds is {arguments.clip_seconds}; expected 0.001 to 3600")
    return arguments


def workload(arguments: argparse.Namespace, config: Config) -> Workload:
    """The clip and prompt that the arguments name.

    Raises:
        ValueError: there is no test prompt for the task, or the clip cannot be read.
    """
    if arguments.clip and not Path(arguments.clip).exists():
        raise ValueError(f"--clip {arguments.clip}: no such file; expected an audio file")
    prompts = load_prompts(config.model.test_prompt_path)
    if arguments.task not in prompts:
        raise ValueError(
            f"--task {arguments.task}: no such task in {config.model.test_prompt_path}; it has {', '.join(prompts)}"
        )
    prompt = prompts[arguments.task]
    waveform = load_waveform(arguments.clip) if arguments.clip else synthetic_clip(arguments.clip_seconds)
    return Workload(
        waveform=waveform,
        prompt=(prompt if isinstance(prompt, str) else prompt[0]).replace("{}", ""),
        decode_steps=arguments.decode_steps,
        iterations=arguments.iterations,
        warmup=arguments.warmup,
    )


def run(arguments: argparse.Namespace, config: Config) -> dict[str, object]:
    """Build the model, measure it, write and return the report."""
    config.require_paths("model", "model.test_prompt_path")
    work = workload(arguments, config)
    device = pick_device(arguments.device or config.run.device)
    path = Path(arguments.out) if arguments.out else Path(config.run.output_dir) / "efficiency.json"
    _check_writable(path)
    memory = Memory(device)
    before_load = memory.now_gib()
    memory.reset()
    start = time.perf_counter()
    model = build_model(config.model, device)
    lora = model.merge_for_serving()
    load_s = time.perf_counter() - start
    load_peak, loaded = memory.peak_gib(), memory.now_gib()
    print(f"language model's weights: {model.llm.kernel}; LoRA: {lora}")

    figures = measure(model, work, asdict(config.generate), memory)
    report = {
        "model": config.model.ckpt or config.path,
        **figures,
        "load_peak_gib": load_peak,
        "loaded_gib": loaded,
        "before_load_gib": before_load,
        "contest_peak_gib": max(load_peak, figures["peak_gib"]),
        "load_s": load_s,
        "memory_kind": memory.kind if memory.resettable else f"{memory.kind}, peak since it began",
        "clip": {"source": arguments.clip or "synthetic", "seconds": work.seconds, "window": config.model.window},
        "prompt": work.prompt,
        "decode_steps": work.decode_steps,
        "warmup": work.warmup,
        "iterations": work.iterations,
        "kernel": model.llm.kernel,
        "lora": lora,
        "parts": [asdict(row) for row in part_sizes(model)],
        "machine": provenance.machine(device),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "config": config.to_dict(),
    }
    path.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(summary(report), comparison(report), f"written to {path}", sep="\n\n")
    return report


def _check_writable(path: Path) -> None:
    """Before minutes of measuring: make the report's folder and see that the report can be written there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    existed = path.exists()
    path.open("a", encoding="utf-8").close()
    if not existed:
        path.unlink()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status."""
    arguments = parse_arguments(argv)
    quieten_libraries()
    try:
        config = config_from_arguments(arguments)
        if arguments.ckpt:
            config = config.with_adapter(arguments.ckpt)
        with config.named():
            run(arguments, config)
    except (ValueError, OSError) as error:
        if not is_for_user(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

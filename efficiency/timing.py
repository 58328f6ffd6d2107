"""Time to first token and its parts, time per token, peak memory: one model at batch 1."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from efficiency.gauges import Memory, clock
from efficiency.limits import CALIBRATION_S, count_work, limits_of, measure_rates
from models.decoding import engine
from models.decoding.hypothesis import Generation
from models.decoding.kv_cache import KeyValueCache
from models.encoders import beats, whisper
from models.salmonn import SALMONN
from support.units import SAMPLE_RATE

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
class TimedClip:
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
def first_token(model: SALMONN, work: TimedClip) -> tuple[Tensor, KeyValueCache]:
    """The way from waveform to first token; ids `[B]` and the cache to go on with."""
    model.text.forget_prompts()
    waveforms = work.waveform.expand(work.batch, -1)
    lengths = torch.full((work.batch,), len(work.waveform))
    tokens, mask = model.encode_audio(waveforms, lengths)
    assembled = model.assemble(tokens, mask, model.text.batch([work.prompt] * work.batch))
    cache = KeyValueCache(work.batch, assembled.embeds.shape[1] + work.decode_steps, assembled.embeds.device)
    return engine.prefill(model.llm, assembled, cache).argmax(dim=-1), cache


@torch.no_grad()
def reuse_prefix(model: SALMONN, work: TimedClip) -> int:
    """Meet the prompt until keys and values of the text before the audio are kept; of how many tokens they are."""
    before = tuple(model.text.batch([work.prompt]).before[0].tolist())
    for _ in range(2):  # a text met once is not kept
        kept = model.llm.prefixes.of_rows(model.llm, [before])
    return len(kept[0]) if kept else 0


@torch.no_grad()
def decode(model: SALMONN, token: Tensor, cache: KeyValueCache, steps: int, now: Callable[[], float]) -> list[float]:
    """Seconds of each of `steps` greedy steps. Ends of sequence are passed over, so that every run is equally long."""
    seconds = []
    start = now()
    for _ in range(steps):
        token = engine.decode_step(model.llm, token, cache).argmax(dim=-1)
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
    watch(engine, "prefill", "prefill")
    try:
        yield parts
    finally:
        for undo in reversed(restore):
            undo()


def parts_of_first_token(model: SALMONN, work: TimedClip, now: Callable[[], float]) -> dict[str, float]:
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


def whisper_features(model: SALMONN, work: TimedClip) -> list[object]:
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


def contest_times(model: SALMONN, work: TimedClip, now: Callable[[], float]) -> tuple[list[float], list[float]]:
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


def measure(model: SALMONN, work: TimedClip, options: dict, memory: Memory) -> dict[str, object]:
    """Times and peak memory of `model` on `work`; `options` are those of `model.generate`, for `rtfx`."""
    now = clock(model.device)
    model.eval()
    reused = reuse_prefix(model, work)
    counted = count_work(model, lambda: first_token(model, work), work.decode_steps)
    warmup = warmup_rounds(model, work.warmup)
    for _ in range(warmup):
        decode(model, *first_token(model, work), work.decode_steps, now)

    def generate() -> list[Generation]:
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

"""Time to first token and its parts, time per token, peak memory: one model at batch 1.

What is timed is what evaluation runs: `model.encode_frames`, `model.encode_audio`, `model.assemble`, prefill and decode
step. Definitions:

- `ttft_s`: from the waveform in host memory to the first token's id, prompt tokenised and all transfers included.
- `ttft_parts_s`: its parts, the spans that the model opens (models/runtime/spans.py): `features.<encoder>`,
  `encoder.<encoder>` without its features, `connector`, `assemble` (the prompt is tokenised and joined with the audio
  tokens), `prefill`, and `other`, what lies outside of them. They are taken in further iterations, one after each of
  the others, so that what else the machine does affects both alike; with a synchronised clock at every border, their
  sum may exceed the whole where the device would overlap them. A part that is not measured is an error.
- `tpot_s`: mean over `--decode-steps` real steps, each with the cache one token longer and its token read back.
- `peak_gib`: most memory at inference, `load_peak_gib` while loading: of the CUDA allocator, or, on CPU, of the
  process' resident set, which holds Python and its libraries too (`before_load_gib`).
- `rtfx`: seconds of audio per second of `model.generate` with the YAML's generation settings.
- `contest_ttft_s`, `contest_tpot_s`: what the Nota contest's evaluator times, for comparison with published figures.
  The first starts with Whisper's log-mel spectrogram computed and everything on the device, and ends with the prefill;
  the second is one decode step straight after it. (That evaluator does not synchronise the device and counts its cold
  first run; here clocks are synchronised, after warm-ups.)
- `limits`: roofline limits of the device, measured in the same run (efficiency/limits.py), and the ratio to them.

In every iteration the clip is new: nothing of it is kept, and the prompt is tokenised again. As in evaluation, keys and
values of the fixed text before the audio are computed once and reused; the report says of how many tokens
(`reused_prefix_tokens`).

Clocks are synchronised with the device; every figure at top level is the median over the iterations, after the warm-up
(on CUDA at least three rounds, in which graphs are captured).
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from efficiency.gauges import Memory, clock
from efficiency.limits import CALIBRATION_S, count_work, measure_peak_rates, roofline_limits
from models.decoding.hypothesis import Generation
from models.decoding.kv_cache import KeyValueCache
from models.encoders.base import AudioEncoder, Features, FeatureSource
from models.runtime.spans import measured
from models.salmonn import SALMONN
from support.units import SAMPLE_RATE

CAPTURED_AFTER = 3
"""Rounds after which every CUDA graph is captured: the first makes the cache's buffers, and a shape is
captured when it comes a second time."""
CONTEST_ENCODER = "whisper"
"""The encoder whose features are computed before the contest's clock starts."""


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
    """For each of the device's peak rates."""
    batch: int = 1
    """Rows that `first_token` and `decode` run at once, all with this clip; `measure` runs one."""

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
def first_token(
    model: SALMONN, work: TimedClip, feature_source: FeatureSource | None = None
) -> tuple[Tensor, KeyValueCache]:
    """From waveform to first token: ids `[B]` and the cache to continue with."""
    model.text.forget_prompts()
    waveforms = work.waveform.expand(work.batch, -1)
    lengths = torch.full((work.batch,), len(work.waveform))
    frames = model.encode_frames(waveforms, lengths, feature_source)
    tokens, mask = model.encode_audio(None, None, frames)
    assembled = model.assemble(tokens, mask, model.text.batch([work.prompt] * work.batch))
    cache = KeyValueCache(work.batch, assembled.embeds.shape[1] + work.decode_steps, assembled.embeds.device)
    return model.engine.prefill(assembled, cache).argmax(dim=-1), cache


@torch.no_grad()
def reuse_prefix(model: SALMONN, work: TimedClip) -> int:
    """Have keys and values of the fixed text before the audio kept; of how many tokens they are."""
    before = tuple(model.text.batch([work.prompt]).before[0].tolist())
    for _ in range(2):  # kept from the second time on
        kept = model.engine.prefixes.of_rows(model.llm, [before])
    return len(kept[0]) if kept else 0


@torch.no_grad()
def decode(model: SALMONN, token: Tensor, cache: KeyValueCache, steps: int, now: Callable[[], float]) -> list[float]:
    """Seconds of each of `steps` greedy steps. Ends of sequence are ignored, so that every run is equally long."""
    seconds = []
    start = now()
    for _ in range(steps):
        token = model.engine.step(token, cache).argmax(dim=-1)
        token.tolist()  # generation reads every token to see whether it ends the text
        seconds.append(-start + (start := now()))
    return seconds


def parts_of_first_token(model: SALMONN, work: TimedClip, now: Callable[[], float]) -> dict[str, float]:
    """Seconds of each part of one `first_token`, and of what lies between them, `other`: together its whole time.

    Raises RuntimeError, naming it, for a part that was not measured.
    """
    with measured(now, model.spans) as parts:
        first_token(model, work)
    return parts


@torch.no_grad()
def contest_features(model: SALMONN, work: TimedClip) -> list[Features]:
    """Whisper's log-mel spectrograms of the clip: one, or one a part of a clip over 30 s; none without Whisper."""
    computed: list[Features] = []

    def compute(encoder: AudioEncoder, waveforms: Tensor, lengths: Tensor) -> Features | None:
        if encoder.name != CONTEST_ENCODER:
            return None
        computed.append(encoder.features(waveforms, lengths))
        return computed[-1]

    model.encode_frames(work.waveform[None], torch.tensor([len(work.waveform)]), compute)
    return computed


def warmup_rounds(model: SALMONN, asked: int) -> int:
    """Rounds before the clock counts: as asked, or until every CUDA graph is captured."""
    return max(asked, CAPTURED_AFTER) if model.device.type == "cuda" and model.engine.captures else asked


def contest_times(model: SALMONN, work: TimedClip, now: Callable[[], float]) -> tuple[list[float], list[float]]:
    """The contest's narrower TTFT and TPOT (see the head of this file) of each iteration."""
    on_device = replace(work, waveform=work.waveform.to(model.device), decode_steps=1)
    features = itertools.cycle(contest_features(model, work))  # each round takes all of them

    def computed(encoder: AudioEncoder, *_: Tensor) -> Features | None:
        return next(features) if encoder.name == CONTEST_ENCODER else None

    warmup = warmup_rounds(model, work.warmup)
    ttft, tpot = [], []
    for iteration in range(warmup + work.iterations):
        start = now()
        token, cache = first_token(model, on_device, computed)
        first = now() - start
        (step,) = decode(model, token, cache, 1, now)
        del cache  # frees its graph buffers for the next one
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
    dtypes = [model.llm.dtype, *counted.dtypes.values()]
    peak_rates = measure_peak_rates(model.device, dtypes, budget_s=work.calibration_s)
    return {
        **medians,
        "rtfx": work.seconds / medians["generate_s"],
        "generated_tokens": len(generated[0].tokens),
        "reused_prefix_tokens": reused,
        "peak_gib": inference_peak,
        "ttft_parts_s": parts,
        "limits": roofline_limits({**medians, "ttft_parts_s": parts}, counted, peak_rates),
        "spread": {name: asdict(spread) for name, spread in spreads.items()},
        "spread_of_parts": {part: asdict(spread) for part, spread in part_spreads.items()},
    }

"""How many clips a second one core loads, against a loader that computes log-mel spectrograms.

    python -m benchmarks.loader [--clips 32] [--rounds 5] [--workers 1] [--mels 128] [--out FILE]

Claim: ours loads 10 s clips at least 5 times as fast from 16 kHz wav, and 3 times from flac and from files that must be
resampled (wav, flac). The other loader is the SALMONN forks': `soundfile.read`, the first channel, resampling by soxr
HQ (what `librosa.resample` calls), a 30 s log-mel per clip by transformers' `WhisperFeatureExtractor` (128 mels, as
whisper-large-v3-turbo takes them), and batches of these spectrograms and the padded waveforms, which BEATs needs.

For mp3 nothing is claimed: decoding, the same on both sides, is most of our time there. Against the 80 mels of
large-v2 (`--mels 80`, results/loader_80_mels.json) the claims are reached except for flac at 44.1 kHz: 2.6 times.

Both run in one process, in turns, over the same files (read once before, so that the disk does not count), with the
same batch size and number of workers, one thread each. What is counted is processor time of the main process and its
workers together, so that other jobs on the machine matter little; clock time is given as well. A ratio is the median of
the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import soxr

from benchmarks.suite import RESULTS, origin, write_report
from data.annotations import Annotation
from support import command_line
from support.command_line import require_writable
from support.units import SAMPLE_RATE

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

CLIP_S = 10.0
CD_RATE = 44_100  # Hz
BATCH_SIZE = 8
TURBO_MELS = 128
OUR_PASSES = 4  # ours is faster: more passes, so that the clock's resolution matters as little
RESULT = RESULTS / "loader.json"
TIME = "processor seconds of main process and workers"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file and the ratio that is claimed for it, if any."""

    name: str
    suffix: str
    rate_hz: int
    channels: int
    claimed_ratio: float | None


KINDS = (
    Kind(name="wav, 16 kHz", suffix="wav", rate_hz=SAMPLE_RATE, channels=1, claimed_ratio=5.0),
    Kind(name="wav, 44.1 kHz stereo", suffix="wav", rate_hz=CD_RATE, channels=2, claimed_ratio=3.0),
    Kind(name="flac, 16 kHz", suffix="flac", rate_hz=SAMPLE_RATE, channels=1, claimed_ratio=3.0),
    Kind(name="flac, 44.1 kHz", suffix="flac", rate_hz=CD_RATE, channels=1, claimed_ratio=3.0),
    Kind(name="mp3, 44.1 kHz", suffix="mp3", rate_hz=CD_RATE, channels=1, claimed_ratio=None),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured for one kind of file; rates are clips a second."""

    kind: str
    clips_per_core_s: float
    """Ours, by processor time: higher is better."""
    features_clips_per_core_s: float
    """The loader with spectrograms."""
    ratio: float
    claimed_ratio: float | None
    clips_per_wall_s: float
    features_clips_per_wall_s: float
    round_ratios: list[float]

    @property
    def reached(self) -> bool:
        return self.claimed_ratio is None or self.ratio >= self.claimed_ratio


# -- clips -----------------------------------------------------------------------------------------------------------


def speech_like(rng: np.random.Generator, rate_hz: int = CD_RATE) -> np.ndarray:
    """10 s of voiced syllables and pauses over a quiet room, float32 `[T]`; a flac of it is about half as large."""
    time_s = np.arange(round(CLIP_S * rate_hz)) / rate_hz
    knots = np.linspace(0, CLIP_S, 50)
    pitch_hz = np.interp(time_s, knots, rng.uniform(90, 220, 50))
    loudness = np.interp(time_s, knots, rng.uniform(0, 1, 50) * (rng.random(50) > 0.3))
    phase = 2 * np.pi * np.cumsum(pitch_hz) / rate_hz
    formant = np.interp(time_s, knots, rng.uniform(2, 8, 50))
    voice = sum(np.exp(-(((k - formant) / 3) ** 2)) / k * np.sin(k * phase) for k in range(1, 25))
    signal = voice * loudness + 0.003 * rng.standard_normal(len(time_s))
    return (0.5 * signal / np.abs(signal).max()).astype(np.float32)


def write_clips(folder: Path, kind: Kind, count: int) -> list[Annotation]:
    """`count` files of a kind, and the annotations that name them."""
    annotations = []
    for index in range(count):
        samples = speech_like(np.random.default_rng([index, kind.rate_hz]))
        if kind.rate_hz != CD_RATE:
            samples = soxr.resample(samples, CD_RATE, kind.rate_hz)
        if kind.channels == 2:
            samples = np.stack([samples, 0.7 * samples], axis=1)
        path = folder / f"{kind.name.replace(', ', '_').replace(' ', '_')}_{index}.{kind.suffix}"
        soundfile.write(path, samples, kind.rate_hz)
        annotations.append(
            Annotation(path=str(path), text="", task="asr", index=index, extra={"duration": CLIP_S}, source=path.name)
        )
    return annotations


# -- measurement -----------------------------------------------------------------------------------------------------


def process_cpu_s(pid: int) -> float:
    """Processor time of another process so far, by Linux' clock of it (`clock_getcpuclockid`)."""
    return time.clock_gettime((~pid << 3) | 2)


def timed_passes(loader: DataLoader, passes: int) -> tuple[float, float]:
    """(processor seconds of all processes, clock seconds) of so many passes."""
    iterator = getattr(loader, "_iterator", None)
    workers = [worker.pid for worker in iterator._workers] if iterator is not None else []

    def cpu_s() -> float:
        return time.process_time() + sum(map(process_cpu_s, workers))

    cpu, wall = cpu_s(), time.perf_counter()
    for _ in range(passes):
        consume(loader)
    return cpu_s() - cpu, time.perf_counter() - wall


def consume(batches: Iterable) -> None:
    """Iterate over all batches."""
    for _ in batches:
        pass


def our_loader(annotations: Sequence[Annotation], workers: int) -> DataLoader:
    """The loader that training uses, as a plain `DataLoader` whose worker processes can be timed."""
    from configs.sections import DatasetsConfig
    from data.sampling import GlobalBatchSampler
    from dataset import AudioTextDataset, build_loader

    data = AudioTextDataset(annotations, {"asr": "<Speech><SpeechHere></Speech> Write it down."}, training=True)
    sampler = GlobalBatchSampler(
        data.durations(),
        batch_size=BATCH_SIZE,
        world_size=1,
        rank=0,
        seed=0,
        shuffle=True,
        bucket_batches=DatasetsConfig().bucket_batches,
        tasks=None,
        task_weights=None,
    )
    return build_loader(data, sampler, num_workers=workers).torch_loader


def measure(kind: Kind, folder: Path, *, clips: int, rounds: int, workers: int, mels: int) -> Row:
    """Both loaders over the same fresh files of one kind, in turns."""
    import torch

    from benchmarks.feature_loader import feature_loader

    annotations = write_clips(folder, kind, clips)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that a figure is one core's
    try:
        ours = our_loader(annotations, workers)
        features = feature_loader(annotations, workers, mels, batch_size=BATCH_SIZE)
        consume(ours), consume(features)  # start workers, read the files, plan the filters
        our_s, feature_s = [], []
        for _ in range(rounds):
            our_s.append([seconds / OUR_PASSES for seconds in timed_passes(ours, OUR_PASSES)])
            feature_s.append(timed_passes(features, 1))
    finally:
        torch.set_num_threads(threads)

    def rate(times: list[Sequence[float]], clock: int) -> float:
        return clips / statistics.median(seconds[clock] for seconds in times)

    ratios = [features_s[0] / ours_s[0] for ours_s, features_s in zip(our_s, feature_s, strict=True)]
    return Row(
        kind=kind.name,
        clips_per_core_s=rate(our_s, 0),
        features_clips_per_core_s=rate(feature_s, 0),
        ratio=statistics.median(ratios),
        claimed_ratio=kind.claimed_ratio,
        clips_per_wall_s=rate(our_s, 1),
        features_clips_per_wall_s=rate(feature_s, 1),
        round_ratios=ratios,
    )


def run(
    *, clips: int = 32, rounds: int = 5, workers: int = 1, mels: int = TURBO_MELS, kinds: Sequence[Kind] = KINDS,
    report: Callable[[Row], None] = lambda row: None,
) -> list[Row]:  # fmt: skip
    """Measure every kind; `report` is called with each row as it comes."""
    rows = []
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix="smolt-loader-") as folder:
            rows.append(measure(kind, Path(folder), clips=clips, rounds=rounds, workers=workers, mels=mels))
        report(rows[-1])
    return rows


def show(row: Row) -> None:
    claimed = "-" if row.claimed_ratio is None else f"{row.claimed_ratio:.0f}x"
    print(
        f"{row.kind:<22}{row.clips_per_core_s:>9.1f}{row.features_clips_per_core_s:>9.1f}{row.ratio:>7.1f}x"
        f"{claimed:>9}{'' if row.reached else '  not reached'}",
        flush=True,
    )


def work(arguments: argparse.Namespace) -> int:
    settings = {name: getattr(arguments, name) for name in ("clips", "rounds", "workers", "mels")}
    require_writable(str(arguments.out.parent), "--out")
    print(f"{CLIP_S:g} s clips a second and core, batches of {BATCH_SIZE}, {arguments.workers} worker(s)")
    print(f"{'files':<22}{'Smolt':>9}{'log-mel':>9}{'ratio':>8}{'claimed':>9}")
    rows = run(**settings, report=show)
    about = origin("cpu")
    report = {
        "benchmark": "loader",
        "higher_is_better": True,
        "settings": settings | {"clip_s": CLIP_S, "batch_size": BATCH_SIZE, "time": TIME},
        "rows": [{**asdict(row), "reached": row.reached} for row in rows],
        **about,
        "versions": about["versions"] | {"soundfile": soundfile.__version__, "soxr": soxr.__version__},
    }
    write_report(arguments.out, report)
    print(f"written to {arguments.out}")
    return 0 if all(row.reached for row in rows) else 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--clips", type=int, default=32, help="files of each kind")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="processes that load; 0 loads in the main one")
    parser.add_argument("--mels", type=int, default=TURBO_MELS, help="mel bins of the compared loader")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON to write")
    return command_line.run(work, parser, argv)


if __name__ == "__main__":
    sys.exit(main())

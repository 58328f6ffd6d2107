"""Waveform augmentations for training, each a pure function of the waveform and a `numpy.random.Generator`.

Their settings are in `configs/augmentation.py`. They run in the order of its `KINDS`, whatever the order in the file.
Any of them may be limited to some tasks: `crop: {p: 1, tasks: [audiocaption]}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soxr
import torch
from torch import Tensor

from configs import augmentation
from configs.augmentation import (
    AmplitudeNoise,
    Augmentation,
    Crop,
    Gain,
    GaussianNoise,
    PitchShift,
    Speed,
    TimeShift,
    TimeStretch,
)
from support.command_line import UserError
from support.units import SAMPLE_RATE

SPEED_STEP = 0.01  # factors are rounded to it: the resampler's filter is designed for a ratio of integers
CROP_POWER, CROP_TRIES = 0.5, 10  # a part has at least half of the whole clip's mean power, if ten tries find one
SILENT_POWER = 1e-10  # mean square of a silent clip, -100 dB: it gets no noise
FRAME, SEARCH = 512, 128  # of stretching: frames of 32 ms, moved by up to 8 ms to continue a voice's period


def _crop(settings: Crop, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = round(rng.uniform(settings.min_s, settings.max_s) * SAMPLE_RATE)
    if size >= len(waveform):
        return waveform
    wanted = CROP_POWER * float(np.mean(np.square(waveform)))
    for _ in range(CROP_TRIES):
        start = int(rng.integers(len(waveform) - size + 1))
        part = waveform[start : start + size]
        if float(np.mean(np.square(part))) >= wanted:
            break
    return part.copy()


def _speed(settings: Speed, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _played_at(waveform, rng.uniform(settings.min_factor, settings.max_factor))


def _played_at(waveform: np.ndarray, factor: float) -> np.ndarray:
    """The waveform played faster by `factor`, pitch included."""
    faster = soxr.resample(waveform, round(factor / SPEED_STEP), round(1 / SPEED_STEP), quality="HQ")
    return faster if len(faster) else waveform


def _time_stretch(settings: TimeStretch, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _stretched(waveform, rng.uniform(settings.min_rate, settings.max_rate))


def _pitch_shift(settings: PitchShift, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    factor = 2 ** (rng.uniform(settings.min_semitones, settings.max_semitones) / 12)
    factor = round(factor / SPEED_STEP) * SPEED_STEP
    shifted = _played_at(_stretched(waveform, 1 / factor), factor)[: len(waveform)]
    return np.pad(shifted, (0, len(waveform) - len(shifted)))


def _stretched(waveform: np.ndarray, rate: float) -> np.ndarray:
    """The waveform faster by `rate` at its pitch: overlapping frames, each moved to where it continues the one before
    (WSOLA: Verhelst and Roelands, 1993)."""
    length, hop = round(len(waveform) / rate), FRAME // 2
    if rate == 1 or min(len(waveform), length) <= FRAME:
        return waveform
    window = np.hanning(FRAME + 1)[:-1].astype(np.float32)
    padded = np.pad(waveform, (hop, 3 * FRAME + SEARCH))
    stretched = np.zeros(length + 2 * FRAME, np.float32)
    start = 0
    for at in range(0, length + hop, hop):
        if at > 0:
            continued = padded[start + hop : start + hop + FRAME]
            first = max(0, round(at * rate) - SEARCH)
            start = first + int(np.correlate(padded[first : first + 2 * SEARCH + FRAME], continued, "valid").argmax())
        stretched[at : at + FRAME] += window * padded[start : start + FRAME]
    return stretched[hop : hop + length]


def _time_shift(settings: TimeShift, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    shift = round(rng.uniform(0, settings.max_shift_s) * SAMPLE_RATE)
    return np.concatenate([np.zeros(shift, np.float32), waveform])


def _gain(settings: Gain, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    factor = 10 ** (rng.uniform(settings.min_db, settings.max_db) / 20)
    peak = float(np.abs(waveform).max())
    if factor > 1 and peak * factor > 1:
        factor = max(1.0, 1 / peak)
    return waveform * np.float32(factor)


def _gaussian_noise(settings: GaussianNoise, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    snr_db = rng.uniform(settings.min_snr_db, settings.max_snr_db)
    power = float(np.mean(np.square(waveform)))
    if power < SILENT_POWER:
        return waveform
    return _with_noise(waveform, math.sqrt(power) * 10 ** (-snr_db / 20), rng)


def _amplitude_noise(settings: AmplitudeNoise, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _with_noise(waveform, rng.uniform(settings.min_amplitude, settings.max_amplitude), rng)


def _with_noise(waveform: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(len(waveform), dtype=np.float32)
    noise *= np.float32(deviation)
    noise += waveform
    return np.clip(noise, -1, 1, out=noise)


APPLY: dict[type[Augmentation], Callable[[Any, np.ndarray, np.random.Generator], np.ndarray]] = {
    Crop: _crop,
    Speed: _speed,
    TimeStretch: _time_stretch,
    PitchShift: _pitch_shift,
    TimeShift: _time_shift,
    Gain: _gain,
    GaussianNoise: _gaussian_noise,
    AmplitudeNoise: _amplitude_noise,
}
"""Settings -> what they do to float32 `[T]`: a new float32 `[T']`."""
AUGMENTATIONS = augmentation.KINDS


@dataclass(frozen=True)
class Augment:
    """A list of augmentations; calling it is a pure function of (waveform, task, generator state)."""

    steps: tuple[Augmentation, ...] = field(default_factory=tuple)

    @classmethod
    def from_config(cls, spec: Mapping[str, Mapping[str, Any] | None] | None) -> Augment | None:
        """`datasets.augmentation` (name → settings) as an `Augment`; None if nothing is on.

        Raises:
            UserError: an unknown name or setting, a value of the wrong type or out of range.
        """
        reading = augmentation.read(spec or {})
        for key, problem in reading.problems:
            raise UserError(f"{key}: {problem}")
        return cls(tuple(reading.steps)) if reading.steps else None

    @property
    def tasks(self) -> set[str]:
        """Every task that an augmentation is limited to."""
        return {task for step in self.steps for task in step.tasks}

    def __call__(self, waveform: Tensor, rng: np.random.Generator, task: str = "") -> Tensor:
        """`[T]` float32 of a clip for `task` to `[T']` float32 in [-1, 1]; the input is unchanged."""
        samples = waveform.numpy()
        for step in self.steps:
            if (not step.tasks or task in step.tasks) and rng.random() < step.p:
                samples = APPLY[type(step)](step, samples, rng)
        if samples is not waveform.numpy():
            samples = np.clip(samples, -1, 1)
        return torch.from_numpy(samples)

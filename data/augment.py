"""Waveform augmentations for training, each a pure function of the waveform and a `numpy.random.Generator`.

In a YAML: `datasets.augmentation: {gain: {p: 0.5, min_db: -6, max_db: 6}, gaussian_noise: {p: 0.3}}`. They run in the
order of `AUGMENTATIONS`, whatever the order in the file: crop, speed, shift, gain, noise, so that noise is never
resampled. Any of them may be limited to some tasks: `crop: {p: 1, tasks: [audiocaption]}`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import soxr
import torch
from torch import Tensor

from support.command_line import UserError
from support.units import SAMPLE_RATE

SPEED_STEP = 0.01  # factors are rounded to it: the resampler's filter is designed for a ratio of integers
CROP_POWER, CROP_TRIES = 0.5, 10  # a part has at least half of the whole clip's mean power, if ten tries find one
SILENT_POWER = 1e-10  # mean square of a silent clip, -100 dB: it gets no noise


@dataclass(frozen=True, kw_only=True)
class Augmentation(ABC):
    """One way to change a waveform, applied with probability `p` to clips of `tasks` (empty: all tasks)."""

    p: float = 0.5
    tasks: tuple[str, ...] = ()
    ordered: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Pairs of fields of which the first may not exceed the second."""

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise UserError(f"p is {self.p}; expected a probability between 0 and 1")
        for low, high in self.ordered:
            if getattr(self, low) > getattr(self, high):
                raise UserError(f"{low} is {getattr(self, low)}, above {high} = {getattr(self, high)}; swap them")

    @abstractmethod
    def apply(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Float32 `[T]` to a new float32 `[T']`."""


@dataclass(frozen=True, kw_only=True)
class Crop(Augmentation):
    """A part of the clip, its length drawn uniformly, never one much quieter than the whole.

    For continuous sounds: speech in the rest of the clip is lost, so exclude speech by `tasks`.
    """

    min_s: float = 2.0
    max_s: float = 5.0
    ordered = (("min_s", "max_s"),)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_s <= 0:
            raise UserError(f"min_s is {self.min_s}; expected more than 0")

    def apply(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        size = round(rng.uniform(self.min_s, self.max_s) * SAMPLE_RATE)
        if size >= len(waveform):
            return waveform
        wanted = CROP_POWER * float(np.mean(np.square(waveform)))
        for _ in range(CROP_TRIES):
            start = int(rng.integers(len(waveform) - size + 1))
            part = waveform[start : start + size]
            if float(np.mean(np.square(part))) >= wanted:
                break
        return part.copy()


@dataclass(frozen=True, kw_only=True)
class Speed(Augmentation):
    """Play faster or slower, pitch included (Ko et al., 2015), by a factor drawn uniformly."""

    min_factor: float = 0.9
    max_factor: float = 1.1
    ordered = (("min_factor", "max_factor"),)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_factor < 0.5 or self.max_factor > 2:
            raise UserError(f"factors {self.min_factor} to {self.max_factor}; expected 0.5 to 2")

    def apply(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        percent = round(rng.uniform(self.min_factor, self.max_factor) / SPEED_STEP)
        faster = soxr.resample(waveform, percent, round(1 / SPEED_STEP), quality="HQ")
        return faster if len(faster) else waveform


@dataclass(frozen=True, kw_only=True)
class TimeShift(Augmentation):
    """Put up to `max_shift_s` of silence before the clip. Nothing is cut or wrapped around, so the text stays
    correct."""

    max_shift_s: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_shift_s < 0:
            raise UserError(f"max_shift_s is {self.max_shift_s}; expected at least 0")

    def apply(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        shift = round(rng.uniform(0, self.max_shift_s) * SAMPLE_RATE)
        return np.concatenate([np.zeros(shift, np.float32), waveform])


@dataclass(frozen=True, kw_only=True)
class Gain(Augmentation):
    """Louder or quieter by a number of dB drawn uniformly, never above full scale."""

    min_db: float = -6.0
    max_db: float = 6.0
    ordered = (("min_db", "max_db"),)

    def apply(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        factor = 10 ** (rng.uniform(self.min_db, self.max_db) / 20)
        peak = float(np.abs(waveform).max())
        if factor > 1 and peak * factor > 1:
            factor = max(1.0, 1 / peak)
        return waveform * np.float32(factor)


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Augmentation):
    """White noise at a signal-to-noise ratio drawn uniformly in dB; a silent clip stays silent."""

    min_snr_db: float = 10.0
    max_snr_db: float = 40.0
    ordered = (("min_snr_db", "max_snr_db"),)

    def apply(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        snr_db = rng.uniform(self.min_snr_db, self.max_snr_db)
        power = float(np.mean(np.square(waveform)))
        if power < SILENT_POWER:
            return waveform
        noise = rng.standard_normal(len(waveform), dtype=np.float32)
        noise *= np.float32(math.sqrt(power) * 10 ** (-snr_db / 20))
        noise += waveform
        return np.clip(noise, -1, 1, out=noise)


AUGMENTATIONS: dict[str, type[Augmentation]] = {
    "crop": Crop,
    "speed": Speed,
    "time_shift": TimeShift,
    "gain": Gain,
    "gaussian_noise": GaussianNoise,
}


@dataclass(frozen=True)
class Augment:
    """A list of augmentations; calling it is a pure function of (waveform, task, generator state)."""

    steps: tuple[Augmentation, ...] = field(default_factory=tuple)

    @classmethod
    def from_config(cls, spec: Mapping[str, Mapping[str, Any] | None] | None) -> Augment | None:
        """`datasets.augmentation` (name → settings) as an `Augment`; None if it is empty.

        Raises:
            ValueError: an unknown name or setting, a value of the wrong type or out of range.
        """
        if not spec:
            return None
        for name in spec:
            if name not in AUGMENTATIONS:
                raise UserError(f"datasets.augmentation.{name}: unknown{_nearest(name, AUGMENTATIONS)}")
        return cls(tuple(_build(name, spec[name]) for name in AUGMENTATIONS if name in spec))

    @property
    def tasks(self) -> set[str]:
        """Every task that an augmentation is limited to."""
        return {task for step in self.steps for task in step.tasks}

    def __call__(self, waveform: Tensor, rng: np.random.Generator, task: str = "") -> Tensor:
        """`[T]` float32 of a clip for `task` to `[T']` float32 in [-1, 1]; the input is unchanged."""
        samples = waveform.numpy()
        for step in self.steps:
            if (not step.tasks or task in step.tasks) and rng.random() < step.p:
                samples = step.apply(samples, rng)
        if samples is not waveform.numpy():
            samples = np.clip(samples, -1, 1)
        return torch.from_numpy(samples)


def _build(name: str, settings: Mapping[str, Any] | None) -> Augmentation:
    place = f"datasets.augmentation.{name}"
    settings = {} if settings is None else settings
    if not isinstance(settings, Mapping):
        raise UserError(f"{place}: found {settings!r}; expected settings such as {{p: 0.5}}")
    known = {item.name for item in dataclasses.fields(AUGMENTATIONS[name])}
    for key, value in settings.items():
        if key not in known:
            raise UserError(f"{place}.{key}: unknown{_nearest(key, known)}")
        if key == "tasks":
            if not isinstance(value, list | tuple) or not all(isinstance(task, str) for task in value):
                raise UserError(f"{place}.tasks: found {value!r}; expected a list of tasks such as [audiocaption]")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{place}.{key}: found {value!r}; expected a number")
    try:
        return AUGMENTATIONS[name](**{**settings, "tasks": tuple(settings.get("tasks", ()))})
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def _nearest(name: str, known: Mapping[str, Any] | set[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; expected one of {', '.join(sorted(known))}"

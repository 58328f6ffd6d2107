"""What `datasets.augmentation` may say: the settings of each waveform augmentation, and their checks.

In a YAML: `{gain: {p: 0.5, min_db: -6, max_db: 6}, gaussian_noise: {p: 0.3}}`. Class names of audiomentations are read
too, with its names of settings and its defaults: `{AddGaussianNoise: {use: true, p: 0.3}}`; `use: false` switches an
entry off. What an augmentation does to a waveform is in `data/augment.py`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from support.command_line import UserError

PLACE = "datasets.augmentation"


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """One way to change a waveform, applied with probability `p` to clips of `tasks` (empty: all tasks)."""

    p: float = 0.5
    tasks: tuple[str, ...] = ()
    ordered: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Pairs of fields of which the first may not exceed the second."""
    within: ClassVar[dict[str, tuple[float, float]]] = {}
    """Field -> the least and the greatest value."""

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise UserError(f"p is {self.p}; expected a probability between 0 and 1")
        for low, high in self.ordered:
            if getattr(self, low) > getattr(self, high):
                raise UserError(f"{low} is {getattr(self, low)}, above {high} = {getattr(self, high)}; swap them")
        for name, (least, greatest) in self.within.items():
            if not least <= getattr(self, name) <= greatest:
                limit = f"{least} to {greatest}" if math.isfinite(greatest) else f"at least {least}"
                raise UserError(f"{name} is {getattr(self, name)}; expected {limit}")


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


@dataclass(frozen=True, kw_only=True)
class TimeStretch(Augmentation):
    """Faster or slower at the same pitch, by a rate drawn uniformly; the length changes, so that no word is cut."""

    min_rate: float = 0.8
    max_rate: float = 1.25
    ordered = (("min_rate", "max_rate"),)
    within: ClassVar = {"min_rate": (0.5, 2.0), "max_rate": (0.5, 2.0)}


@dataclass(frozen=True, kw_only=True)
class PitchShift(Augmentation):
    """Higher or lower at the same length, by a number of semitones drawn uniformly."""

    min_semitones: float = -4.0
    max_semitones: float = 4.0
    ordered = (("min_semitones", "max_semitones"),)
    within: ClassVar = {"min_semitones": (-12.0, 12.0), "max_semitones": (-12.0, 12.0)}


@dataclass(frozen=True, kw_only=True)
class TimeShift(Augmentation):
    """Put up to `max_shift_s` of silence before the clip. Nothing is cut or wrapped around, so the text stays
    correct."""

    max_shift_s: float = 0.5
    within: ClassVar = {"max_shift_s": (0, math.inf)}


@dataclass(frozen=True, kw_only=True)
class Gain(Augmentation):
    """Louder or quieter by a number of dB drawn uniformly, never above full scale."""

    min_db: float = -6.0
    max_db: float = 6.0
    ordered = (("min_db", "max_db"),)


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Augmentation):
    """White noise at a signal-to-noise ratio drawn uniformly in dB; a silent clip stays silent."""

    min_snr_db: float = 10.0
    max_snr_db: float = 40.0
    ordered = (("min_snr_db", "max_snr_db"),)


@dataclass(frozen=True, kw_only=True)
class AmplitudeNoise(Augmentation):
    """White noise of a standard deviation drawn uniformly, whatever the clip's level."""

    min_amplitude: float = 0.001
    max_amplitude: float = 0.015
    ordered = (("min_amplitude", "max_amplitude"),)
    within: ClassVar = {"min_amplitude": (0, 1), "max_amplitude": (0, 1)}


KINDS: dict[str, type[Augmentation]] = {
    "crop": Crop,
    "speed": Speed,
    "time_stretch": TimeStretch,
    "pitch_shift": PitchShift,
    "time_shift": TimeShift,
    "gain": Gain,
    "gaussian_noise": GaussianNoise,
    "amplitude_noise": AmplitudeNoise,
}
"""Name in a YAML -> settings, in the order in which they run: noise last, so that it is never resampled."""


def name_of(step: Augmentation) -> str:
    """The name in a YAML."""
    return next(name for name, kind in KINDS.items() if kind is type(step))


@dataclass(frozen=True)
class Library:
    """A class of audiomentations: the augmentation that does the same, its names of settings, its own defaults."""

    kind: str
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Its setting -> ours, where they differ; older versions' names too."""
    defaults: Mapping[str, float] = field(default_factory=dict)
    """Where they differ from ours."""
    without_effect: Mapping[str, str] = field(default_factory=dict)
    """Its setting -> why it has none here."""


_LENGTH = "the length follows the rate here: to cut the end would take words away"
LIBRARY: dict[str, Library] = {
    "AddGaussianNoise": Library("amplitude_noise"),
    "AddGaussianSNR": Library(
        "gaussian_noise",
        {"min_snr_in_db": "min_snr_db", "max_snr_in_db": "max_snr_db"},
        {"min_snr_db": 5.0, "max_snr_db": 40.0},
    ),
    "Gain": Library(
        "gain",
        {name: f"{end}_db" for end in ("min", "max") for name in (f"{end}_gain_db", f"{end}_gain_in_db")},
        {"min_db": -12.0, "max_db": 12.0},
    ),
    "TimeStretch": Library(
        "time_stretch", without_effect={"leave_length_unchanged": _LENGTH, "method": "WSOLA is the method"}
    ),
    "PitchShift": Library("pitch_shift", without_effect={"method": "WSOLA is the method"}),
}
"""Name in audiomentations -> how it is read."""


@dataclass
class Reading:
    """An `augmentation` mapping: the augmentations that are on, in order; what is wrong, and what is to be said."""

    steps: list[Augmentation] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    """Dotted key -> a sentence about it."""
    notes: list[str] = field(default_factory=list)


def read(spec: Mapping[Any, Any]) -> Reading:
    """Read and check `datasets.augmentation`. An entry whose `use` is false is not looked at further."""
    reading = Reading()
    for name, settings in spec.items():
        place = f"{PLACE}.{name}"
        settings = {} if settings is None else settings
        if not isinstance(settings, Mapping):
            reading.problems.append((place, f"found {settings!r}; expected settings such as {{p: 0.5}}"))
            continue
        use = settings.get("use", True)
        if not isinstance(use, bool):
            reading.problems.append((f"{place}.use", f"found {use!r}; expected true or false"))
        elif use and name not in KINDS and name not in LIBRARY:
            reading.problems.append((place, f"unknown{_nearest(name, (*KINDS, *LIBRARY))}"))
        elif use:
            _read_entry(reading, str(name), place, settings)
    order = list(KINDS.values())
    reading.steps.sort(key=lambda step: order.index(type(step)))
    return reading


def _read_entry(reading: Reading, name: str, place: str, settings: Mapping[str, Any]) -> None:
    """An entry that is on."""
    library = LIBRARY.get(name, Library(name))
    kind = library.kind
    if name == "gaussian_noise" and {"min_amplitude", "max_amplitude"} & set(settings):
        kind = "amplitude_noise"
    known = {item.name for item in dataclasses.fields(KINDS[kind])}
    values: dict[str, Any] = dict(library.defaults)
    before = len(reading.problems)
    for written, value in settings.items():
        key = library.renamed.get(written, written)
        if written == "use":
            continue
        if written in library.without_effect:
            reading.notes.append(f"{place}.{written}: ignored, because {library.without_effect[written]}")
        elif key not in known:
            reading.problems.append((f"{place}.{written}", f"unknown{_nearest(written, (*known, *library.renamed))}"))
        elif problem := _wrong_value(key, value):
            reading.problems.append((f"{place}.{written}", f"found {value!r}; expected {problem}"))
        else:
            values[key] = tuple(value) if key == "tasks" else value
    if len(reading.problems) > before:
        return
    try:
        reading.steps.append(KINDS[kind](**values))
    except UserError as error:
        reading.problems.append((place, str(error)))


def _wrong_value(key: str, value: Any) -> str | None:
    """What was expected instead of a value that is none for the setting."""
    if key == "tasks":
        fits = isinstance(value, list | tuple) and all(isinstance(task, str) for task in value)
        return None if fits else "a list of tasks such as [audiocaption]"
    fits = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    return None if fits else "a number"


def _nearest(name: Any, known: Iterable[str]) -> str:
    lowered = {item.lower(): item for item in known}
    close = difflib.get_close_matches(str(name).lower(), lowered, n=1)
    return (
        f"; did you mean '{lowered[close[0]]}'?"
        if close
        else f"; expected one of {', '.join(sorted(lowered.values()))}"
    )

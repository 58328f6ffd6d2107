"""An entry's fields -> the `Part` of the recording that they mean, whichever manifest they come from.

Start, and end or duration: `offset` and `duration` (NeMo), `start` and `end`, `start_time`, `begin`, `segment: [s, e]`,
`onset` and `offset` (DESED), and the like, in seconds, or in milliseconds where the name ends so. A `duration` alone is
a statement about the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from data.annotation_error import AnnotationError
from data.parts import Part


def _names(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


STARTS = _names(
    "start begin beg onset offset start_time begin_time onset_time starttime time_start time_begin start_offset "
    "begin_offset time_offset t_start tstart start_at starts start_timestamp timestamp_start ts_start offset_start "
    "start_pos start_position trim_start crop_start cue_in"
)
ENDS = _names(
    "end stop finish end_time stop_time endtime time_end time_stop end_offset t_end tend end_at ends end_timestamp "
    "timestamp_end ts_end offset_end end_pos end_position trim_end crop_end cue_out"
)
DURATIONS = frozenset({"duration", "dur"})
PAIRS = _names(
    "segment segments timestamp timestamps interval time_range time_span time_interval start_end time times trim crop "
    "time_stamp time_stamps"
)
NUMBERS_ALONE = {"from": "start", "to": "end", "xmin": "start", "xmax": "end", "tmin": "start", "tmax": "end",
                 "t0": "start", "t1": "end", "ss": "start", "st": "start", "et": "end", "length": "length"}  # fmt: skip
"""Names that also have other meanings: read only where their value is a number, a `length` only next to a start."""
PREFIX = re.compile(r"(audio|segment|seg|clip|utterance|utt|part|chunk|speech|event|cut|wav|recording)_")
OWN_LENGTH = re.compile(r"(segment|seg|utterance|utt|part|chunk|cut)_")
"""Prefixes of a duration that is the part's; `audio_duration` is the recording's."""
UNIT = re.compile(
    r"_(?:in_)?(s|secs?|seconds?|ms|msecs?|millis|milliseconds?|us|usecs?|microseconds?|ns|nsecs?|nanoseconds?|mins?|"
    r"minutes?|samples?|frames?)$"
)
SCALES = {"us": 1e-6, "mic": 1e-6, "use": 1e-6, "ns": 1e-9, "nse": 1e-9, "nan": 1e-9, "min": 60.0, "ms": 1e-3,
          "mse": 1e-3, "mil": 1e-3}  # fmt: skip
"""Seconds of a unit, by the first letters of its name."""
COUNTED = re.compile(r"(frame|sample)s?_(.+)")
CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)")
RANGE = re.compile(r"[\[(]?\s*(\d+(?:\.\d+)?)\s*s?\s*(?:-|\u2013|,|to)\s*(\d+(?:\.\d+)?)\s*s?\s*[\])]?")
MOST_S = 1e12
"""No recording is longer: what is above, or infinite, is no time."""
AGREEMENT_S = 0.05
"""Two spellings of one time may differ by so much, by rounding."""

CHANNEL_FIELDS = {"channel", "audio_channel", "channel_selector", "channels"}
CHANNEL_WORDS = frozenset({"a", "b", "l", "r", "left", "right"})


class _Kind(NamedTuple):
    """What a field's name means."""

    role: str
    scale: float | None
    """Seconds of its unit; None: it counts samples or frames."""
    weak: bool = False
    """Whether another value than a number means something else."""


class _Times(NamedTuple):
    """Each with the field that says it."""

    starts: dict[str, float]
    ends: dict[str, float]
    durations: dict[str, float]


def read_part(entry: Mapping[str, Any], place: str) -> Part | None:
    """The part that an entry means; None for the whole file.

    Raises:
        AnnotationError: a time that is no number, is not finite or negative, an end before its start, fields that
            contradict each other, a unit that depends on the file.
    """
    if not _kinds(tuple(entry)) and not CHANNEL_FIELDS & entry.keys():
        return None
    times = _times(entry, place)
    channel, channel_field = _channel(entry, place)
    named = [*times.starts, *times.ends]
    if not named:
        return None if channel is None else Part(channel=channel, fields=channel_field)
    start_s = _agreed(times.starts, place, entry) or 0.0
    end_s = _agreed(times.ends, place, entry)
    duration_s = _agreed(times.durations, place, entry)
    fields = _shown_fields(entry, [*times.starts, *times.ends, *times.durations])
    if end_s is not None and end_s <= start_s:
        raise AnnotationError(f"{place}: {fields}: the part ends before it starts; correct one of them")
    if end_s is not None and duration_s is not None and abs(start_s + duration_s - end_s) > AGREEMENT_S:
        raise AnnotationError(
            f"{place}: {fields}: from {start_s:g} s, the duration ends at {start_s + duration_s:g} s, the end is "
            f"{end_s:g} s; drop the wrong one"
        )
    if end_s is None and duration_s is not None:
        end_s = start_s + duration_s
    part = Part(start_s, end_s, channel, fields + (f", {channel_field}" if channel_field else ""))
    return None if part.is_whole and channel is None else part


def stated_duration(fields: Mapping[str, Any]) -> float | None:
    """What the fields say about their file's length, in seconds; None where they say nothing that can be used."""
    for name, kind in _kinds(tuple(fields)):
        value = fields[name]
        if kind.role == "duration" and _is_number(value) and 0 < value < MOST_S:
            return float(value * kind.scale)
    return None


def first_parts_of(parts: list[Part | None], paths: list[str], stated: list[float | None]) -> list[Part | None]:
    """An entry with a duration alone is its recording's first part where another entry has a later part of it."""
    divided = {path for part, path in zip(parts, paths, strict=True) if part is not None and part.start_s > 0}
    return [
        Part(0.0, seconds, part and part.channel, f"duration {seconds:g}, no start")
        if seconds is not None and path in divided and (part is None or part.is_whole)
        else part
        for part, path, seconds in zip(parts, paths, stated, strict=True)
    ]


def time_role(name: str) -> str | None:
    """What a field's name is read as: start, end, pair, duration or length; None: nothing."""
    kind = _kind(name, has_onset=False)
    return None if kind is None else kind.role


# -- times -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _kinds(names: tuple[str, ...]) -> tuple[tuple[str, _Kind], ...]:
    """Those of an entry's fields that mean a time, and which; entries of one file mostly have the same fields."""
    has_onset = any("onset" in name for name in names)
    kinds = ((name, _kind(name, has_onset)) for name in names)
    return tuple((name, kind) for name, kind in kinds if kind is not None)


def _kind(name: str, has_onset: bool) -> _Kind | None:
    """What a field's name means for time; None: nothing."""
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip()).lower()
    plain = re.sub(r"[^\w]+", "_", plain).strip("_")  # "Begin Time (s)", "start-time"
    unit = UNIT.search(plain)
    scale: float | None = 1.0
    if unit is not None:
        plain = plain[: unit.start()]
        scale = None if unit[1].startswith(("frame", "sample")) else SCALES.get(unit[1][:3], 1.0)
    counted = COUNTED.fullmatch(plain)
    if counted is not None:
        plain, scale = counted[2], None
    if plain in DURATIONS or OWN_LENGTH.sub("", plain, count=1) in DURATIONS:
        return None if scale is None else _Kind("duration", scale)  # num_frames and the like: a note
    bare = plain if plain in PAIRS else PREFIX.sub("", plain, count=1)
    if bare in ("offset", "offset_time") and has_onset:
        return _Kind("end", scale)
    for role, names in (("start", STARTS), ("end", ENDS), ("pair", PAIRS)):
        if bare in names:
            return _Kind(role, scale)
    return _Kind(NUMBERS_ALONE[bare], scale, weak=True) if bare in NUMBERS_ALONE and scale else None


def _times(entry: Mapping[str, Any], place: str) -> _Times:
    times, lengths = _Times({}, {}, {}), {}
    for name, kind in _kinds(tuple(entry)):
        value = entry[name]
        if value is None or (kind.weak and not _is_number(value)):
            continue
        if kind.role == "length":
            lengths[name] = value
        elif kind.role == "pair":
            pair = _pair(value, name, place)
            if pair is not None:
                times.starts[name] = _seconds(pair[0], name, kind, place)
                if pair[1] is not None:
                    times.ends[name] = _seconds(pair[1], name, kind, place)
        else:
            found = {"start": times.starts, "end": times.ends, "duration": times.durations}[kind.role]
            found[name] = _seconds(value, name, kind, place)
    if times.starts and not (times.ends or times.durations):
        for start in list(times.starts):  # audio_offset, audio_duration: of the same thing
            prefix = PREFIX.match(start)
            length = f"{prefix[0]}duration" if prefix else ""
            if _is_number(entry.get(length)):
                times.durations[length] = _seconds(entry[length], length, _Kind("duration", 1.0), place)
    if times.starts and not (times.ends or times.durations):
        for name, value in lengths.items():
            times.durations[name] = _seconds(value, name, _Kind("duration", _kind(name, False).scale), place)
    return times


def _pair(value: Any, name: str, place: str) -> tuple[Any, Any] | None:
    """Start and end of a list of two, or of `{start, end}`; None for a note of another kind (words with times, …)."""
    if isinstance(value, dict) and not isinstance(value.get("start", {}), dict | list):
        return value["start"], value.get("end")
    if isinstance(value, list) and len(value) == 2 and any(_is_number(item) or _meant(item) for item in value):
        return value[0] or 0, value[1]
    if isinstance(value, str) and (both := RANGE.fullmatch(value.strip())):
        raise AnnotationError(
            f"{place}: field {name!r}: found {_shown(value)}; write start and end as numbers: [{both[1]}, {both[2]}]"
        )
    return None


def _seconds(value: Any, name: str, kind: _Kind, place: str) -> float:
    if kind.scale is None:
        raise AnnotationError(
            f"{place}: field {name!r} counts samples or frames; write seconds, as 'start' and 'end', or 'offset' and "
            "'duration'"
        )
    unit = {1e-3: "milliseconds", 1e-6: "microseconds", 1e-9: "nanoseconds", 60: "minutes"}.get(kind.scale, "seconds")
    wrong = not _is_number(value) or not 0 <= value < MOST_S  # NaN is in no range
    if wrong or (value == 0 and kind.role == "duration"):
        least = "above 0" if kind.role == "duration" else "of at least 0"
        raise AnnotationError(
            f"{place}: field {name!r}: expected {unit} as a number {least}, found {_shown(value)}{_meant(value)}; "
            "correct it, or rename the field if it is not about the sound"
        )
    return float(value) * kind.scale


def _meant(value: Any) -> str:
    """For a time in quotes: ' (the seconds without quotes?)', else ''."""
    if not isinstance(value, str):
        return ""
    clock = CLOCK.fullmatch(value.strip())
    if clock is not None:
        seconds = 3600 * int(clock[1] or 0) + 60 * int(clock[2]) + float(clock[3])
        return f" ({seconds:g} without quotes?)"
    try:
        return f" ({float(value):g} without quotes?)" if math.isfinite(float(value)) else ""
    except ValueError:
        return ""


def _agreed(found: Mapping[str, float], place: str, entry: Mapping[str, Any]) -> float | None:
    if found and max(found.values()) - min(found.values()) > AGREEMENT_S:
        raise AnnotationError(f"{place}: {_shown_fields(entry, list(found))} disagree; keep the one that is right")
    return next(iter(found.values()), None)


# -- channels --------------------------------------------------------------------------------------------------------


def _channel(entry: Mapping[str, Any], place: str) -> tuple[int | None, str]:
    """The channel that an entry means, and the field with its value; (None, '') for all of them."""
    for name in sorted(CHANNEL_FIELDS & entry.keys()):
        value = entry[name]
        if name == "channels" and not isinstance(value, list):
            continue  # how many the file has
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if value is None or (isinstance(value, str) and not _names_a_channel(value)):
            continue  # a broadcaster's name, and the like
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise AnnotationError(
                f"{place}: field {name!r}: expected the number of one channel, from 0, found {_shown(value)}; write "
                "that, or drop the field for the mean of all channels"
            )
        return value, f"{name} {value}"
    return None, ""


def _names_a_channel(value: str) -> bool:
    plain = value.strip().lower()
    return plain in CHANNEL_WORDS or plain.lstrip("-").isdigit()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown_fields(entry: Mapping[str, Any], names: list[str]) -> str:
    return ", ".join(f"{name} {_shown(entry[name])}" for name in dict.fromkeys(names))


def _shown(value: Any) -> str:
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."

"""Durations and sample rates that annotations state of their files: where a file differs, it is remarked.

Such a clip is loaded whole: whether the duration or the file is wrong cannot be known. The part of a file needs a start
(`offset: 0`).
"""

from __future__ import annotations

from collections.abc import Sequence

from data.annotations import Annotation
from data.opening import AudioError, probe_rate_hz
from data.part_fields import stated_duration
from data.remarks import RATE, STATED, Remark

TOLERANCE_S, TOLERANCE = 0.1, 0.02
"""A stated duration is the file's where it differs by less than either."""
PROBED = 64
"""Files whose headers are compared before the others' durations are believed."""
RATE_FIELDS = ("sampling_rate", "sample_rate", "samplerate")


def stated_s(annotation: Annotation) -> float | None:
    """What an annotation states about its whole file; None where it states nothing, or means a part, or where the
    duration may be that of the clip alone or of all that `expand_wav` appends."""
    if annotation.expand_wav or (annotation.part is not None and not annotation.part.is_whole):
        return None
    return stated_duration(annotation.extra) if annotation.extra else None


def misstated(annotation: Annotation, found_s: float, *, capped: bool = False) -> list[Remark]:
    """A remark if the file's length is not what its annotation states. With `capped`, the file has more."""
    stated = stated_s(annotation)
    if stated is None or abs(stated - found_s) <= max(TOLERANCE_S, TOLERANCE * found_s):
        return []
    if capped and stated > found_s:
        return []
    return [Remark(STATED, _name(annotation), f"stated {stated:g} s, found {found_s:.6g} s")]


def spread(annotations: Sequence[Annotation]) -> list[Annotation]:
    """`PROBED` of them, evenly spread, or all."""
    step = -(-len(annotations) // PROBED)
    return list(annotations[::step]) if annotations else []


def other_rates(annotations: Sequence[Annotation]) -> list[Remark]:
    """Remarks on files with another sample rate than their annotations state; looks at some of them."""
    found = []
    for annotation in spread([annotation for annotation in annotations if _stated_rate_hz(annotation) is not None]):
        try:
            rate_hz = probe_rate_hz(annotation.path)
        except AudioError:
            continue
        if rate_hz != _stated_rate_hz(annotation):
            clause = f"stated {_stated_rate_hz(annotation):g} Hz, found {rate_hz} Hz"
            found.append(Remark(RATE, _name(annotation), clause))
    return found


def _stated_rate_hz(annotation: Annotation) -> float | None:
    rates = (annotation.extra.get(name) for name in RATE_FIELDS if name in annotation.extra)
    return next((rate for rate in rates if isinstance(rate, int | float) and not isinstance(rate, bool)), None)


def _name(annotation: Annotation) -> str:
    return f"{annotation.path} ({annotation.source})" if annotation.source else annotation.path

"""Durations and sample rates that annotations state of their files: where a file differs, it is listed once.

Such a clip is loaded whole: whether the duration or the file is wrong cannot be known. The part of a file needs a start
(`offset: 0`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data.annotations import Annotation
from data.audio import AudioError, probe_rate_hz
from data.part_fields import stated_duration

log = logging.getLogger(__name__)

TOLERANCE_S, TOLERANCE = 0.1, 0.02
"""A stated duration is the file's where it differs by less than either."""
NAMED = 3
PROBED = 64
"""Files whose headers are compared before the others' durations are believed."""
RATE_FIELDS = ("sampling_rate", "sample_rate", "samplerate")

_listed: set[str] = set()
"""Clips that were listed in this run."""


@dataclass(frozen=True)
class Misstated:
    """A clip whose file has another length than its annotation states."""

    clip: str
    """`file#entry`, or the path."""
    stated_s: float
    found_s: float

    def __str__(self) -> str:
        return f"{self.clip}: duration {self.stated_s:g}, the file has {self.found_s:.6g} s"


def stated_s(annotation: Annotation) -> float | None:
    """What an annotation states about its whole file; None where it states nothing, or means a part, or where the
    duration may be that of the clip alone or of all that `expand_wav` appends."""
    if annotation.expand_wav or (annotation.part is not None and not annotation.part.is_whole):
        return None
    return stated_duration(annotation.extra) if annotation.extra else None


def misstated(annotation: Annotation, found_s: float, *, capped: bool = False) -> Misstated | None:
    """The clip, if its file's length is not what it states; None if it is. With `capped`, the file has more."""
    stated = stated_s(annotation)
    if stated is None or abs(stated - found_s) <= max(TOLERANCE_S, TOLERANCE * found_s):
        return None
    if capped and stated > found_s:
        return None
    return Misstated(annotation.source or annotation.path, stated, found_s)


def list_once(found: Iterable[Misstated], of: int) -> None:
    """Say which clips state another length than their file's; those that were listed before are left out."""
    new = [one for one in found if one.clip not in _listed]
    if not new:
        return
    _listed.update(one.clip for one in new)
    new.sort(key=lambda one: -abs(one.stated_s - one.found_s))
    more = f"; and {len(new) - NAMED:,} more" if len(new) > NAMED else ""
    log.warning(
        "%s of %s clips: the file is not as long as field 'duration' states, and all of it is used; correct or drop "
        "the field, or, where it means a part, write 'offset' too (0 for the first part): %s%s",
        f"{len(new):,}", f"{of:,}", "; ".join(map(str, new[:NAMED])), more,
    )  # fmt: skip


def spread(annotations: Sequence[Annotation]) -> list[Annotation]:
    """`PROBED` of them, evenly spread, or all."""
    step = -(-len(annotations) // PROBED)
    return list(annotations[::step]) if annotations else []


def list_other_rates(annotations: Sequence[Annotation]) -> None:
    """Say, once, if files have another sample rate than their annotations state: the file's is used. Looks at some."""
    stating = [annotation for annotation in annotations if _stated_rate_hz(annotation) is not None]
    for annotation in spread(stating):
        try:
            found_hz = probe_rate_hz(annotation.path)
        except AudioError:
            continue
        if found_hz != _stated_rate_hz(annotation):
            name = f"{annotation.source or annotation.path} (rate)"
            if name not in _listed:
                log.warning(
                    "%s: the annotation states %g Hz, %s has %d Hz, which is used; there may be more of this kind",
                    annotation.source, _stated_rate_hz(annotation), annotation.path, found_hz,
                )  # fmt: skip
            _listed.add(name)
            return


def _stated_rate_hz(annotation: Annotation) -> float | None:
    rates = (annotation.extra.get(name) for name in RATE_FIELDS if name in annotation.extra)
    return next((rate for rate in rates if isinstance(rate, int | float) and not isinstance(rate, bool)), None)

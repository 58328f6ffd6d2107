"""What is said of clips that can be used, though something about them was not as it should be: once a run, counted.

Worker processes load the clips, in every epoch again; a remark travels with its sample to the main process, which lists
it there once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import NamedTuple

log = logging.getLogger(__name__)

NAMED = 3
CHANNELS, LENGTH, LEVEL, STATED, RATE = "channels", "length", "level", "stated", "rate"
WHAT = {
    CHANNELS: "with channels whose mean loses more than 6 dB, so that the loudest is used alone",
    LENGTH: "with another length than in the header; all the sound that is there is used",
    LEVEL: "with float samples beyond full scale, scaled down to it",
    STATED: (
        "with another length than their annotation's 'duration' states, used whole; correct or drop the field, or, "
        "where it means a part, write 'offset' too (0 for the first part)"
    ),
    RATE: "with another sample rate than their annotation states; the file's own is used",
}
"""Kind -> what its clips have in common."""


class Remark(NamedTuple):
    """One remark about one clip."""

    kind: str
    """A key of `WHAT`."""
    clip: str
    clause: str

    def __str__(self) -> str:
        return f"{self.clip}: {self.clause}"


_told: set[tuple[str, str]] = set()
"""(kind, clip) of this process that were listed: training and every validation have their own loaders."""


class Remarks:
    """Remarks since the last report."""

    def __init__(self) -> None:
        self._new: dict[tuple[str, str], Remark] = {}

    def add(self, remarks: Iterable[Remark]) -> None:
        for remark in remarks:
            key = (remark.kind, remark.clip)
            if key not in _told:
                self._new.setdefault(key, remark)

    def report(self) -> None:
        """One warning for each kind of remark: how many clips that were not listed before, and the first of them."""
        for kind, what in WHAT.items():
            new = [remark for key, remark in self._new.items() if key[0] == kind and key not in _told]
            if not new:
                continue
            named = "; ".join(map(str, new[:NAMED]))
            more = f"; and {len(new) - NAMED} more" if len(new) > NAMED else ""
            log.warning("%d clip%s %s: %s%s", len(new), "s" if len(new) > 1 else "", what, named, more)
        _told.update(self._new)
        self._new.clear()

"""Which clips a row of a table is measured on: annotation files, parts of them by a field, and seeded samples of these.

`FILE` is all clips of the family's task in an annotation file, `FILE:source=librispeech_test-clean` those whose entry
has this value in this field (of several, joined by commas, all must be right).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.annotations import Annotation, load_annotations
from scoring.tasks import TASKS, task_metrics
from support.command_line import UserError

TASKS_OF = {"asr": "asr", "aac": "audiocaption"}
"""Family -> the row of `TASKS` by which its tasks are scored: English WER, CIDEr-D."""


@dataclass(frozen=True, kw_only=True)
class ClipSet:
    """Clips that get a figure of their own."""

    name: str
    family: str
    """`asr` or `aac`."""
    given: str
    """As the command line named it."""
    clips: tuple[Annotation, ...]
    """In the file's order; `source` tells them apart."""
    of: int
    """Clips there were before a sample was taken."""

    def sample(self, most: int | None, seed: int = 0) -> ClipSet:
        """At most so many clips, drawn at random (files are often sorted by speaker). A smaller sample of the whole set
        is part of a larger one of the same seed, so that rows on both can be compared clip by clip."""
        if most is None or most >= len(self.clips):
            return self
        assert self.of == len(self.clips), "a sample of a sample is no part of other samples"
        chosen = np.random.default_rng(seed).permutation(len(self.clips))[:most]
        return dataclasses.replace(self, clips=tuple(self.clips[position] for position in sorted(chosen)))


def read_sets(asr: Sequence[str], aac: Sequence[str]) -> list[ClipSet]:
    """The sets that the arguments name, each once.

    Raises:
        UserError: a file cannot be read or has no clip of the task or field, or nothing was named.
    """
    given = list(dict.fromkeys([("asr", text) for text in asr] + [("aac", text) for text in aac]))
    if not given:
        raise UserError("no clips to measure on: name annotation files with --asr or --aac")
    names = Counter(_short(text) for _, text in given)
    sets = [_read(family, text, _short(text) if names[_short(text)] == 1 else text) for family, text in given]
    repeated = [name for name, count in Counter(row.name for row in sets).items() if count > 1]
    if repeated:
        raise UserError(f"{repeated[0]} is named for --asr and for --aac; name one part of it for each")
    return sets


def _split(text: str) -> tuple[str, dict[str, str]]:
    """File and filter of `FILE` or `FILE:field=value,field=value`."""
    if Path(text).exists() or ":" not in text:
        return text, {}
    file, _, conditions = text.rpartition(":")
    pairs = [condition.partition("=") for condition in conditions.split(",")]
    if not all(field and equals for field, equals, _ in pairs):
        raise UserError(f"{text}: no such file; to name a part of one, write FILE:field=value, as FILE:source=dev")
    return file, {field: value for field, _, value in pairs}


def _short(text: str) -> str:
    file, wanted = _split(text)
    return "/".join(Path(file).with_suffix("").parts[-2:]) + "".join(f" {key}={want}" for key, want in wanted.items())


def _read(family: str, text: str, name: str) -> ClipSet:
    file, wanted = _split(text)
    metric = TASKS[TASKS_OF[family]]
    everything = load_annotations(Path(file).expanduser().absolute())  # processes start elsewhere
    right = [clip for clip in everything if task_metrics(clip.task) is metric]
    if not right:
        found = ", ".join(sorted({clip.task for clip in everything}))
        raise UserError(f"{file}: no clip for --{family}; its tasks are {found}")
    chosen = [clip for clip in right if all(_value(clip, key) == value for key, value in wanted.items())]
    if not chosen:
        key = next(iter(wanted))
        there = Counter(str(_value(clip, key)) for clip in right)
        found = ", ".join(f"{value} ({count})" for value, count in there.most_common(8))
        raise UserError(f"{text}: no clip of the {len(right)} fits; their values of {key!r} are {found}")
    return ClipSet(name=name, family=family, given=text, clips=tuple(chosen), of=len(chosen))


def _value(clip: Annotation, key: str) -> str | None:
    value = getattr(clip, key) if key in ("task", "Q", "testset_id") else clip.extra.get(key)
    return None if value is None else str(value)

"""What a corpus holds: tasks, lengths of clips and texts, formats of files, and what is missing.

From annotation files and the headers of their clips; no clip is decoded.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from data.annotations import Annotation
from data.sampling import clip_durations

SHORT_S = 1.0  # the family pads what is shorter
LONG_S = 30.0  # Whisper's window
THREADS = 16
EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How a figure is spread over clips."""

    total: float
    least: float
    median: float
    mean: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None where there are no values."""
        if not values:
            return None
        return cls(
            total=sum(values),
            least=min(values),
            median=statistics.median(values),
            mean=statistics.fmean(values),
            most=max(values),
        )


@dataclass(frozen=True, kw_only=True)
class Group:
    """The clips of one task, or all of them."""

    clips: int
    seconds: Spread | None
    """Of those that can be read."""
    words: Spread | None
    """Of the references, all of them where a clip has several."""
    characters: Spread | None
    short: int
    """Clips of less than a second."""
    long: int
    """Clips of more than 30 seconds."""
    without_text: int
    """Clips without a reference, or with an empty one alone."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Some annotation files."""

    whole: Group
    tasks: dict[str, Group]
    folders: dict[str, int]
    """First folder of the clips' paths below their common one -> clips: the sets a corpus is made of."""
    rates_hz: dict[str, int]
    channels: dict[str, int]
    formats: dict[str, int]
    unreadable: int
    """Clips without a file, or with one that is no audio."""
    examples: tuple[str, ...]
    """Some of them."""
    repeated_clips: int
    """Entries whose clip an earlier entry of the same task had."""
    repeated_texts: int
    """Entries whose text an earlier entry of the same task had."""


def describe(annotations: Sequence[Annotation]) -> Corpus:
    """Read the headers and count."""
    seconds = clip_durations(annotations)
    paths = list(dict.fromkeys(annotation.path for annotation in annotations))
    with ThreadPoolExecutor(THREADS) as pool:
        headers = dict(zip(paths, pool.map(_header, paths), strict=True))
    unreadable = [annotation.path for annotation in annotations if headers[annotation.path] is None]
    usable = [
        length if headers[annotation.path] is not None else 0.0
        for annotation, length in zip(annotations, seconds, strict=True)
    ]

    def counted(what: Callable[[Any], object]) -> dict[str, int]:
        found = (headers[annotation.path] for annotation in annotations)
        return dict(Counter(str(what(header)) for header in found if header is not None).most_common())

    tasks = Counter(annotation.task for annotation in annotations)
    return Corpus(
        whole=_group(annotations, usable),
        tasks={
            task: _group(
                [annotation for annotation in annotations if annotation.task == task],
                [length for annotation, length in zip(annotations, usable, strict=True) if annotation.task == task],
            )
            for task, _ in tasks.most_common()
        },
        folders=_folders(annotations),
        rates_hz=counted(lambda header: header.samplerate),
        channels=counted(lambda header: header.channels),
        formats=counted(lambda header: f"{header.format.lower()}, {header.subtype}"),
        unreadable=len(unreadable),
        examples=tuple(unreadable[:EXAMPLES]),
        repeated_clips=_repeated([(a.task, *a.audio) for a in annotations]),
        repeated_texts=_repeated([(a.task, a.text) for a in annotations if a.text]),
    )


def _group(annotations: Sequence[Annotation], seconds: Sequence[float]) -> Group:
    readable = [length for length in seconds if length > 0]
    texts = [text for annotation in annotations for text in annotation.texts if text.strip()]
    return Group(
        clips=len(annotations),
        seconds=Spread.of(readable),
        words=Spread.of([len(text.split()) for text in texts]),
        characters=Spread.of([len(text) for text in texts]),
        short=sum(length < SHORT_S for length in readable),
        long=sum(length > LONG_S for length in readable),
        without_text=sum(not any(text.strip() for text in annotation.texts) for annotation in annotations),
    )


def _header(path: str) -> Any | None:
    try:
        return soundfile.info(path)
    except (RuntimeError, OSError, TypeError, ValueError):  # LibsndfileError is a RuntimeError
        return None


def _folders(annotations: Sequence[Annotation]) -> dict[str, int]:
    parts = [Path(annotation.path).parts[:-1] for annotation in annotations]
    common = 0
    while all(len(folder) > common for folder in parts) and len({folder[common] for folder in parts}) == 1:
        common += 1
    return dict(Counter(folder[common] if len(folder) > common else "." for folder in parts).most_common())


def _repeated(keys: Sequence[tuple[object, ...]]) -> int:
    return len(keys) - len(set(keys))

"""Give every clip another one's audio: a model that uses audio then fails, one that guesses texts scores as before."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from data.annotations import Annotation
from support.command_line import UserError

ROUNDS = 50  # of repairs; two or three are enough unless nearly all references are alike


@dataclass(frozen=True, kw_only=True)
class Swap:
    """Annotations with exchanged audio, in their order."""

    annotations: list[Annotation]
    """As given, but `path`, `part`, `expand_wav` and `extra` (a duration, a sample rate) are another clip's."""
    same_reference: int
    """Clips whose new audio has one of their own references: more of them only where no exchange avoids it."""


def swap_audio(annotations: Sequence[Annotation], seed: int) -> Swap:
    """Exchange the audio among the clips of each task (among all where a task has one clip), seeded.

    No clip keeps its own audio. Where possible, the new audio's references differ from the clip's own, so that a
    right answer about the wrong clip is not counted as correct.

    Raises:
        UserError: no two different clips to exchange.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for position, annotation in enumerate(annotations):
        groups[annotation.task].append(position)
    several = [group for group in groups.values() if len({annotations[i].audio for i in group}) > 1]
    alone = [i for group in groups.values() if group not in several for i in group]
    if alone:  # a task of one clip borrows from the others
        several = [[i for group in several for i in group] + alone]
    if len({annotation.audio for annotation in annotations}) < 2:
        raise UserError(f"swapping audio needs two different clips, got {len(annotations)} of one file")

    source = list(range(len(annotations)))
    for group in several:
        order = _derangement(group, seed, lambda i, j: _clash(annotations[i], annotations[j]))
        for position, other in zip(group, order, strict=True):
            source[position] = other
    swapped = [
        replace(annotation, path=other.path, part=other.part, expand_wav=other.expand_wav, extra=other.extra)
        for annotation, other in zip(annotations, (annotations[j] for j in source), strict=True)
    ]
    unmoved = sum(new.audio == old.audio for new, old in zip(swapped, annotations, strict=True))
    if unmoved:
        raise UserError(f"{unmoved} clips cannot be given other audio: more than half of the clips are the same file")
    same = sum(_clash(annotations[i], annotations[j]) > 0 for i, j in enumerate(source))
    return Swap(annotations=swapped, same_reference=same)


def _references(annotation: Annotation) -> set[str]:
    return {text.strip().casefold() for text in (annotation.texts or (annotation.text,))}


def _clash(clip: Annotation, other: Annotation) -> int:
    """How badly `other`'s audio suits as wrong audio for `clip`: 1 for a common reference, far more for one file."""
    if clip.audio == other.audio:
        return 1_000_000
    return int(bool(_references(clip) & _references(other)))


def _derangement(group: list[int], seed: int, clash: Callable[[int, int], int]) -> list[int]:
    """Another member for each member of `group`: a shuffled cycle, then exchanges that lessen the clashes."""
    rng = random.Random(f"swap {seed}")
    order = list(group)
    rng.shuffle(order)
    given = dict(zip(order, [*order[1:], order[0]], strict=True))
    for _ in range(ROUNDS):
        clashing = [i for i in group if clash(i, given[i])]
        improved = False
        for i in clashing:
            now = clash(i, given[i])
            if not now:
                continue
            for j in rng.sample(group, len(group)):
                before = now + clash(j, given[j])
                if clash(i, given[j]) + clash(j, given[i]) < before:
                    given[i], given[j] = given[j], given[i]
                    improved = True
                    break
        if not improved:
            break
    return [given[i] for i in group]

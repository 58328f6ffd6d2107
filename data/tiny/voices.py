"""Questions about the voice: gender of the speaker, and whether two clips have one speaker."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from data.tiny.recordings import Clip

ADULT_AGE = 15
"""From this age on a voice tells the gender; younger speakers are not asked about."""
PAIRED_S = 8.0
"""Longest clip of a pair, in seconds."""
KEPT = ("path", "duration", "speaker", "gender", "age", "source", "license")


def about(clip: Clip, task: str, text: str, question: str | None = None) -> Clip:
    """An entry of another task on a clip of speech; its transcript is kept as `words`."""
    asked = {} if question is None else {"Q": question}
    kept = {name: clip[name] for name in KEPT if name in clip}
    return {**kept, "text": text, "task": task, **asked, "words": clip["text"]}


def genders(clips: list[Clip], most: int, rng: random.Random) -> list[Clip]:
    """Male or female, equally often in every source: at most `most` clips of each, of as many speakers as possible."""
    entries = []
    adults = [clip for clip in clips if clip.get("age", ADULT_AGE) >= ADULT_AGE]
    for source in sorted({clip["source"] for clip in adults}):
        of_source = [clip for clip in adults if clip["source"] == source]
        both = [[clip for clip in of_source if clip["gender"] == name] for name in ("female", "male")]
        count = min(most, *map(len, both))
        for same in both:
            chosen = in_turn(same, lambda clip: clip["speaker"], rng)[:count]
            entries += [about(clip, "gender_recognition", clip["gender"]) for clip in chosen]
    return entries


def in_turn(clips: Iterable[Clip], key: Callable[[Clip], str], rng: random.Random) -> list[Clip]:
    """All clips, one of each group after another, so that the first ones are of as many groups as possible."""
    groups: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        groups[key(clip)].append(clip)
    ordered = [groups[name] for name in sorted(groups)]
    for group in (*ordered, ordered):
        rng.shuffle(group)
    longest = max(map(len, ordered), default=0)
    return [group[turn] for turn in range(longest) for group in ordered if turn < len(group)]


def verifications(clips: list[Clip], most: int, rng: random.Random) -> list[Clip]:
    """Pairs of clips of one source, `most` of each: half of one speaker, half of two of the same gender."""
    entries = []
    short = [clip for clip in clips if clip["duration"] <= PAIRED_S]
    for source in sorted({clip["source"] for clip in short}):
        of_source = in_turn((clip for clip in short if clip["source"] == source), lambda clip: clip["speaker"], rng)
        same, different = list(_pairs(of_source, same=True)), list(_pairs(of_source, same=False))
        count = min(most // 2, len(same), len(different))
        entries += [_pair(pair, "Yes") for pair in same[:count]] + [_pair(pair, "No") for pair in different[:count]]
    return entries


def _pairs(clips: list[Clip], same: bool) -> Iterator[tuple[Clip, Clip]]:
    """Pairs without repeated clips, in order."""
    free = list(clips)
    while free:
        first = free.pop(0)
        for second in free:
            if second["gender"] == first["gender"] and (second["speaker"] == first["speaker"]) == same:
                free.remove(second)
                yield first, second
                break


def _pair(pair: tuple[Clip, Clip], text: str) -> Clip:
    from data.audio import EXPAND_SILENCE_S  # imports torch, which `--help` does not wait for

    first, second = pair
    kept = {name: first[name] for name in ("path", "gender", "source", "license")}
    return {
        **kept,
        "text": text,
        "task": "speaker_verification",
        "expand_wav": [second["path"]],
        "duration": round(first["duration"] + second["duration"] + EXPAND_SILENCE_S, 3),
        "speakers": [first["speaker"], second["speaker"]],
        "sentences": [first["text"], second["text"]],
    }

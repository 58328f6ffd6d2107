"""Phones of sentences, looked up word by word in CMUdict as asr_en_kathleen's are: first pronunciation, no stress."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from pathlib import Path

from data.annotation_error import AnnotationError
from data.tiny.recordings import CMUDICT, Clip
from data.tiny.voices import about, in_turn

TRANSCRIBED_S = 6.0
"""Longest clip, in seconds: a second of speech is a dozen phones, several tokens each."""


def read_dictionary(root: Path) -> dict[str, str]:
    """Word -> phones.

    Raises:
        AnnotationError: the dictionary is not there.
    """
    file = root / "captions_text" / "cmudict.dict"
    if not file.is_file():
        raise AnnotationError(f"{file}: no such file; expected CMUdict in the folder of the recordings")
    phones = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        word, _, found = line.split("#")[0].strip().partition(" ")
        if found and not word.endswith(")"):  # `word(2)` is a further pronunciation
            phones[word] = re.sub(r"\d", "", found)
    return phones


def phonetic(clips: list[Clip], dictionary: Mapping[str, str], most: int, rng: random.Random) -> list[Clip]:
    """Phones of clips whose words are all in the dictionary: at most `most` of a source, of many speakers."""
    entries = []
    known = [clip for clip in clips if all(word in dictionary for word in clip["text"].split())]
    for source in sorted({clip["source"] for clip in known}):
        short = [clip for clip in known if clip["source"] == source and clip["duration"] <= TRANSCRIBED_S]
        for clip in in_turn(short, lambda clip: clip["speaker"], rng)[:most]:
            text = " ".join(dictionary[word] for word in clip["text"].split())
            entry = about(clip, "phone_recognition", text)
            entries.append({**entry, "license": clip["license"] + CMUDICT})
    return entries

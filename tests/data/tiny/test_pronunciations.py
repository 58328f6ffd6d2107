"""Phones looked up: the first pronunciation without stress, of known words only."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from data.tiny.pronunciations import TRANSCRIBED_S, phonetic, read_dictionary
from data.tiny.recordings import CMUDICT, require_open, speech
from support.command_line import UserError


def test_the_dictionary_has_first_pronunciations_without_stress(recordings: Path) -> None:
    (recordings / "captions_text" / "cmudict.dict").write_text(
        "a AH0 # weak\na(2) EY1\n\n'em AH0 M\n", encoding="utf-8"
    )
    assert read_dictionary(recordings) == {"a": "AH", "'em": "AH M"}


def test_no_dictionary(recordings: Path) -> None:
    (recordings / "captions_text" / "cmudict.dict").unlink()
    with pytest.raises(UserError, match=r"cmudict.dict: no such file"):
        read_dictionary(recordings)


def test_clips_with_unknown_words_and_long_ones_are_left_out(recordings: Path) -> None:
    clips = speech(recordings, "train")[:3]
    clips[0] = {**clips[0], "text": "mxyzptlk"}
    clips[1] = {**clips[1], "duration": TRANSCRIBED_S + 1}
    (entry,) = phonetic(clips, read_dictionary(recordings), 10, random.Random(0))
    assert entry["text"] == " ".join(["HH IY"] * 5)
    assert entry["words"] == clips[2]["text"]
    assert entry["license"] == "CC BY 4.0" + CMUDICT
    require_open([entry])


def test_the_given_phones_are_those_of_the_dictionary(real_dir: Path) -> None:
    dictionary = read_dictionary(real_dir)
    file = real_dir / "asr_en_kathleen" / "annotation_phone_test.json"
    for entry in json.loads(file.read_text(encoding="utf-8"))["annotation"]:
        assert entry["text"] == " ".join(dictionary[word] for word in entry["words"].split())

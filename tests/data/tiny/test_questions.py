"""Questions about clips: the answers are right, and no answer is right more often than its opposite."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from data.tiny import questions
from data.tiny.questions import ANIMALS, THINGS, on_both, on_sounds, on_speech
from data.tiny.recordings import Clip, sounds, speech


def balanced(entries: list[Clip]) -> bool:
    """Whether each question is answered Yes as often as No."""
    counts = Counter((entry["Q"], entry["text"]) for entry in entries if entry["text"] in ("Yes", "No"))
    return bool(counts) and all(counts[question, "Yes"] == counts[question, "No"] for question, _ in counts)


def test_words_are_said_or_not(recordings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "COMMON_WORDS", 1)
    entries = on_speech(speech(recordings, "train"), 8, random.Random(0))
    asked = [entry for entry in entries if entry["text"] in ("Yes", "No")]
    assert balanced(asked)
    for entry in asked:
        said = set(entry["words"].split()) & set(entry["Q"].strip("?").split())
        assert bool(said - {"comes"}) == (entry["text"] == "Yes")


def test_first_and_last_words(recordings: Path) -> None:
    entries = on_speech(speech(recordings, "train"), 8, random.Random(0))
    ends = [entry for entry in entries if entry["text"] in entry["words"].split()]
    assert len(ends) == 4
    for entry in ends:
        first = "first" in entry["Q"] or "begin" in entry["Q"]
        assert entry["text"] == entry["words"].split()[0 if first else -1]


def test_children_and_adults_equally_often(recordings: Path) -> None:
    entries = on_speech(speech(recordings, "train"), 8, random.Random(0))
    ages = {
        answer: [entry["age"] for entry in entries if entry["text"] == answer] for answer in ("a child", "an adult")
    }
    assert len(ages["a child"]) == len(ages["an adult"]) == 2
    assert max(ages["a child"]) < 15 < min(ages["an adult"])


def test_sounds_are_what_they_are(recordings: Path) -> None:
    clips = sounds(recordings, "train")
    entries = on_sounds(clips, random.Random(0))
    assert balanced(entries)
    for entry in entries:
        thing = THINGS[entry["label"]][0]
        if " or " in entry["Q"]:
            assert entry["text"] == thing
            assert thing in entry["Q"]
        elif "animal" in entry["Q"]:
            assert (entry["text"] == "Yes") == (entry["label"] in ANIMALS)
        elif entry["text"] in ("Yes", "No"):
            assert (thing in entry["Q"]) == (entry["text"] == "Yes")
        else:
            assert entry["text"] == thing


def test_what_a_caption_mentions_is_not_denied(recordings: Path) -> None:
    clips = sounds(recordings, "train")
    for clip in clips:
        clip["texts"] = [f"{clip['text']} and dogs, a rooster, the sea, rain, a baby and a clock"]
    for entry in on_sounds(clips, random.Random(0)):
        if entry["text"] == "No":
            assert "animal" not in entry["Q"]
            assert not any(word in entry["Q"] for word in ("dog", "rooster", "sea", "rain", "baby", "clock"))


def test_speech_or_sound(recordings: Path) -> None:
    clips = sounds(recordings, "train")
    clips[0]["text"] = clips[0]["texts"][0] = "rain falls with some people around"
    entries = on_both(speech(recordings, "train"), clips, random.Random(0))
    assert Counter(entry["text"] in ("Yes", "speech") for entry in entries) == {True: 5, False: 5}
    assert all((entry["text"] in ("Yes", "speech")) == ("words" in entry) for entry in entries)
    assert clips[0]["path"] not in {entry["path"] for entry in entries}


def test_every_question_ends_as_one_and_fills_its_prompt(recordings: Path) -> None:
    spoken, heard = speech(recordings, "train"), sounds(recordings, "train")
    rng = random.Random(0)
    for entry in [*on_speech(spoken, 8, rng), *on_sounds(heard, rng), *on_both(spoken, heard, rng)]:
        assert entry["task"] == "QA"
        assert entry["Q"].endswith("?")
        assert "{" not in entry["Q"]

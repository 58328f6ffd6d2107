"""Genders and pairs of voices: right, balanced, of many speakers."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from data.tiny.recordings import speech
from data.tiny.voices import PAIRED_S, genders, in_turn, verifications


def test_genders_are_balanced_in_every_source_and_children_are_not_asked_about(recordings: Path) -> None:
    clips = speech(recordings, "train")
    clips = [clip for clip in clips if clip["path"] != clips[0]["path"]]  # one man's clip less
    entries = genders(clips, 100, random.Random(0))
    assert {entry["task"] for entry in entries} == {"gender_recognition"}
    counts = Counter((entry["source"], entry["text"]) for entry in entries)
    assert counts == {
        ("librispeech_train-clean-5", "male"): 5,
        ("librispeech_train-clean-5", "female"): 5,
        ("speechocean762", "male"): 1,
        ("speechocean762", "female"): 1,
    }
    assert all(entry.get("age", 20) >= 15 for entry in entries)
    few = genders(clips, 2, random.Random(0))
    assert {entry["speaker"] for entry in few if entry["source"] != "speechocean762"} == {
        "libri_1", "libri_2", "libri_3", "libri_4",
    }  # fmt: skip


def test_pairs_have_one_speaker_or_two_of_one_gender(recordings: Path) -> None:
    clips = speech(recordings, "train")
    gender = {clip["speaker"]: clip["gender"] for clip in clips}
    entries = verifications(clips, 100, random.Random(0))
    counts = Counter(entry["text"] for entry in entries)
    assert counts["Yes"] == counts["No"] > 0
    for entry in entries:
        first, second = entry["speakers"]
        assert (first == second) == (entry["text"] == "Yes")
        assert gender[first] == gender[second]
        assert entry["path"] not in entry["expand_wav"]
        assert entry["duration"] == 0.3  # two of 0.1 s, and the silence between them
        assert len(entry["sentences"]) == 2


def test_long_clips_are_not_paired(recordings: Path) -> None:
    clips = [{**clip, "duration": PAIRED_S + 1} for clip in speech(recordings, "train")]
    assert verifications(clips, 100, random.Random(0)) == []


def test_in_turn_takes_one_of_each_group_first() -> None:
    clips = [{"speaker": name} for name in "aaabbc"]
    ordered = in_turn(clips, lambda clip: clip["speaker"], random.Random(0))
    assert Counter(clip["speaker"] for clip in ordered) == Counter("aaabbc")
    assert {clip["speaker"] for clip in ordered[:3]} == {"a", "b", "c"}

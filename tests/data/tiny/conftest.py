"""Folders of recordings of the tiny recipe's kind: a few short files and their annotations."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

Entry = dict[str, Any]
VOICES = {
    "train": (("libri_1", "male"), ("libri_2", "female"), ("libri_3", "male"), ("libri_4", "female")),
    "dev": (("libri_5", "male"), ("libri_6", "female"), ("libri_11", "male")),
    "test": (("libri_7", "male"), ("libri_8", "female"), ("libri_9", "male"), ("libri_10", "female")),
}
LABELS = ("dog bark", "rooster", "rain", "sea waves", "chainsaw", "clock tick")
CAPTIONS = (
    "a poodle barks",
    "a rooster crows",
    "rain on a roof",
    "waves of the sea",
    "a chainsaw runs",
    "a clock ticks",
)
SOURCES = {"train": "librispeech_train-clean-5", "dev": "librispeech_test-clean", "test": "librispeech_test-clean"}


def add(folder: Path, part: str, entries: list[Entry]) -> None:
    """Write an annotation file and its clips."""
    for entry in entries:
        path = folder / entry["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes(bytes(3200))
    (folder / f"annotation_{part}.json").write_text(json.dumps({"annotation": entries}), encoding="utf-8")


def sentences() -> Iterator[str]:
    """Sentences of which no two have all words in common."""
    for number in count():
        letters = "".join(chr(ord("a") + int(digit)) for digit in str(number))
        yield f"morning{letters} comes early{letters} with{letters} evening{letters}"


def read_speech(part: str, said: Iterator[str]) -> list[Entry]:
    """Three clips of every voice, and clips of children and adults of another source."""
    entries = []
    for speaker, gender in VOICES[part]:
        for number in range(3):
            path, source = f"clips/{speaker}-{number}.wav", SOURCES[part]
            entries.append({"path": path, "text": next(said), "speaker": speaker, "gender": gender, "source": source})
    for age in (8, 9, 20, 30):
        speaker = f"speechocean_{part}_{age}"
        entry = {"path": f"clips/{speaker}.wav", "text": next(said), "speaker": speaker, "age": age}
        entries.append({**entry, "gender": "male" if age % 20 else "female", "source": "speechocean762"})
    return [{**entry, "task": "asr", "duration": 0.1} for entry in entries]


def sound_clips(part: str, first: int) -> list[Entry]:
    entries = []
    for number, (label, text) in enumerate(zip(LABELS, CAPTIONS, strict=True)):
        name = str(first + number)
        entries.append({
            "path": f"clips/1-{name}-A.wav", "text": text, "task": "audiocaption", "caption_source": "title",
            "label": label, "src_file": name, "clip_license": "CC-BY" if number % 2 else "CC0", "duration": 0.1,
            "attribution": f"Sound {name} by somebody, http://www.freesound.org/people/somebody/sounds/{name}/",
        })  # fmt: skip
    return entries


def one_voice(speaker: str, part: str, said: Iterator[str]) -> list[Entry]:
    entries = []
    for number in range(2):
        words = next(said)
        path = f"wavs/{speaker}_{part}_{number}.wav"
        entries.append({
            "path": path, "text": f"{words.capitalize()}.", "text_norm": words, "task": "asr", "speaker": speaker,
            "gender": "female", "license": "CC0 1.0", "duration": 0.1,
        })  # fmt: skip
    return entries


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A complete folder of recordings."""
    root, said = tmp_path / "real", sentences()
    for number, part in enumerate(("train", "dev", "test")):
        add(root / "asr_en_many", part, read_speech(part, said))
        add(root / "sound_captions_real", part, sound_clips(part, 100 * number + 100))
    for part in ("train", "test"):
        entries = one_voice("kathleen", part, said)
        phones = [
            {**entry, "words": entry["text_norm"], "text": "HH IY", "task": "phone_recognition"} for entry in entries
        ]
        add(root / "asr_en_kathleen", part, entries)
        add(root / "asr_en_kathleen", f"phone_{part}", phones)
    for name in ("ljspeech", "misc"):
        add(root / f"asr_en_{name}", "test", one_voice(name, "test", said))
    event = {**sound_clips("train", 100)[0], "path": "wavs/1-100-A-0.wav", "text": "The sound of a dog barking"}
    add(root / "sound_events", "train_esc10_ccby", [event])
    (root / "captions_text").mkdir()
    words = [word for text in zip(sentences(), range(60), strict=False) for word in text[0].split()]
    lines = [f"{word} HH IY1 # made\n{word}(2) T UW0\n" for word in dict.fromkeys(words)]
    (root / "captions_text" / "cmudict.dict").write_text("".join(lines), encoding="utf-8")
    return root


@pytest.fixture
def change(recordings: Path) -> Callable[..., None]:
    """Change the first entry of one of the annotation files."""

    def changed(folder: str, part: str, **fields: object) -> None:
        file = recordings / folder / f"annotation_{part}.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        content["annotation"][0] |= fields
        file.write_text(json.dumps(content), encoding="utf-8")

    return changed

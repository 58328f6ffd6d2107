"""What is held out is never trained on: each check fires, names what it found, and nothing is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from data.tiny.corpus import write_corpus
from data.tiny.held_out import HeldOut, letters
from support.command_line import UserError

Change = Callable[..., None]


def refused(recordings: Path, message: str, shipped: Path | None = None) -> None:
    out = recordings.parent / "refused"
    with pytest.raises(UserError, match=message):
        write_corpus(recordings, out, shipped=shipped)
    assert not out.exists()


def held(recordings: Path, folder: str, part: str) -> dict:
    return json.loads((recordings / folder / f"annotation_{part}.json").read_text(encoding="utf-8"))["annotation"][0]


@pytest.mark.parametrize("part", ["dev", "test"])
def test_a_speaker_that_is_held_out(recordings: Path, change: Change, part: str) -> None:
    speaker = held(recordings, "asr_en_many", part)["speaker"]
    change("asr_en_many", "train", speaker=speaker)
    refused(
        recordings, f"libri_1-0.wav has the speaker '{speaker}', which asr_en_many/annotation_{part}.json holds out"
    )


@pytest.mark.parametrize(
    ("folder", "part"),
    [("asr_en_many", "dev"), ("asr_en_many", "test"), ("asr_en_ljspeech", "test"), ("asr_en_kathleen", "test")],
)
def test_a_sentence_that_is_held_out(recordings: Path, change: Change, folder: str, part: str) -> None:
    text = held(recordings, folder, part)["text"].rstrip(".").upper().replace(" ", ", ") + "!"
    change("asr_en_many", "train", text=text)
    refused(recordings, f"libri_1-0.wav has the sentence '{letters(text)}', which {folder}/annotation_")


def test_the_one_voice_is_excepted_but_not_her_sentences(recordings: Path, change: Change, tmp_path: Path) -> None:
    write_corpus(recordings, tmp_path / "out", shipped=None)
    change("asr_en_kathleen", "train", text_norm=held(recordings, "asr_en_kathleen", "test")["text_norm"])
    refused(recordings, "kathleen_.*wav has the sentence .*, which asr_en_kathleen/annotation_")


def test_words_of_phones_are_sentences(recordings: Path, change: Change) -> None:
    change("asr_en_kathleen", "phone_train", words=held(recordings, "asr_en_misc", "test")["text_norm"])
    refused(recordings, "stage2.json: .* has the sentence .*, which asr_en_misc/annotation_test.json holds out")


@pytest.mark.parametrize("part", ["dev", "test"])
def test_a_recording_that_is_held_out(recordings: Path, change: Change, part: str) -> None:
    number = held(recordings, "sound_captions_real", part)["src_file"]
    change("sound_captions_real", "train", src_file=number)
    refused(recordings, f"stage1.json: .* the recording '{number}', which sound_captions_real/annotation_{part}.json")


def test_a_file_that_is_held_out(recordings: Path, change: Change) -> None:
    change("asr_en_many", "train", path=held(recordings, "asr_en_many", "test")["path"])
    refused(recordings, "has the file '.*libri_7-0.wav', which asr_en_many/annotation_test.json holds out")


def test_the_second_clip_of_a_pair_is_checked() -> None:
    held_out = HeldOut()
    held_out.add(
        Path("t/annotation_test.json"), [{"path": "x.wav", "task": "asr", "text": "Good day.", "speaker": "b"}]
    )
    pair = {"path": "a.wav", "expand_wav": ["c.wav"], "speakers": ["a", "c"], "sentences": ["hello", "bye"]}
    held_out.check([pair], "stage2.json")
    for fields, what in (({"speakers": ["a", "b"]}, "speaker 'b'"), ({"sentences": ["hello", "good day"]}, "sentence")):
        with pytest.raises(UserError, match=what):
            held_out.check([pair | fields], "stage2.json")
    with pytest.raises(UserError, match="the file"):
        held_out.check([pair | {"expand_wav": [str(Path("t/x.wav").resolve())]}], "stage2.json")


def test_shipped_clips_are_held_out(recordings: Path, tmp_path: Path) -> None:
    file = tmp_path / "clips" / "annotation.json"
    file.parent.mkdir()
    address = "MABEL by Bobby, http://www.freesound.org/people/Bobby%20Beck/sounds/{}/; cut to 5 s"
    sound = {"path": "dog.opus", "text": "a dog barks", "task": "audiocaption"}
    for entry, message in (
        ({**sound, "attribution": address.format(100)}, "recording '100', which clips/annotation.json"),
        ({"path": "a.wav", "text": "x", "task": "asr", "speaker": "libri_2"}, "speaker 'libri_2', which clips/"),
        (sound, "dog.opus has no transcript, speaker, src_file or Freesound address"),
    ):
        file.write_text(json.dumps({"annotation": [entry]}), encoding="utf-8")
        refused(recordings, message, shipped=file)
    file.write_text(json.dumps({"annotation": [{**sound, "attribution": address.format(999)}]}), encoding="utf-8")
    assert "Checked against 9 held-out" in write_corpus(recordings, tmp_path / "out", shipped=file)


def test_missing_shipped_clips_are_said(recordings: Path, tmp_path: Path) -> None:
    missing = tmp_path / "clips" / "annotation.json"
    assert f"{missing} does not exist" in write_corpus(recordings, tmp_path / "out", shipped=missing)


def test_recordings_without_anything_held_out(recordings: Path, tmp_path: Path) -> None:
    for file in recordings.rglob("annotation_*.json"):
        if not re.search("train", file.name):
            file.unlink()
    refused(recordings, "no folder with an annotation_test.json")


def test_broken_held_out_annotations(recordings: Path) -> None:
    file = recordings / "asr_en_misc" / "annotation_test.json"
    for content in ("{", '{"clips": []}', '["a"]', '{"annotation": [{"task": "asr", "text": "no path"}]}'):
        file.write_text(content, encoding="utf-8")
        refused(recordings, "asr_en_misc/annotation_test.json: expected")

"""Recordings: plain texts, references, licences, and errors that name the clip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data.tiny.corpus import training_files
from data.tiny.recordings import OPEN, plain_words, sounds, speech
from support.command_line import UserError


def test_texts_are_lower_case_words_and_apostrophes() -> None:
    assert plain_words("It\u2019s the well-known \u201cgod\u201d, bless 'em \u2014 really?") == (
        "it's the well known god bless 'em really"
    )
    for text in ("room 7", "", "...", "a & b", "na\u00efve"):
        with pytest.raises(UserError, match="not words alone"):
            plain_words(text)


def test_a_text_that_cannot_be_normalised_names_its_clip(recordings: Path, change: Callable[..., None]) -> None:
    change("asr_en_many", "train", text="in 1465 he died")
    with pytest.raises(UserError, match=r"libri_1-0.wav: the text 'in 1465 he died' is not words alone"):
        speech(recordings, "train")


def test_all_references_of_a_training_clip_are_kept(recordings: Path) -> None:
    texts = {Path(clip["path"]).name: clip["texts"] for clip in sounds(recordings, "train")}
    assert texts["1-100-A.wav"] == ["a poodle barks", "a dog barks", "the sound of a dog barking"]
    assert texts["1-101-A.wav"] == ["a rooster crows"]
    assert not any("texts" in clip for clip in sounds(recordings, "test"))


def test_a_clip_of_sound_events_alone_is_trained_on_too(recordings: Path, change: Callable[..., None]) -> None:
    change("sound_events", "train_esc10_ccby", src_file="900", path="wavs/4-900-A-0.wav")
    (recordings / "sound_events" / "wavs" / "4-900-A-0.wav").write_bytes(b"")
    (alone,) = [clip for clip in sounds(recordings, "train") if clip["src_file"] == "900"]
    assert alone["text"] == "the sound of a dog barking"


@pytest.mark.parametrize("licence", ["CC-BY-NC", "CC-Sampling+", "CC BY-SA 4.0", None])
def test_licences_that_do_not_allow_passing_on(
    recordings: Path, change: Callable[..., None], licence: str | None, tmp_path: Path
) -> None:
    from data.tiny.corpus import write_corpus

    assert licence not in OPEN
    change("sound_captions_real", "train", clip_license=licence)
    with pytest.raises(UserError, match=rf"1-100-A.wav: license is {licence!r}".replace("+", r"\+")):
        write_corpus(recordings, tmp_path / "out", shipped=None)
    assert not (tmp_path / "out").exists()


def test_a_source_without_a_known_licence(recordings: Path, change: Callable[..., None], tmp_path: Path) -> None:
    from data.tiny.corpus import write_corpus

    change("asr_en_many", "train", source="found on the street")
    with pytest.raises(UserError, match=r"libri_1-0.wav: license is None"):
        write_corpus(recordings, tmp_path / "out", shipped=None)


@pytest.mark.parametrize("folder", ["asr_en_many", "asr_en_kathleen", "sound_captions_real", "sound_events"])
def test_a_missing_folder_is_named(recordings: Path, folder: str) -> None:
    (recordings / folder).rename(recordings / "elsewhere")
    with pytest.raises(UserError, match=f"no such file; expected the folder {folder}"):
        training_files(recordings, 0)


def test_a_missing_clip_is_named(recordings: Path) -> None:
    (recordings / "asr_en_many" / "clips" / "libri_2-1.wav").unlink()
    with pytest.raises(UserError, match=r"the clip .*libri_2-1.wav does not exist"):
        speech(recordings, "train")


def test_a_broken_file_is_named(recordings: Path) -> None:
    (recordings / "asr_en_many" / "annotation_train.json").write_text('{"clips": []}', encoding="utf-8")
    with pytest.raises(UserError, match=r"annotation_train.json: expected"):
        speech(recordings, "train")

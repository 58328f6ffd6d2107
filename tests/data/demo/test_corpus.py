"""The demo corpus: same bytes for a seed, splits that never meet, truth that matches the clips."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data import prepare
from data.annotations import load_annotations
from data.demo import corpus as demo
from data.demo.captions import KINDS, captions, draw_events, draw_references, is_test_pair
from data.demo.clips import draw_sound_clip, draw_speech_clip
from data.demo.language import DIGITS, WORDS, draw_sentence, is_test_sentence
from data.demo.sounds import INSTRUMENTS, RATE_HZ, SOUNDS, melody, music
from data.demo.speech import (
    FEMALE_TEST,
    FEMALE_TRAIN,
    MALE_TEST,
    MALE_TRAIN,
    SpeechError,
    Synthesiser,
    Voice,
    invent_speaker,
)

TINY = demo.DemoSizes(
    speech_train=10, sound_train=6, music_train=2, mixed_train=2, speech_valid=2, sound_valid=2, speech_test=4,
    sound_test=6, music_test=1, mixed_test=1, answers=4,
)  # fmt: skip
FILES = ("train_stage1.json", "train_stage2.json", "valid.json", "test_asr.json", "test_aac.json", "test_tasks.json")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    pytest.importorskip("espeakng_loader", reason="the demo corpus needs espeak-ng")
    folder = tmp_path_factory.mktemp("corpus")
    demo.write_corpus(folder, seed=5, sizes=TINY, processes=1)
    return folder


def read(corpus: Path, name: str) -> list[dict]:
    return json.loads((corpus / name).read_text(encoding="utf-8"))["annotation"]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes_whatever_the_processes(corpus, tmp_path):
    demo.write_corpus(tmp_path, seed=5, sizes=TINY, processes=2)
    assert digests(tmp_path) == digests(corpus)


def test_annotation_files_load_and_every_clip_is_there(corpus):
    for name in FILES:
        entries = load_annotations(str(corpus / name), prefix=str(corpus))
        assert entries
        for entry in entries:
            for path in (entry.path, *entry.expand_wav):
                info = soundfile.info(path)
                assert info.frames > 0.3 * info.samplerate


def test_durations_and_references_are_true(corpus):
    for entry in read(corpus, "train_stage1.json"):
        assert entry["duration"] == pytest.approx(soundfile.info(corpus / entry["path"]).duration, abs=2e-3)
    for entry in read(corpus, "test_aac.json"):
        assert len(set(entry["texts"])) == 5
        assert entry["text"] == entry["texts"][0]


def test_splits_of_the_corpus_do_not_meet(corpus):
    train, test = read(corpus, "train_stage2.json"), read(corpus, "test_asr.json")
    assert not {e["text"] for e in train} & {e["text"] for e in test}
    assert not {e["speaker"].split("+")[1] for e in train if "speaker" in e} & {
        e["speaker"].split("+")[1] for e in test
    }
    ids = [e["testset_id"] for name in FILES[3:] for e in read(corpus, name)]
    assert len(ids) == len(set(ids))


def test_stage_two_asks_every_instruction_task(corpus):
    tasks = {entry["task"] for entry in read(corpus, "train_stage2.json")}
    assert tasks >= {"asr", "audiocaption", "gender_recognition", "QA", "music_description", "phone_recognition"}
    assert tasks >= {"speaker_verification", "audio_speech_description", "keywords"}
    for entry in read(corpus, "train_stage2.json"):
        assert ("Q" in entry) == (entry["task"] in ("QA", "gender_QA", "slot_filling"))


def test_the_corpus_is_small_but_not_a_toy():
    assert len(WORDS) >= 250
    assert set(DIGITS) <= set(WORDS)
    assert len(SOUNDS) >= 12
    assert len(INSTRUMENTS) >= 6


@pytest.mark.parametrize("test", [False, True])
def test_sentences_keep_to_their_split_and_vocabulary(test):
    rng = np.random.default_rng(0)
    for _ in range(300):
        text = draw_sentence(rng, test=test).text
        assert 3 <= len(text.split()) <= 10
        assert set(text.split()) <= set(WORDS)
        assert is_test_sentence(text) == test


@pytest.mark.parametrize("test", [False, True])
def test_events_and_voices_keep_to_their_split(test):
    rng = np.random.default_rng(0)
    for number in range(200):
        _, kinds = draw_events(rng, test=test)
        assert len(kinds) == 1 or is_test_pair(*kinds) == test
        speaker = draw_speech_clip((1, number), test=test).voice.speaker
        assert speaker in ((*FEMALE_TEST, *MALE_TEST) if test else (*FEMALE_TRAIN, *MALE_TRAIN))
    assert not {*FEMALE_TRAIN, *MALE_TRAIN} & {*FEMALE_TEST, *MALE_TEST}


def test_a_pair_is_kept_back_in_both_orders():
    assert all(is_test_pair(a, b) == is_test_pair(b, a) for a in KINDS for b in KINDS)


def test_every_kind_of_event_has_training_and_test_pairs():
    for kind in KINDS:
        found = {is_test_pair(kind, other) for other in KINDS if other != kind}
        assert False in found


def test_captions_are_six_different_sentences_and_references_five():
    for relation, kinds in (("single", ("rain",)), ("then", ("dog", "bell")), ("while", ("rain", "siren"))):
        assert len(set(captions(relation, kinds))) == 6
        references = draw_references(np.random.default_rng(1), relation, kinds)
        assert len(set(references)) == 5
        assert references[0] == captions(relation, kinds)[0]
    assert captions("then", ("dog", "bell"))[0] == "a dog barks, then a bell rings"
    assert captions("while", ("rain", "phone"))[0] == "rain falls while a phone rings"


def test_channels_differ():
    channels = [draw_sound_clip((2, number), test=False).channel for number in range(300)]
    assert {c.rate_hz for c in channels} >= {8_000, 16_000, 44_100, 48_000}
    assert {c.stereo for c in channels} == {True, False}
    assert {c.suffix for c in channels} == {".wav", ".flac"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_sound_is_finite_and_about_as_long_as_asked(kind):
    rng = np.random.default_rng(3)
    if kind in INSTRUMENTS:
        waveform = music(rng, 1.5, kind, "rising", "slow")
    else:
        waveform = SOUNDS[kind](rng, 1.5)
    assert np.isfinite(waveform).all()
    assert 0.5 < np.abs(waveform).max() <= 1.5
    assert waveform.size == pytest.approx(1.5 * RATE_HZ, rel=0.2)


def test_melodies_follow_their_contour():
    rng = np.random.default_rng(4)
    pitches = {
        contour: [n[2] for n in melody(rng, 2.0, contour, "fast")] for contour in ("rising", "falling", "repeating")
    }
    assert pitches["rising"] == sorted(pitches["rising"])
    assert pitches["falling"] == sorted(pitches["falling"], reverse=True)
    assert len(set(pitches["repeating"])) == 1


def test_an_unknown_voice_is_an_error():
    pytest.importorskip("espeakng_loader")
    voice = Voice(
        accent="en-nowhere", speaker="f1", gender="female", rate_wpm=150, pitch=50, pitch_range=50, word_gap=0
    )
    with pytest.raises(SpeechError, match=r"en-nowhere\+f1"):
        Synthesiser().say("hello", voice)


def test_without_espeak_the_command_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    monkeypatch.setattr(demo, "write_corpus", lambda *args, **kwargs: Synthesiser())
    assert prepare.main(["demo", "--out", str(tmp_path)]) == 1
    assert "pip install espeakng-loader" in capsys.readouterr().err


def test_every_invented_speaker_says_it_differently() -> None:
    pytest.importorskip("espeakng_loader", reason="speech needs espeak-ng")
    rng = np.random.default_rng(0)
    synthesiser = Synthesiser()
    voice = Voice(accent="en-us", speaker="f1", gender="female", rate_wpm=140, pitch=50, pitch_range=50, word_gap=0)
    invented = [invent_speaker(voice, f"invented{number}", rng) for number in range(3)]
    said = [synthesiser.say("the small dog", speaker) for speaker in invented]
    assert {speaker.gender for speaker in invented} == {None}
    spectra = [np.abs(np.fft.rfft(spoken.waveform, 32_768)) for spoken in said]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert np.corrcoef(spectra[one], spectra[other])[0, 1] < 0.9

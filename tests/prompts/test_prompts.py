"""The prompt files that ship: the same tasks in both, one placeholder an entry, a place for the question where due."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

PROMPTS = Path(__file__).resolve().parents[2] / "prompts"
PLACEHOLDER = "<Speech><SpeechHere></Speech>"
TASKS_WITH_QUESTION = {"QA", "gender_QA", "slot_filling"}
SALMONN_TASKS = {
    *("asr", "asr_zh", "asr_de", "translation_ec", "translation_en2ja", "translation_en2de"),
    *("audiocaption", "audiocaption_v2", "QA", "gender_QA", "gender_recognition", "phone_recognition"),
    *("speech_query", "emotion_recognition", "lyrics_recognition", "audio_speech_description"),
    *("fluent_speech_audio", "speaker_verification", "speech_separation", "audio_story_telling"),
    *("speech_audio_query", "speech_audio_coreasoning", "slot_filling", "music_description", "keywords"),
    "speaker_diarization_asr",
}


def read(name: str) -> dict:
    return json.loads((PROMPTS / name).read_text(encoding="utf-8"))


def test_both_files_hold_every_task() -> None:
    train, test = read("train.json"), read("test.json")
    assert list(train) == list(test)
    assert set(train) == SALMONN_TASKS


@pytest.mark.parametrize("task", sorted(SALMONN_TASKS))
def test_every_prompt_is_usable(task: str) -> None:
    several, one = read("train.json")[task], read("test.json")[task]
    assert 6 <= len(several) <= 10
    assert len(set(several)) == len(several)
    assert isinstance(one, str)
    for prompt in (*several, one):
        assert prompt.count(PLACEHOLDER) == 1
        assert prompt.count("<SpeechHere>") == 1
        assert prompt.count("{}") == (task in TASKS_WITH_QUESTION)
        assert prompt == prompt.strip()
        assert prompt.replace(PLACEHOLDER, "").strip()

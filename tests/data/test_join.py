"""data/join.py: short clips in a row, their texts too."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from configs.parsing import ConfigError
from configs.schema import load_config
from configs.sections import JoinClipsConfig
from data.annotations import Annotation
from data.join import Joiner
from data.parts import Part
from dataset import AudioTextDataset

PROMPTS = {task: ["<Speech><SpeechHere></Speech> ?"] for task in ("asr", "audiocaption")}


@pytest.fixture
def annotations(tmp_path: Path) -> list[Annotation]:
    """Six words by two speakers, each another constant for a tenth of a second; then a caption."""
    found = []
    for number in range(6):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, np.full(1_600, (number + 1) / 10), 16_000, subtype="FLOAT")
        extra = {"speaker": "ab"[number % 2]}
        found.append(Annotation(str(path), str(number), "asr", extra=extra, index=number, texts=(str(number),)))
    soundfile.write(tmp_path / "dog.wav", np.full(1_600, -0.5), 16_000, subtype="FLOAT")
    return [*found, Annotation(str(tmp_path / "dog.wav"), "a dog", "audiocaption", index=6, texts=("a dog",))]


def heard(waveform: torch.Tensor) -> str:
    """Which words a waveform holds, in order."""
    values = torch.unique_consecutive(waveform[waveform != 0].mul(10).round().int()).tolist()
    return " ".join(str(value - 1) for value in values)


def test_what_is_heard_is_what_is_written(annotations: list[Annotation]) -> None:
    join = JoinClipsConfig(p=1, most=3, same="speaker", min_pause_s=0.01, max_pause_s=0.05)
    data = AudioTextDataset(annotations, PROMPTS, training=True, join=join)
    lengths = set()
    for epoch in range(8):
        for index in range(6):
            sample, again = data[epoch, index], data[epoch, index]
            assert torch.equal(sample.waveform, again.waveform) and sample.text == again.text
            words = [int(word) for word in sample.text.split()]
            assert words[0] == index and {word % 2 for word in words} == {index % 2}
            distinct = [words[0]] + [b for a, b in itertools.pairwise(words) if a != b]
            assert heard(sample.waveform) == " ".join(map(str, distinct))
            lengths.add(len(words))
    assert lengths == {2, 3, 4}
    assert data[0, 6].text == "a dog", "captions stay alone"


def test_parts_of_recordings_are_joined(annotations: list[Annotation], tmp_path: Path) -> None:
    words = np.repeat(np.arange(1, 7) / 10, 1_600)
    soundfile.write(tmp_path / "long.wav", words, 16_000, subtype="FLOAT")
    parts = [
        dataclasses.replace(clip, path=str(tmp_path / "long.wav"), part=Part(clip.index / 10, (clip.index + 1) / 10))
        for clip in annotations[:6]
    ]
    join = JoinClipsConfig(p=1, most=3, min_pause_s=0.01, max_pause_s=0.05)
    whole, cut = (AudioTextDataset(clips, PROMPTS, training=True, join=join) for clips in (annotations[:6], parts))
    for index in range(6):
        assert torch.equal(whole[0, index].waveform, cut[0, index].waveform)
        assert whole[0, index].text == cut[0, index].text


def test_none_outside_training_and_none_past_the_longest(annotations: list[Annotation]) -> None:
    join = JoinClipsConfig(p=1, most=5, max_pause_s=0.0)
    assert AudioTextDataset(annotations, PROMPTS, training=False, join=join)[0, 2].text == "2"
    shorter = JoinClipsConfig(p=1, most=5, max_pause_s=0.0, max_s=0.25)
    for data in (
        AudioTextDataset(annotations, PROMPTS, training=True, join=join, max_audio_s=0.25),
        AudioTextDataset(annotations, PROMPTS, training=True, join=shorter, max_audio_s=1.0),
    ):
        for index in range(6):
            sample = data[0, index]
            assert len(sample.text.split()) == 2 and len(sample.waveform) == 3_200


def test_a_clip_that_cannot_be_read_is_left_out_with_its_text(annotations: list[Annotation], tmp_path: Path) -> None:
    for number in (2, 4):
        (tmp_path / f"{number}.wav").write_text("no audio")
    join = JoinClipsConfig(p=1, most=5, same="speaker", max_pause_s=0.0)
    data = AudioTextDataset(annotations, PROMPTS, training=True, join=join)
    for epoch in range(5):
        assert set(data[epoch, 0].text.split()) == {"0"}
    assert data[0, 2].reason


def test_mistakes_are_named(annotations: list[Annotation], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names 'asr_de', which no clip has"):
        Joiner(JoinClipsConfig(tasks=("asr_de",)), annotations)
    with pytest.raises(ValueError, match=r"no field 'room', by which datasets\.join_clips\.same"):
        Joiner(JoinClipsConfig(same="room"), annotations)
    file = tmp_path / "config.yaml"
    for line, message in (("{p: 2}", r"join_clips\.p"), ("{mots: 2}", "mots.*most"), ("{min_pause_s: 1}", "is above")):
        file.write_text(f"datasets:\n  join_clips: {line}\n")
        with pytest.raises(ConfigError, match=message):
            load_config(file)

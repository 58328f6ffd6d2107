"""tools/standins: the Whisper stand-in's training can be resumed, and speakers are drawn at random."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tools.standins import whisper
from tools.standins.clips import PretrainingClip

TINY = whisper.WhisperRecipe(
    width=24,
    layers=2,
    heads=2,
    ffn=32,
    rounds=(
        whisper.Round(clips=4, steps=4, rate=1.0, invented=0.5),
        whisper.Round(clips=4, steps=2, rate=0.5, invented=0.5),
    ),
    batch=2,
    alignment_steps=1,
    save_steps=2,
)


def examples() -> tuple[list[whisper.Example], int]:
    rng = np.random.default_rng(0)
    clips = [
        PretrainingClip(
            log_mel=rng.normal(size=(80, 60 + 10 * number)).astype(np.float16),
            fbank=None,
            words=(("red", 0.0, 0.2), ("dog", 0.2, 0.5)),
            phonemes=(("r", 0.0), ("d", 0.2)),
            events=(),
            gender=None,
            melody=None,
        )
        for number in range(4)
    ]
    table = whisper.phoneme_table(clips)
    return [whisper.example(clip, table) for clip in clips], len(table) + 1


def train(states: list[Path], number: int = 0) -> Iterator[tuple[int, whisper.WordRecogniser]]:
    clips, phonemes = examples()
    return whisper.train(TINY, number, clips, phonemes, lambda **_: None, states)


def test_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    *_, (last, whole) = train([tmp_path / "whole.pt"])
    assert last == TINY.rounds[0].steps
    first = train([tmp_path / "parts.pt"])
    assert next(first)[0] == 2
    first.close()
    resumed = list(train([tmp_path / "parts.pt"]))
    assert [step for step, _ in resumed] == [4]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed[0][1].state_dict()[name]), name


def test_a_round_starts_where_the_one_before_ended(tmp_path: Path) -> None:
    states = [tmp_path / "first.pt", tmp_path / "second.pt"]
    *_, (_, first) = train(states)
    ended = {name: value.clone() for name, value in first.state_dict().items()}
    still = replace(TINY, rounds=(TINY.rounds[0], replace(TINY.rounds[1], rate=0.0)))
    clips, phonemes = examples()
    *_, (last, second) = whisper.train(still, 1, clips, phonemes, lambda **_: None, states)
    assert last == 2
    for name, value in second.state_dict().items():
        assert torch.equal(value, ended[name]), name
    *_, (_, trained) = train([states[0], tmp_path / "third.pt"], 1)
    assert any(not torch.equal(value, ended[name]) for name, value in trained.state_dict().items())


def test_short_attention_is_attention() -> None:
    query, key, value = torch.randn(3, 2, 4, 7, 8)
    mask = torch.arange(7) < torch.tensor([[7], [5]])
    mask = mask[:, None, None]
    found, _ = whisper.short_attention(torch.nn.Identity(), query, key, value, mask, scaling=8**-0.5)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2)
    torch.testing.assert_close(found, expected)

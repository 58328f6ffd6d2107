"""Batches between processes and devices."""

from __future__ import annotations

import pickle

import pytest
import torch

from data.batch import BadClip, Batch
from models.language.text import TextBatch


def a_batch(targets: bool = True) -> Batch:
    ids = [torch.tensor([5, 6]), torch.tensor([7])]
    return Batch(
        waveforms=torch.tensor([[0.1, 0.2], [0.3, 0.0]]),
        lengths=torch.tensor([2, 1]),
        prompts=["What is said? <SpeechHere>", "Describe it. <SpeechHere>"],
        references=["one", "two"],
        ids=[3, 8],
        tasks=["asr", "audiocaption"],
        text_batch=TextBatch(before=ids, after=ids, targets=ids if targets else None),
        bad=(BadClip(4, "4.wav", "is empty"),),
        cut=(False, True),
    )


def assert_same(found: Batch, expected: Batch) -> None:
    assert torch.equal(found.waveforms, expected.waveforms) and torch.equal(found.lengths, expected.lengths)
    for name in ("prompts", "references", "ids", "tasks", "bad", "cut"):
        assert getattr(found, name) == getattr(expected, name)
    for name in ("before", "after", "targets"):
        rows, wanted = getattr(found.text_batch, name), getattr(expected.text_batch, name)
        assert (rows is None) == (wanted is None)
        assert all(torch.equal(row, other) for row, other in zip(rows or (), wanted or (), strict=True))


@pytest.mark.parametrize("targets", [True, False])
def test_a_batch_comes_back_from_another_process_as_it_was(targets: bool) -> None:
    batch = a_batch(targets)
    assert len(batch) == 2
    assert_same(pickle.loads(pickle.dumps(batch)), batch)
    assert_same(batch.to("cpu"), batch)


def test_an_empty_batch_travels_too() -> None:
    empty = Batch(torch.zeros(0, 0), torch.zeros(0, dtype=torch.long), [], [], [], [])
    again = pickle.loads(pickle.dumps(empty))
    assert len(again) == 0 and again.text_batch is None and again.waveforms.shape == (0, 0)


def test_tensors_of_a_batch_move_together() -> None:
    moved = a_batch().to("meta")
    tensors = [moved.waveforms, moved.lengths, *moved.text_batch.before, *moved.text_batch.targets]
    assert {tensor.device.type for tensor in tensors} == {"meta"}

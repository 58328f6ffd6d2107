"""Remarks on clips are listed once a run, with their number and the first of them, from any number of workers."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

import data.remarks
from data.annotations import Annotation
from data.remarks import CHANNELS, LEVEL, Remark, Remarks
from data.sampling import GlobalBatchSampler
from dataset import AudioTextDataset, build_loader
from tests.encoded import TONE, encoded


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.remarks, "_told", set())


def test_each_clip_is_counted_once_and_three_are_named(caplog: pytest.LogCaptureFixture) -> None:
    remarks = Remarks()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            remarks.add(Remark(CHANNELS, f"{index}.wav", "cancels") for index in range(5))
        remarks.add([Remark(LEVEL, "0.wav", "reaches 3")])
        remarks.report()
        remarks.report()
        remarks.add([Remark(LEVEL, "0.wav", "reaches 3"), Remark(LEVEL, "7.wav", "reaches 2")])
        remarks.report()
        Remarks().report()
    channels, level, later = (record.getMessage() for record in caplog.records)
    assert channels.startswith("5 clips with channels") and channels.endswith(
        ": 0.wav: cancels; 1.wav: cancels; 2.wav: cancels; and 2 more"
    )
    assert level.startswith("1 clip with float samples")
    assert level.endswith(": 0.wav: reaches 3") and later.endswith(": 7.wav: reaches 2")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_lists_them_once(tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    annotations = []
    for index in range(8):
        right = -TONE if index % 2 else TONE
        path = tmp_path / f"{index}.wav"
        path.write_bytes(encoded(np.stack([TONE, right], axis=1)))
        annotations.append(Annotation(path=str(path), text="a", task="asr", index=index, extra={}, source="clips.json"))
    clips = AudioTextDataset(annotations, {"asr": "<Speech><SpeechHere></Speech> Write."}, training=True)
    sampler = GlobalBatchSampler(
        clips.durations(), batch_size=2, world_size=1, rank=0, seed=0, shuffle=True, bucket_batches=4, tasks=None,
        task_weights=None,
    )  # fmt: skip
    loader = build_loader(clips, sampler, num_workers=workers)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert all(float(batch.waveforms.square().mean()) > 0.05 for batch in loader)
        list(build_loader(clips, sampler, num_workers=workers))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and said[0].startswith("4 clips with channels whose mean loses more than 6 dB")
    assert said[0].endswith("; and 1 more")


def test_a_pass_that_is_left_lists_what_it_saw(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(3 * TONE, subtype="FLOAT"))
    clip = Annotation(path=str(path), text="a", task="asr", index=0, extra={"duration": 0.5}, source="clips.json")
    clips = AudioTextDataset([clip], {"asr": "<Speech><SpeechHere></Speech> Write."})

    class Batches(list):
        shuffle = False

    with caplog.at_level(logging.WARNING):
        for _ in build_loader(clips, Batches([[(0, 0)], [(0, 0)]])):
            break
    assert [record.getMessage() for record in caplog.records] == [
        "1 clip with float samples beyond full scale, scaled down to it: "
        f"{path}: its float samples reach 1.2; it is scaled down to [-1, 1]"
    ]

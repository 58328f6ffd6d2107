"""The order of clips: a function of seed and epoch, shared by processes, resumed at any sample."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.annotations import Annotation
from data.sampling import GlobalBatchSampler, SampleKey, clip_durations
from tests.annotated_clips import write_clips
from tests.parts import batch_sampler


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> list[Annotation]:
    return write_clips(tmp_path_factory.mktemp("clips"))


def test_durations(annotations: list[Annotation]) -> None:
    stated = dataclasses.replace(annotations[0], extra={"duration": 7.5})
    wrong = dataclasses.replace(annotations[0], extra={"duration": "long"})
    joined = dataclasses.replace(annotations[0], expand_wav=(annotations[1].path, annotations[7].path))
    one, two = 0.1, (1600 + 320 * 7) / 16_000
    found = clip_durations([annotations[0], stated, wrong, joined, annotations[7], annotations[12]])
    assert found == pytest.approx([one, one, one, one + two + 0.2, 0, 0])


DURATIONS = np.random.default_rng(5).uniform(1, 20, 103)


def keys(sampler: GlobalBatchSampler) -> list[list[SampleKey]]:
    return list(sampler)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("bucket_batches", [0, 3, 50])
def test_every_clip_once_an_epoch(shuffle: bool, bucket_batches: int) -> None:
    sampler = batch_sampler(DURATIONS, batch_size=8, shuffle=shuffle, bucket_batches=bucket_batches)
    batches = keys(sampler)
    assert len(batches) == len(sampler) == 13
    assert all(len(batch) == 8 for batch in batches[:12])
    indices = [key.index for batch in batches for key in batch]
    assert len(set(indices)) == len(indices) == 103


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return batch_sampler(DURATIONS, batch_size=8, seed=seed).order(epoch)[:, 0].tolist()

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3) and order(1, 2) != order(2, 2)


@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_the_global_batch(shuffle: bool) -> None:
    def batches(batch_size: int, world_size: int, rank: int) -> list[list[SampleKey]]:
        return keys(
            batch_sampler(DURATIONS, batch_size=batch_size, world_size=world_size, rank=rank, seed=3, shuffle=shuffle)
        )

    alone = batches(8, 1, 0)
    for world_size in (2, 4, 8):
        ranks = [batches(8 // world_size, world_size, rank) for rank in range(world_size)]
        assert {len(rank) for rank in ranks} == {len(alone)}
        for step, whole in enumerate(alone):
            assert sorted(whole) == sorted(key for rank in ranks for key in rank[step])


def test_buckets_hold_like_lengths() -> None:
    def padding(bucket_batches: int) -> float:
        batches = keys(batch_sampler(DURATIONS, batch_size=8, bucket_batches=bucket_batches))[:12]
        lengths = [DURATIONS[[key.index for key in batch]] for batch in batches]
        return sum(batch.max() * len(batch) - batch.sum() for batch in lengths) / sum(b.sum() for b in lengths)

    assert padding(50) < 0.1 < padding(4) < 0.4 < padding(0)


def test_evaluation_starts_with_the_longest() -> None:
    batches = keys(batch_sampler(DURATIONS, batch_size=8, shuffle=False))
    lengths = [DURATIONS[key.index] for batch in batches for key in batch]
    assert lengths == sorted(lengths, reverse=True)
    unsorted = keys(batch_sampler(DURATIONS, batch_size=8, shuffle=False, bucket_batches=0))
    assert [key.index for batch in unsorted for key in batch] == list(range(103))


def test_resume_at_any_sample() -> None:
    straight = batch_sampler(DURATIONS, batch_size=4, world_size=2, rank=1, seed=1)
    expected = []
    for _ in range(3):
        expected += keys(straight)
        straight.consumed += straight.epoch_samples
    for done in (0, 1, 12, 13, 14, 30):
        resumed = batch_sampler(DURATIONS, batch_size=4, world_size=2, rank=1, seed=1)
        resumed.load_state_dict(resumed.advanced(resumed.state_dict(), done))
        assert resumed.epoch == done // 13
        rest = []
        while done + len(rest) < len(expected):
            part = keys(resumed)
            resumed.load_state_dict(resumed.advanced(resumed.state_dict(), len(part)))
            rest += part
        assert rest == expected[done:]


def test_state_of_other_data_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    state = batch_sampler(DURATIONS, batch_size=4).state_dict()
    with pytest.raises(ValueError, match="epochs of 103 samples, but the data now gives 100"):
        batch_sampler(DURATIONS[:100], batch_size=4).load_state_dict(state)
    batch_sampler(DURATIONS, batch_size=8).load_state_dict({**state, "consumed": 103})
    assert not caplog.records
    batch_sampler(DURATIONS, batch_size=8).load_state_dict({**state, "consumed": 104})
    assert "some clips come twice" in caplog.text


def test_task_weights() -> None:
    tasks = ["asr"] * 60 + ["audiocaption"] * 40 + ["QA"] * 3
    weights = {"asr": 0.5, "audiocaption": 2.25, "QA": 0}
    sampler = batch_sampler(DURATIONS, batch_size=8, tasks=tasks, task_weights=weights)
    drawn = [key for batch in sampler for key in batch]
    assert Counter(tasks[key.index] for key in drawn) == {"asr": 30, "audiocaption": 90}
    assert len(set(drawn)) == len(drawn) == sampler.epoch_samples  # repeats are told apart
    assert max(Counter(key.index for key in drawn).values()) == 3
    with pytest.raises(ValueError, match=r"task_weights\.asrr: no clip .* did you mean 'asr'"):
        batch_sampler(DURATIONS, batch_size=8, tasks=tasks, task_weights={"asrr": 1})


def test_no_data() -> None:
    for sampler in (
        batch_sampler([], batch_size=4),
        batch_sampler([1.0], batch_size=4, tasks=["asr"], task_weights={"asr": 0}),
    ):
        assert len(sampler) == 0 and keys(sampler) == [] and sampler.epoch == 0


def test_comparing_some_files_changes_no_right_duration(tmp_path: Path) -> None:
    """The order of clips depends on durations: it must not depend on which headers were read."""
    clips = []
    for number in range(200):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, np.zeros(16_000 + 37 * number, np.float32), 16_000)
        stated = round((16_000 + 37 * number) / 16_000, 2)
        clips.append(Annotation(path=str(path), text="x", task="asr", index=number, extra={"duration": stated}))
    assert clip_durations(clips) == [clip.extra["duration"] for clip in clips]

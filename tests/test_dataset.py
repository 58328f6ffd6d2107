"""dataset.py and its helpers: prompts, order, batches, quarantine, workers."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from data.annotations import Annotation
from data.batch import BadClip
from data.prompts import PromptError, Prompts
from data.quarantine import Quarantine, TooManyBadClips
from data.sampling import GlobalBatchSampler, SampleKey, clip_durations
from dataset import AudioTextDataset, LoaderError, build_loader, collate
from tests.parts import batch_sampler

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine's cores

HERE = "<Speech><SpeechHere></Speech>"
PROMPTS = {
    "asr": [f"{HERE} Write it down.", f"{HERE} What is said?", f"Listen. {HERE}"],
    "audiocaption": [f"{HERE} Describe it.", f"{HERE} What is heard?"],
    "QA": [f"{HERE} Answer: {{}}"],
}
AUGMENTATION = {"gain": {"p": 0.5}, "gaussian_noise": {"p": 0.5}, "time_shift": {"p": 0.5, "max_shift_s": 0.05}}


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> list[Annotation]:
    """23 clips of 0.1 to 0.54 s; two of them cannot be read (7: absent, 12: not audio)."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    found = []
    for index in range(23):
        path = folder / f"{index}.wav"
        samples = rng.uniform(-0.3, 0.3, 1600 + 320 * ((index * 7) % 23)).astype(np.float32)
        if index == 12:
            path.write_text("not a sound" * 10)
        elif index != 7:
            soundfile.write(path, samples, 16_000)
        task = ("asr", "audiocaption", "QA")[index % 3]
        found.append(
            Annotation(
                path=str(path), text=f"text {index}", task=task, Q=f"why {index}?" if task == "QA" else None,
                testset_id=None, expand_wav=(), extra={}, source=f"train.json#{index}", index=index,
                texts=(f"text {index}",),
            )
        )  # fmt: skip
    return found


# -- prompts ---------------------------------------------------------------------------------------------------------


def test_task_without_prompt_names_task_and_file(annotations: list[Annotation]) -> None:
    prompts = Prompts({"asr": PROMPTS["asr"], "QA": PROMPTS["QA"]}, source="prompts/mine.json")
    with pytest.raises(PromptError, match=r"prompts/mine\.json: no prompt for task 'audiocaption'; it has asr, QA"):
        AudioTextDataset(annotations, prompts)


def test_a_question_with_the_placeholder_is_refused(annotations: list[Annotation]) -> None:
    odd = dataclasses.replace(annotations[2], Q="what is <SpeechHere>?")
    with pytest.raises(PromptError, match=r"train\.json#2: 'Q' holds <SpeechHere>"):
        AudioTextDataset([*annotations[:2], odd], PROMPTS)


def test_training_draws_one_of_several_references(annotations: list[Annotation]) -> None:
    several = dataclasses.replace(annotations[1], text="one", texts=("one", "two", "three"))
    clips = [annotations[0], several]
    training = AudioTextDataset(clips, PROMPTS, seed=3, training=True, augment=AUGMENTATION)
    drawn = [training[epoch, 1].text for epoch in range(30)]
    assert set(drawn) == {"one", "two", "three"}
    assert drawn == [
        AudioTextDataset(clips, PROMPTS, seed=3, training=True)[epoch, 1].text for epoch in range(30)
    ]  # whatever else is drawn
    assert {training[epoch, 0].text for epoch in range(9)} == {"text 0"}
    assert {AudioTextDataset(clips, PROMPTS, seed=3)[epoch, 1].text for epoch in range(9)} == {"one"}


def test_question_fills_the_braces(annotations: list[Annotation]) -> None:
    data = AudioTextDataset(annotations, PROMPTS)
    assert data[0, 5].prompt == f"{HERE} Answer: why 5?"
    lacking = dataclasses.replace(annotations[2], Q=None)
    with pytest.raises(PromptError, match=r"train\.json#2: no 'Q', but the prompt of task 'QA'"):
        AudioTextDataset([lacking], PROMPTS)
    braces = dataclasses.replace(annotations[2], Q="{0} {x} {}?")
    assert AudioTextDataset([braces], PROMPTS)[0, 0].prompt == f"{HERE} Answer: {{0}} {{x}} {{}}?"


# -- samples ---------------------------------------------------------------------------------------------------------


def test_samples_are_functions_of_seed_epoch_index(annotations: list[Annotation]) -> None:
    def make(seed: int) -> AudioTextDataset:
        return AudioTextDataset(annotations, PROMPTS, seed=seed, training=True, augment=AUGMENTATION)

    one, two = make(1), make(1)
    two[3, 9], two[0, 4]  # what was drawn before does not matter
    for key in [(0, 0), (4, 1), SampleKey(2, 3, 1)]:
        assert torch.equal(one[key].waveform, two[key].waveform) and one[key].prompt == two[key].prompt
    seen = {(one[epoch, 0].prompt, one[epoch, 0].waveform.sum().item()) for epoch in range(12)}
    assert len({prompt for prompt, _ in seen}) == 3 and len(seen) > 6
    assert [make(1)[e, 0].prompt for e in range(12)] != [make(2)[e, 0].prompt for e in range(12)]
    # a part of the data gives the same samples as the whole
    part = AudioTextDataset(annotations[3:6], PROMPTS, seed=1, training=True, augment=AUGMENTATION)
    assert torch.equal(part[2, 1].waveform, one[2, 4].waveform) and part[2, 1].index == 4


def test_evaluation_neither_draws_nor_augments(annotations: list[Annotation]) -> None:
    data = AudioTextDataset(annotations, PROMPTS, training=False, augment=AUGMENTATION)
    for epoch in range(5):
        assert data[epoch, 0].prompt == PROMPTS["asr"][0]
        assert torch.equal(data[epoch, 0].waveform, data[0, 0].waveform)


def test_bad_clips_are_named(annotations: list[Annotation]) -> None:
    data = AudioTextDataset(annotations, PROMPTS)
    absent, text = data[0, 7], data[0, 12]
    assert absent == BadClip(7, annotations[7].path, absent.reason) and "no such file" in absent.reason
    assert isinstance(text, BadClip) and "not audio" in text.reason
    expanded = dataclasses.replace(annotations[0], expand_wav=(annotations[7].path,))
    bad = AudioTextDataset([expanded], PROMPTS)[0, 0]
    assert bad.path == annotations[0].path and annotations[7].path in bad.reason


def test_cap(annotations: list[Annotation], caplog: pytest.LogCaptureFixture) -> None:
    data = AudioTextDataset(annotations, PROMPTS, training=True, augment=AUGMENTATION, max_audio_s=0.2)
    assert max(data.durations()) == 0.2
    loader = build_loader(data, batch_sampler(data.durations(), batch_size=4, shuffle=False))
    batches = list(loader)
    assert max(batch.lengths.max().item() for batch in batches) == 3200
    longer = sum(duration > 0.2 for duration in clip_durations(annotations))
    assert loader.capped == sum(sum(batch.cut) for batch in batches) == longer
    assert caplog.text.count("longer than datasets.max_audio_s = 0.2 s") == 1


def test_durations(annotations: list[Annotation]) -> None:
    stated = dataclasses.replace(annotations[0], extra={"duration": 7.5})
    wrong = dataclasses.replace(annotations[0], extra={"duration": "long"})
    joined = dataclasses.replace(annotations[0], expand_wav=(annotations[1].path, annotations[7].path))
    one, two = 0.1, (1600 + 320 * 7) / 16_000
    found = clip_durations([annotations[0], stated, wrong, joined, annotations[7], annotations[12]])
    assert found == pytest.approx([one, 7.5, one, one + two + 0.2, 0, 0])


# -- order -----------------------------------------------------------------------------------------------------------

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


# -- batches and the loader ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FakeTextBatch:
    before: list[torch.Tensor]
    targets: list[torch.Tensor] | None


class FakeTextProcessor:
    def batch(self, prompts: list[str], texts: list[str] | None = None) -> FakeTextBatch:
        def ids(strings: list[str]) -> list[torch.Tensor]:
            return [torch.tensor(list(string.encode())) for string in strings]

        return FakeTextBatch(ids(prompts), None if texts is None else ids(texts))


def test_collate(annotations: list[Annotation]) -> None:
    data = AudioTextDataset(annotations, PROMPTS)
    batch = collate([data[0, index] for index in (5, 7, 0)], FakeTextProcessor())
    assert len(batch) == 2 and batch.ids == [5, 0] and batch.tasks == ["QA", "asr"]
    assert batch.references == ["text 5", "text 0"]
    assert [bad.index for bad in batch.bad] == [7]
    assert batch.waveforms.shape == (2, batch.lengths.max())
    for row, index, length in zip(batch.waveforms, (5, 0), batch.lengths, strict=True):
        assert torch.equal(row[:length], data[0, index].waveform) and not row[length:].any()
    assert batch.text_batch.targets[1].tolist() == list(b"text 0")
    assert collate([data[0, 0]], FakeTextProcessor(), with_targets=False).text_batch.targets is None
    assert collate([data[0, 0]]).text_batch is None
    for empty in (collate([data[0, 7]], FakeTextProcessor()), collate([])):
        assert len(empty) == 0 and empty.waveforms.shape == (0, 0) and empty.text_batch is None


def same(one, two) -> bool:
    assert dataclasses.asdict(
        dataclasses.replace(one, waveforms=None, lengths=None, text_batch=None)
    ) == dataclasses.asdict(dataclasses.replace(two, waveforms=None, lengths=None, text_batch=None))
    assert one.text_batch is None or all(
        torch.equal(a, b) for a, b in zip(one.text_batch.targets, two.text_batch.targets, strict=True)
    )
    return torch.equal(one.waveforms, two.waveforms) and torch.equal(one.lengths, two.lengths)


def make_loader(annotations: list[Annotation], num_workers: int):
    data = AudioTextDataset(annotations, PROMPTS, seed=3, training=True, augment=AUGMENTATION)
    sampler = batch_sampler(data.durations(), batch_size=4, seed=3, bucket_batches=2)
    together = functools.partial(collate, text_processor=FakeTextProcessor())
    return build_loader(data, sampler, collate=together, num_workers=num_workers)


def test_any_number_of_workers_gives_the_same_batches(annotations: list[Annotation]) -> None:
    state = torch.random.get_rng_state()
    expected = [batch for loader in [make_loader(annotations, 0)] for _ in range(2) for batch in loader]
    assert len(expected) == 12 and sum(len(batch.bad) for batch in expected) == 4
    for workers in (1, 3):
        loader = make_loader(annotations, workers)
        found = [batch for _ in range(2) for batch in loader]
        assert all(same(a, b) for a, b in zip(expected, found, strict=True))
        assert loader.sampler.epoch == 2
    assert torch.equal(state, torch.random.get_rng_state())  # the model's random numbers are not touched


@pytest.mark.parametrize("workers", [0, 2])
def test_left_passes_go_on_where_they_stopped(annotations: list[Annotation], workers: int) -> None:
    expected = [batch for loader in [make_loader(annotations, 0)] for _ in range(2) for batch in loader]
    loader = make_loader(annotations, workers)
    found = []
    for batch in loader:
        found.append(batch)
        if len(found) == 2:
            break
    assert loader.sampler.state_dict()["consumed"] == 8  # what workers read ahead does not count
    found += list(loader) + list(loader)
    assert all(same(a, b) for a, b in zip(expected, found, strict=True))

    resumed = make_loader(annotations, workers)
    resumed.sampler.load_state_dict(resumed.sampler.advanced(resumed.sampler.state_dict(), 7))
    assert all(same(a, b) for a, b in zip(expected[7:], resumed, strict=True))


def test_without_shuffling_every_pass_is_whole(annotations: list[Annotation]) -> None:
    data = AudioTextDataset(annotations, PROMPTS)
    loader = build_loader(data, batch_sampler(data.durations(), batch_size=4, shuffle=False))
    next(iter(loader))
    for _ in range(2):
        ids = [index for batch in loader for index in batch.ids + [bad.index for bad in batch.bad]]
        assert sorted(ids) == list(range(23))


class DyingDataset(AudioTextDataset):
    def __getitem__(self, key):
        if key[1] == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(key)


class BrokenDataset(AudioTextDataset):
    def __getitem__(self, key):
        raise RuntimeError("a bug of ours")


@pytest.mark.parametrize("kind, error, message", [
    (DyingDataset, LoaderError, r"worker died .* lower run\.num_workers"),
    (BrokenDataset, RuntimeError, "a bug of ours"),
])  # fmt: skip
def test_dead_worker_is_explained(annotations: list[Annotation], kind: type, error: type, message: str) -> None:
    data = kind(annotations, PROMPTS)
    sampler = batch_sampler(data.durations(), batch_size=4)
    with pytest.raises(error, match=message):
        list(build_loader(data, sampler, num_workers=1))


def test_workers_survive_ctrl_c(annotations: list[Annotation]) -> None:
    """The trainer answers SIGINT by finishing its step; its workers, in the same group, must live until then."""
    loader = make_loader(annotations, 1)
    batches = iter(loader)
    next(batches)
    for worker in loader.torch_loader._iterator._workers:
        os.kill(worker.pid, signal.SIGINT)
    assert len(list(batches)) == 5


# -- quarantine ------------------------------------------------------------------------------------------------------


def test_quarantine(tmp_path: Path) -> None:
    path = tmp_path / "run" / "quarantine.jsonl"
    quarantine = Quarantine(path, total=100, max_bad_fraction=0.02)
    bad = [BadClip(index, f"{index}.wav", "is empty; copy it again") for index in range(3)]
    for _ in range(3):
        quarantine.add(bad[0])
        quarantine.add(bad[1])
    assert len(quarantine) == 2
    assert [json.loads(line) for line in path.read_text().splitlines()] == [dataclasses.asdict(b) for b in bad[:2]]
    with pytest.raises(TooManyBadClips, match=r"3 of 100 clips cannot be used.*0\.02 allows") as caught:
        quarantine.add(bad[2])
    assert "2.wav: is empty" in str(caught.value) and str(path) in str(caught.value)
    assert len(path.read_text().splitlines()) == 3


def test_quarantine_goes_on_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    path.write_text('{"index": 0, "path": "0.wav", "reason": "x"}\n{"index": 1, "pa')
    quarantine = Quarantine(path, total=10, max_bad_fraction=1)
    for index in range(2):
        quarantine.add(BadClip(index, f"{index}.wav", "x"))
    lines = path.read_text().splitlines()
    assert len(lines) == 3 and json.loads(lines[2])["index"] == 1
    assert (
        len(Quarantine(path, total=10, max_bad_fraction=1)) == 0
    )  # the file may know clips from beyond the checkpoint
    with pytest.raises(TooManyBadClips, match="2 of 10"):
        goes_on = Quarantine(tmp_path / "elsewhere.jsonl", total=10, max_bad_fraction=0.1)
        goes_on.take_up([BadClip(0, "0.wav", "x")])
        assert len(goes_on) == len((tmp_path / "elsewhere.jsonl").read_text().splitlines()) == 1
        goes_on.add(BadClip(0, "0.wav", "x"))
        goes_on.add(BadClip(1, "1.wav", "x"))
    counting = Quarantine(None, total=1, max_bad_fraction=0.5)
    with pytest.raises(TooManyBadClips):
        counting.add(BadClip(0, "0.wav", "x"))

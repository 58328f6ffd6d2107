"""dataset.py: prompts, samples, batches, workers."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal

import pytest
import torch

from data.annotations import Annotation
from data.batch import BadClip
from data.prompts import PromptError, Prompts
from data.sampling import SampleKey, clip_durations
from dataset import AudioTextDataset, LoaderError, build_loader, collate
from tests.annotated_clips import write_clips
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
    return write_clips(tmp_path_factory.mktemp("clips"))


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
    data = AudioTextDataset(
        annotations, PROMPTS, training=True, augment=AUGMENTATION, max_audio_s=0.2, long_clips="cut"
    )
    assert max(data.durations()) == 0.2
    loader = build_loader(data, batch_sampler(data.durations(), batch_size=4, shuffle=False))
    batches = list(loader)
    assert max(batch.lengths.max().item() for batch in batches) == 3200
    longer = sum(duration > 0.2 for duration in clip_durations(annotations))
    assert loader.capped == sum(sum(batch.cut) for batch in batches) == longer
    assert caplog.text.count("longer than datasets.max_audio_s = 0.2 s") == 1


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

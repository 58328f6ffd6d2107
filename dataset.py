"""Annotation + prompt → `Sample` → `Batch`: the dataset, collation and the loader.

Everything random about a sample (its prompt, its reference, its augmentation) is a pure function of (seed, epoch,
annotation index), so any number of worker processes gives the same batches. Workers decode and resample only; features
are computed on the model's device.
"""

from __future__ import annotations

import copy
import ctypes
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from configs.sections import DatasetsConfig
from data.annotations import Annotation
from data.audio import AudioError, load_clip
from data.augment import Augment
from data.batch import BadClip, Batch, Sample
from data.join import Joiner
from data.prompts import PromptError, Prompts, fill_prompt
from data.remarks import Remark, Remarks
from data.sampling import GlobalBatchSampler, SampleKey, clip_durations
from data.stated import misstated
from support.command_line import UserError
from support.units import SAMPLE_RATE

if TYPE_CHECKING:
    from configs.sections import JoinClipsConfig
    from models.language.text import TextProcessor

log = logging.getLogger(__name__)

QUESTION_TASK = "QA"  # each of its prompts holds a question of its own
SAMPLE_STREAM = 0x5A  # sets a sample's draws apart from those of the epoch's order
REFERENCE_STREAM = 0x3C  # and the choice among its references apart from both
JOIN_STREAM = 0x71  # and the clips that are joined to it from all three
MALLOC_TRIM_THRESHOLD, MALLOC_MMAP_THRESHOLD = -1, -3  # mallopt's names for them, from glibc's malloc.h
MALLOC_KEPT_BYTES = 256 << 20
MALLOC_MMAP_BYTES = 32 << 20
WORKER_DEATH_SIGNS = ("exited unexpectedly", "is killed by signal")


# -- samples ---------------------------------------------------------------------------------------------------------


class AudioTextDataset(Dataset):
    """Clips with a prompt each. A clip that cannot be loaded is a `BadClip`: never an exception, never another clip.

    Args:
        annotations: the clips.
        prompts: by task; with `training` one is drawn for each sample, else the first is used.
        seed: of the choice of prompts and references, and of augmentation.
        training: draw prompts and references, and augment.
        augment: applied with `training` only.
        join: which clips are joined, with `training` only.
        max_audio_s: cut longer clips.
        long_clips: with `training`, `cut` trains on clips that `max_audio_s` cuts; else they are bad clips.
        first_channel: of several channels take the first, not their mean.
        fill_questions: put a clip's question into its prompt; False leaves a prompt's `{}` as it is.

    Raises:
        PromptError: a task has no prompt, or a prompt needs a `Q` that an annotation lacks.
    """

    def __init__(
        self,
        annotations: Sequence[Annotation],
        prompts: Mapping[str, str | Sequence[str]],
        *,
        seed: int = 0,
        training: bool = False,
        augment: Augment | Mapping[str, Any] | None = None,
        join: JoinClipsConfig | None = None,
        max_audio_s: float | None = None,
        long_clips: str = DatasetsConfig.long_clips,
        first_channel: bool = False,
        fill_questions: bool = True,
    ) -> None:
        self.annotations = list(annotations)
        self.first_channel, self.fill_questions = first_channel, fill_questions
        self.joiner = Joiner(join, self.annotations) if join is not None and training else None
        self.prompts = prompts if isinstance(prompts, Prompts) else Prompts(prompts)
        self.seed = seed
        self.training = training
        self.augment = augment if augment is None or isinstance(augment, Augment) else Augment.from_config(augment)
        if training and self.augment is not None:
            for task in sorted(self.augment.tasks - set(self.tasks)):
                raise UserError(
                    f"datasets.augmentation: an entry's tasks name '{task}', which no clip has; the clips' tasks are "
                    f"{', '.join(sorted(set(self.tasks)))}"
                )
        self.max_audio_s = max_audio_s
        self._refuses_cut = training and long_clips != "cut"
        self._durations_s: list[float] | None = None
        # Audio whose end is cut, under its whole text, would teach the model to invent.
        limits = [limit for limit in (max_audio_s, join and join.max_s) if limit is not None]
        self._longest_row_s = min(limits, default=float("inf"))
        for annotation in self.annotations:
            self.prompts_of(annotation)

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def tasks(self) -> list[str]:
        """The task of each clip."""
        return [annotation.task for annotation in self.annotations]

    def durations(self) -> list[float]:
        """The length of each clip in seconds, at most `max_audio_s`, by annotation or header."""
        longest = float("inf") if self.max_audio_s is None else self.max_audio_s
        return [min(duration, longest) for duration in self.whole_durations()]

    def whole_durations(self) -> list[float]:
        """The length of each clip in seconds, before `max_audio_s` cuts it; files are read at the first call."""
        if self._durations_s is None:
            self._durations_s = clip_durations(self.annotations)
        return self._durations_s

    def without(self, positions: Sequence[int]) -> AudioTextDataset:
        """The same data without the clips at some positions."""
        left_out = set(positions)
        kept = [place for place in range(len(self)) if place not in left_out]
        if not kept:
            raise UserError("no clip is left to train on; raise datasets.max_audio_s")
        smaller = copy.copy(self)
        smaller.annotations = [self.annotations[place] for place in kept]
        smaller._durations_s = [self.whole_durations()[place] for place in kept]
        if self.joiner is not None:
            smaller.joiner = Joiner(self.joiner.settings, smaller.annotations)
        return smaller

    def prompts_of(self, annotation: Annotation) -> list[str]:
        """The prompts that a clip may get, with its question."""
        return [self.filled(prompt, annotation) for prompt in self._choices(annotation)]

    def __getitem__(self, key: tuple[int, ...]) -> Sample | BadClip:
        """The clip at a position in an epoch: key is a `SampleKey`, or just (epoch, position)."""
        key = SampleKey(*key)
        annotation = self.annotations[key.index]
        rng = np.random.default_rng([self.seed, key.epoch, annotation.index, key.repeat, SAMPLE_STREAM])
        choices = self._choices(annotation)
        prompt = choices[rng.integers(len(choices))]
        remarks: list[Remark] = []
        try:
            waveform, capped = self._load(annotation, remarks, self.max_audio_s)
        except AudioError as error:
            reason = error.reason if error.clip == annotation.path else str(error)
            return BadClip(index=annotation.index, path=annotation.path, reason=reason)
        if capped and self._refuses_cut:
            reason = (
                f"is longer than datasets.max_audio_s = {self.max_audio_s:g} s, and its text describes the whole clip; "
                "shorten it, or allow it with datasets.long_clips: cut"
            )
            return BadClip(index=annotation.index, path=annotation.path, reason=reason)
        remarks += misstated(annotation, len(waveform) / SAMPLE_RATE, capped=capped)
        text = self._reference(annotation, key)
        if self.joiner is not None:
            waveform, text = self._joined(waveform, text, annotation, key, remarks)
        if self.training and self.augment is not None:
            waveform = self.augment(waveform, rng, annotation.task)
        if self.training and self.max_audio_s is not None:
            waveform = waveform[: round(self.max_audio_s * SAMPLE_RATE)]
        return Sample(
            index=annotation.index,
            annotation=annotation,
            waveform=waveform,
            prompt=self.filled(prompt, annotation),
            text=text,
            capped=capped,
            remarks=tuple(remarks),
        )

    def _load(
        self, annotation: Annotation, remarks: list[Remark], max_audio_s: float | None = None
    ) -> tuple[Tensor, bool]:
        return load_clip(
            annotation.path,
            expand=annotation.expand_wav,
            max_audio_s=max_audio_s,
            first_channel=self.first_channel,
            remarks=remarks,
            part=annotation.part,
        )

    def filled(self, prompt: str, annotation: Annotation) -> str:
        """The prompt with the annotation's question; `PromptError` where it needs one that is not there."""
        return fill_prompt(prompt, annotation, self.prompts.source) if self.fill_questions else prompt

    def _joined(
        self, waveform: Tensor, text: str, annotation: Annotation, key: SampleKey, remarks: list[Remark]
    ) -> tuple[Tensor, str]:
        """The clip and others after it, as `join_clips` says, and their texts."""
        rng = np.random.default_rng([self.seed, key.epoch, annotation.index, key.repeat, JOIN_STREAM])
        waveforms, texts = [waveform], [text]
        for position in self.joiner.draw(annotation, rng):
            further = self.annotations[position]
            try:
                waveforms.append(self._load(further, remarks)[0])
            except AudioError:
                continue  # it is named when it is drawn itself
            texts.append(further.text)
        while len(waveforms) > 1 and self.joiner.longest_s(waveforms) > self._longest_row_s:
            waveforms.pop()
            texts.pop()
        return self.joiner.join(waveforms, rng), " ".join(texts)

    def _reference(self, annotation: Annotation, key: SampleKey) -> str:
        """The target: in training one of the references, another one each epoch, else the first."""
        if not self.training or len(annotation.texts) < 2:
            return annotation.text
        rng = np.random.default_rng([self.seed, key.epoch, annotation.index, key.repeat, REFERENCE_STREAM])
        return annotation.texts[rng.integers(len(annotation.texts))]

    def _choices(self, annotation: Annotation) -> tuple[str, ...]:
        try:
            choices = self.prompts.choices(annotation.task)
        except PromptError as error:
            raise PromptError(f"{annotation.source or annotation.path}: field 'task': {error}") from None
        return choices if self.training else choices[:1]


# -- batches ---------------------------------------------------------------------------------------------------------


def collate(
    samples: Sequence[Sample | BadClip],
    text_processor: TextProcessor | None = None,
    *,
    with_targets: bool = True,
    common_prompt: bool = False,
) -> Batch:
    """Samples to a `Batch`, in order; bad clips go to `batch.bad`.

    Tokenises where `text_processor` is given, the references too unless `with_targets` is off (generation). With
    `common_prompt` a batch of one task, questions apart, has its first sample's prompt in every row.
    """
    good = [sample for sample in samples if isinstance(sample, Sample)]
    lengths = torch.tensor([len(sample.waveform) for sample in good], dtype=torch.long)
    waveforms = _zeros(len(good), int(lengths.max()) if good else 0)
    for row, sample in zip(waveforms, good, strict=True):
        row[: len(sample.waveform)] = sample.waveform
    prompts = [sample.prompt for sample in good]
    tasks = [sample.annotation.task for sample in good]
    if common_prompt and len(set(tasks)) == 1 and QUESTION_TASK not in tasks:
        prompts = prompts[:1] * len(good)
    references = [sample.text for sample in good]
    text_batch = None
    if text_processor is not None and good:
        text_batch = text_processor.batch(prompts, references if with_targets else None)
    return Batch(
        waveforms=waveforms,
        lengths=lengths,
        prompts=prompts,
        references=references,
        ids=[sample.index for sample in good],
        tasks=tasks,
        text_batch=text_batch,
        bad=tuple(sample for sample in samples if isinstance(sample, BadClip)),
        cut=tuple(sample.capped for sample in good),
        remarks=tuple(remark for sample in good for remark in sample.remarks),
    )


def _zeros(rows: int, samples: int) -> Tensor:
    """Zeros `[rows, samples]`; in a worker in shared memory from the start, so that sending them copies nothing."""
    if get_worker_info() is None or rows * samples == 0:
        return torch.zeros(rows, samples)
    storage = torch.UntypedStorage._new_shared(rows * samples * torch.float32.itemsize)  # fresh pages are zero
    return torch.empty(0).set_(storage, 0, (rows, samples))


# -- loader ----------------------------------------------------------------------------------------------------------


class LoaderError(UserError):
    """A worker process of the loader died."""


class BatchLoader:
    """Batches of one pass after another; made by `build_loader`. At a pass's end, remarks on its clips are listed once.

    Each `iter()` gives the rest of the sampler's current epoch. With a shuffling sampler, `sampler.consumed` counts the
    batches that were yielded (not those that workers have read ahead), so a pass that was left continues where it
    stopped, and the next one is the next epoch. Without shuffling every pass is the whole of the data.
    """

    def __init__(self, loader: DataLoader, sampler: GlobalBatchSampler) -> None:
        self.torch_loader = loader
        self.sampler = sampler
        self.remarks = Remarks()
        self.capped = 0
        """Clips of this process that `max_audio_s` has cut so far."""

    def __len__(self) -> int:
        return len(self.sampler)

    @property
    def dataset(self) -> AudioTextDataset:
        return self.torch_loader.dataset

    def __iter__(self) -> Iterator[Batch]:
        try:
            for batch in self.torch_loader:
                if self.sampler.shuffle:
                    self.sampler.consumed = self.sampler.advanced(self.sampler.state_dict())["consumed"]
                self._note_capped(batch)
                self.remarks.add(batch.remarks)
                yield batch
        except RuntimeError as error:
            if not any(sign in str(error) for sign in WORKER_DEATH_SIGNS):
                raise
            raise LoaderError(
                f"a loader worker died ({str(error).splitlines()[0].strip()}). Most often the machine is out of memory "
                "(or of shared memory: enlarge /dev/shm, in docker --shm-size): lower run.num_workers or the batch "
                "size. run.num_workers=0 loads in the main process and shows the error itself."
            ) from error
        finally:
            self.remarks.report()

    def _note_capped(self, batch: Batch) -> None:
        if any(batch.cut) and not self.capped:
            log.warning("clips longer than datasets.max_audio_s = %g s are cut to it", self.dataset.max_audio_s)
        self.capped += sum(batch.cut)


def build_loader(
    dataset: AudioTextDataset,
    sampler: GlobalBatchSampler,
    *,
    collate: Callable[[list[Sample | BadClip]], Batch] = collate,
    num_workers: int = 0,
    pin_memory: bool | None = None,
) -> BatchLoader:
    """A loader whose batches, and their order, do not depend on `num_workers`.

    Args:
        collate: usually `functools.partial(dataset.collate, text_processor=…)`.
        pin_memory: None pins where there is CUDA.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # workers' seeds come from here; the model's generator is left alone
    )
    return BatchLoader(loader, sampler)


def _start_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    _keep_freed_memory()
    # Ctrl-C asks the trainer to save and must not end a worker; nor must a worker inherit the handler of SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _keep_freed_memory() -> None:
    """Tell glibc to keep freed memory: a worker frees and asks for the same few megabytes with each clip.

    Otherwise it goes back to the system each time, and page faults can cost more than decoding.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(MALLOC_TRIM_THRESHOLD, MALLOC_KEPT_BYTES)
        mallopt(MALLOC_MMAP_THRESHOLD, MALLOC_MMAP_BYTES)

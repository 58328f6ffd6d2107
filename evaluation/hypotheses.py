"""Annotations through a model to predictions and scores: the one path of evaluation and of validation in training."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

import metrics
from configs.schema import Config
from data.annotations import Annotation
from data.batch import BadClip, Batch
from data.sampling import clip_durations
from dataset import AudioTextDataset, build_loader, collate
from evaluation.predictions import Prediction, PredictionStore
from evaluation.processes import Processes
from evaluation.scores import TaskScores, flat_scores, score_predictions
from models.decoding.hypothesis import Generation
from models.encoders.frame_cache import FrameCache
from models.frames import Frames
from models.released_rules import rules_of
from models.salmonn import SALMONN, Clips, FrameSource
from support.units import SAMPLE_RATE
from training.content_limits import require_positions
from training.stopping import Interrupted


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Predictions in the order of the annotations, and the scores of each task."""

    predictions: list[Prediction]
    tasks: dict[str, TaskScores]
    resumed: int = 0
    """Predictions that were already on disk."""
    generation_s: float = 0.0
    """Time for the others, until all processes had finished; without scoring."""

    @property
    def scores(self) -> dict[str, float | None]:
        """All figures under `task.metric`, as `asr.wer`."""
        return flat_scores(self.tasks)


def evaluate_annotations(
    model: SALMONN,
    annotations: Sequence[Annotation],
    prompts: Mapping[str, object],
    config: Config,
    *,
    processes: Processes | None = None,
    store: PredictionStore | None = None,
    original_annotations: Sequence[Annotation] | None = None,
    frame_source: FrameSource | None = None,
    scoring: bool = True,
    java: bool = True,
    progress: str | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> EvaluationResult:
    """Generate a hypothesis for each annotation and score them, task by task.

    Every process of the group must call this with the same arguments; all get the same result. Clips of similar length
    are encoded together, and decoded by continuous batching: a finished clip's slot goes to the next one. A clip that
    cannot be read gets an empty hypothesis and its error.

    Args:
        processes: who shares the clips; by default the process group, if there is one.
        store: where predictions are kept as they come, and from where an interrupted run continues.
        original_annotations: those before audio was swapped; the path of the clip whose audio is used is then noted.
        frame_source: encoder outputs for a batch, from a cache; None encodes.
        java: whether METEOR and SPICE may start their Java programs.
        progress: title of a progress bar; None shows none.
        should_stop: asked before each batch is encoded; True in any process ends the run with `Interrupted` in all of
            them, once the clips under way are answered.
    """
    started = time.monotonic()
    processes = processes or Processes.current()
    clips = [dataclasses.replace(annotation, index=position) for position, annotation in enumerate(annotations)]
    found = store.done() if store else {}
    # A store's files change once a process appends: all must have read them first.
    processes.wait()
    pending = [index for index in range(len(clips)) if index not in found]
    dataset = prompts_for(clips, prompts, config)
    batches = _planned_batches(model, dataset, pending, config, processes)
    feed = ClipFeed(_loaded(dataset, batches[processes.rank :: processes.size], config), should_stop)
    keep_special = rules_of(config.model).keep_special_tokens
    describe = PredictionMaker(model, clips, original_annotations or clips, dataset, keep_special_tokens=keep_special)
    found = {index: describe.again(index, prediction) for index, prediction in found.items()}
    options = dataclasses.asdict(config.generate)
    if config.generate.do_sample:
        options["seed"] = config.run.seed
    made: dict[int, Prediction] = {}
    with tqdm(
        total=len(clips), initial=len(found), desc=progress, unit="clip", dynamic_ncols=True,
        disable=progress is None or not processes.is_main,
    ) as bar:  # fmt: skip

        def keep(predictions: list[Prediction]) -> None:
            if store:
                store.append(predictions)
            made.update((prediction.index, prediction) for prediction in predictions)
            bar.update(min(len(predictions) * processes.size, bar.total - bar.n))

        for number, generation in model.generate_each(
            feed, at_once=config.run.batch_size_eval, frame_source=frame_source, **options
        ):
            keep([*map(describe.failed, feed.take_bad()), describe.answered(feed.inputs.pop(number), generation)])
        keep([*map(describe.failed, feed.take_bad())])
    if store:
        store.close()
    stopped = False
    for part, stopped_there in processes.gather((made, feed.stopped)):
        found |= part
        stopped |= stopped_there
    if stopped:
        raise Interrupted
    assert len(found) == len(clips), f"{len(clips) - len(found)} clips without a prediction"
    ordered = [found[index] for index in range(len(clips))]
    generation_s = time.monotonic() - started
    tasks: dict[str, TaskScores] = {}
    if processes.is_main:  # the Java metrics once, not once a process
        tasks = score_predictions(ordered, scoring=scoring, java=java)
    tasks = processes.gather(tasks)[0]
    resumed = len(clips) - len(pending)
    return EvaluationResult(predictions=ordered, tasks=tasks, resumed=resumed, generation_s=generation_s)


def prompts_for(annotations: Sequence[Annotation], prompts: Mapping[str, object], config: Config) -> AudioTextDataset:
    """The clips with their prompts; an error where a task has none."""
    rules = rules_of(config.model)
    return AudioTextDataset(
        list(annotations),
        prompts,
        seed=config.run.seed,
        training=False,
        max_audio_s=config.datasets.max_audio_s,
        first_channel=rules.first_channel,
        fill_questions=rules.fill_questions,
    )


def frames_from_cache(model: SALMONN, config: Config) -> FrameSource | None:
    """Encoder outputs through `datasets.cache_encoder_outputs`; None where it is not set, or cannot be used."""
    cache = FrameCache.where_possible(config.datasets.cache_encoder_outputs, model.encoders)
    if cache is None:
        return None

    def frames(waveforms: Tensor, lengths: Tensor) -> list[Frames]:
        with torch.no_grad():
            return cache.encode(waveforms.to(model.device), lengths.to(model.device))

    return frames


class _FixedBatches(list):
    """Batches of (epoch, position) in a fixed order, for `build_loader`."""

    shuffle = False


def _planned_batches(
    model: SALMONN, dataset: AudioTextDataset, pending: Sequence[int], config: Config, processes: Processes
) -> list[list[int]]:
    """The batches that hold a pending clip; an error where one of these needs more positions than there are."""
    clips = dataset.annotations
    # Where texts depend on the batch, each is that of a run without interruption, with clips that are done already.
    encoded = range(len(clips)) if rules_of(config.model).encoders.depends_on_batch else pending
    seconds = _clip_lengths(clips, encoded, processes)
    longest_s = config.datasets.max_audio_s or float("inf")
    require_positions(
        model,
        [clips[index] for index in pending],
        [min(seconds[index], longest_s) for index in pending],
        dataset.prompts_of,
        training=False,
        new_tokens=config.generate.max_new_tokens,
    )
    undone = set(pending)
    batches = _batches_by_length(encoded, seconds, config.run.batch_size_eval)
    return [batch for batch in batches if not undone.isdisjoint(batch)]


def _clip_lengths(clips: Sequence[Annotation], pending: Sequence[int], processes: Processes) -> dict[int, float]:
    """Seconds of each pending clip; each process reads its part of the headers."""
    mine = pending[processes.rank :: processes.size]
    own = dict(zip(mine, clip_durations([clips[index] for index in mine]), strict=True))
    return {index: length for part in processes.gather(own) for index, length in part.items()}


def _batches_by_length(pending: Sequence[int], seconds: Mapping[int, float], size: int) -> list[list[int]]:
    """Pending clips, longest first: batches of similar lengths, and too little memory is noticed at once."""
    order = sorted(pending, key=lambda index: (-seconds[index], index))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _loaded(dataset: AudioTextDataset, batches: list[list[int]], config: Config) -> Iterator[Batch]:
    fixed = _FixedBatches([(0, index) for index in batch] for batch in batches)
    return iter(build_loader(dataset, fixed, collate=collate, num_workers=min(config.run.num_workers, len(batches))))


@dataclass(frozen=True, kw_only=True)
class _ClipInput:
    """A clip that the model was given."""

    index: int
    prompt: str
    seconds: float
    cut: bool


class ClipFeed:
    """Hands batches to the model as it has room for them, and notes which of its inputs is which clip."""

    def __init__(self, batches: Iterator[Batch], should_stop: Callable[[], bool]) -> None:
        self._batches = batches
        self._should_stop = should_stop
        self._bad: list[BadClip] = []
        self._given = 0
        self.inputs: dict[int, _ClipInput] = {}
        """By position among the clips given to the model."""
        self.stopped = False

    def __iter__(self) -> Iterator[Clips]:
        for batch in self._batches:
            if self._should_stop():
                self.stopped = True
                return
            self._bad += batch.bad
            for row, index in enumerate(batch.ids):
                self.inputs[self._given + row] = _ClipInput(
                    index=index,
                    prompt=batch.prompts[row],
                    seconds=batch.lengths[row].item() / SAMPLE_RATE,
                    cut=batch.cut[row],
                )
            self._given += len(batch)
            if batch.ids:
                yield batch.waveforms, batch.lengths, batch.prompts

    def take_bad(self) -> list[BadClip]:
        """The clips that could not be read since the last call."""
        taken, self._bad = self._bad, []
        return taken


class PredictionMaker:
    """Makes predictions from the model's answers, and from clips that could not be read."""

    def __init__(
        self,
        model: SALMONN,
        clips: Sequence[Annotation],
        original_annotations: Sequence[Annotation],
        dataset: AudioTextDataset,
        *,
        keep_special_tokens: bool,
    ) -> None:
        self._clips = clips
        self._original_annotations = original_annotations
        self._dataset = dataset
        self._special = getattr(model.text.tokenizer, "all_special_tokens", ())
        self._keep_special_tokens = keep_special_tokens

    def answered(self, clip: _ClipInput, generation: Generation) -> Prediction:
        text = generation.text
        return self._prediction(
            clip.index,
            prompt=clip.prompt,
            hypothesis=text if self._keep_special_tokens else metrics.clean_hypothesis(text, self._special),
            seconds=clip.seconds,
            cut=clip.cut,
            tokens=len(generation.tokens),
            stop_reason=generation.stop_reason,
        )

    def again(self, index: int, before: Prediction) -> Prediction:
        """An earlier run's answer, with what the annotations say now."""
        kept = ("prompt", "hypothesis", "seconds", "cut", "tokens", "stop_reason")
        return self._prediction(index, **{name: getattr(before, name) for name in kept})

    def failed(self, bad: BadClip) -> Prediction:
        clip = self._clips[bad.index]
        prompt = self._dataset.filled(self._dataset.prompts.choices(clip.task)[0], clip)
        return self._prediction(bad.index, prompt=prompt, hypothesis="", error=bad.reason)

    def _prediction(self, index: int, **fields: object) -> Prediction:
        clip, own = self._clips[index], self._original_annotations[index]
        return Prediction(
            index=index,
            id=clip.testset_id or str(index),
            path=own.path,
            audio_path=clip.clip if clip.clip != own.clip else None,
            task=clip.task,
            references=clip.texts or ((clip.text,) if clip.text else ()),
            extra=dict(own.extra),
            **fields,
        )

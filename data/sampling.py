"""Which clips form which batch: the same for any number of workers and processes, and resumable at any sample.

The order of an epoch is a pure function of (seed, epoch, global batch size). The whole state is the number of samples
that all processes together have consumed since the start.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data.annotations import Annotation
from data.audio import EXPAND_SILENCE_S
from data.opening import AudioError, header_duration_s, probe_duration_s
from data.remarks import Remarks
from data.stated import misstated, other_rates, spread, stated_s
from support.command_line import UserError

log = logging.getLogger(__name__)

PROBE_THREADS = 8  # headers are read from disk, perhaps over a network: waiting for I/O, not computing
PROBES_WITH_PROGRESS = 2000
ORDER_STREAM = 0xB5  # separates this generator from those of single clips, which also use (seed, epoch)


class SampleKey(NamedTuple):
    """A dataset's key. Everything random about the sample is a function of the seed and this."""

    epoch: int
    index: int
    """Position in the dataset."""
    repeat: int = 0
    """How often the clip was drawn before in this epoch; above 0 only with task weights above 1."""


class GlobalBatchSampler:
    """Yields this process's part of each global batch, as a list of `SampleKey`s, from `consumed` to the epoch's end.

    Step k of all processes together has the clips of step k of one process with `batch_size * world_size`. The last
    global batch of an epoch may be smaller (a process's part of it even empty).

    Args:
        durations: length of each clip, in any unit.
        batch_size: clips per process and step.
        world_size: number of processes.
        rank: this process.
        seed: of the order.
        shuffle: a new order each epoch; else always the longest clips first.
        bucket_batches: this many global batches' worth of shuffled clips are sorted by length, cut into batches, and
            the batches shuffled; 0 sorts nothing (and keeps the dataset's order without `shuffle`).
        tasks: of each clip, for `task_weights`.
        task_weights: how often a task's clips are drawn an epoch: 2 is each clip twice, 0.5 half of them, at random.
    """

    def __init__(
        self,
        durations: Sequence[float],
        *,
        batch_size: int,
        world_size: int,
        rank: int,
        seed: int,
        shuffle: bool,
        bucket_batches: int,
        tasks: Sequence[str] | None,
        task_weights: Mapping[str, float] | None,
    ) -> None:
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        self.durations = np.asarray(durations, dtype=np.float64)
        self.global_batch = batch_size * world_size
        self.world_size, self.rank = world_size, rank
        self.seed, self.shuffle, self.bucket_batches = seed, shuffle, bucket_batches
        self._groups = _task_groups(len(self.durations), tasks, task_weights)
        self.epoch_samples = sum(count for _, count in self._groups)
        self.consumed = 0

    # -- state -------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches in a whole epoch, the same for every process."""
        return -(-self.epoch_samples // self.global_batch)

    @property
    def epoch(self) -> int:
        """The epoch of the next sample."""
        return self.consumed // max(1, self.epoch_samples)

    def state_dict(self) -> dict[str, int]:
        """Global samples consumed, and the sizes that this count refers to."""
        return {"consumed": self.consumed, "epoch_samples": self.epoch_samples, "global_batch": self.global_batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue after the samples that `state` counts.

        Raises:
            UserError: the state comes from a run over another number of clips.
        """
        samples = state.get("epoch_samples", self.epoch_samples)
        if samples != self.epoch_samples:
            raise UserError(
                f"the sampler's state counts epochs of {samples} samples, but the data now gives {self.epoch_samples}; "
                "resume with the same annotations, task weights and batch size"
            )
        before = state.get("global_batch", self.global_batch)
        if before != self.global_batch and state["consumed"] % max(1, self.epoch_samples):
            log.warning(
                "the global batch was %d and is %d: in the rest of this epoch some clips come twice, others not at all",
                before, self.global_batch,
            )  # fmt: skip
        self.consumed = int(state["consumed"])

    def advanced(self, state: Mapping[str, int], batches: int = 1) -> dict[str, int]:
        """The state after `batches` more global batches; this sampler's own state does not change."""
        consumed = state["consumed"]
        for _ in range(batches):
            consumed += min(self.global_batch, self.epoch_samples - consumed % self.epoch_samples)
        return {**self.state_dict(), "consumed": consumed}

    # -- order -------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[list[SampleKey]]:
        """The rest of the current epoch; iterating does not advance `consumed`."""
        if not self.epoch_samples:
            return
        epoch, done = divmod(self.consumed, self.epoch_samples)
        order = self.order(epoch)
        for start in range(done, self.epoch_samples, self.global_batch):
            rows = order[start : start + self.global_batch][self.rank :: self.world_size]
            yield [SampleKey(epoch, int(index), int(repeat)) for index, repeat in rows]

    def order(self, epoch: int) -> np.ndarray:
        """(index, repeat) of every sample of an epoch, `[epoch_samples, 2]`; global batches are consecutive rows."""
        rng = np.random.default_rng([self.seed, epoch, ORDER_STREAM])
        draws = self._draw(rng)
        if not self.shuffle:
            if self.bucket_batches:
                draws = draws[np.argsort(-self.durations[draws[:, 0]], kind="stable")]
            return draws
        draws = rng.permutation(draws)
        full = len(draws) - len(draws) % self.global_batch
        head, tail = draws[:full], draws[full:]  # cut before sorting: any length
        if self.bucket_batches:
            bucket = np.arange(full) // (self.bucket_batches * self.global_batch)
            head = head[np.lexsort((self.durations[head[:, 0]], bucket))]
            batches = head.reshape(-1, self.global_batch, 2)
            head = batches[rng.permutation(len(batches))].reshape(-1, 2)
        return np.concatenate([head, tail])

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        parts = []
        for members, count in self._groups:
            repeats, rest = divmod(count, len(members))
            for repeat in range(repeats):
                parts.append(np.stack([members, np.full_like(members, repeat)], axis=1))
            if rest:
                chosen = np.sort(rng.permutation(members)[:rest])
                parts.append(np.stack([chosen, np.full_like(chosen, repeats)], axis=1))
        return np.concatenate(parts) if parts else np.zeros((0, 2), np.int64)


def _task_groups(
    clips: int, tasks: Sequence[str] | None, weights: Mapping[str, float] | None
) -> list[tuple[np.ndarray, int]]:
    """(positions, draws per epoch) of each task; one group without weights."""
    if not weights:
        return [(np.arange(clips), clips)] if clips else []
    assert tasks is not None and len(tasks) == clips, "task weights need the task of each clip"
    present = sorted(set(tasks))
    for task in weights:
        if task not in present:
            close = difflib.get_close_matches(task, present, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"expected one of {', '.join(present)}"
            raise UserError(f"datasets.task_weights.{task}: no clip of the training annotations has this task; {hint}")
    names = np.asarray(tasks)
    members = [(task, np.flatnonzero(names == task)) for task in present]
    return [(found, round(len(found) * weights.get(task, 1.0))) for task, found in members]


def clip_durations(annotations: Sequence[Annotation], *, threads: int = PROBE_THREADS) -> list[float]:
    """Length of each annotation's audio in seconds, for bucketing.

    A part's length is what its fields say. A whole file's stated `duration` is used where those of some files, evenly
    spread, are right; without one, or if one of these is wrong, the header is read, and the wrong ones are listed.
    Headers are trusted, unless one contradicts its stated duration: whether a file has more is checked when it is
    loaded, since at the start that would read the whole corpus. 0 for a file that cannot be read: its error is
    reported when the clip is loaded.
    """
    remarks = Remarks()
    remarks.add(other_rates(annotations))
    stating = [annotation for annotation in annotations if stated_s(annotation) is not None]
    probed = _compared(spread(stating), threads)
    if any(misstated(annotation, found) for annotation, found in _with_lengths(stating, probed)):
        probed |= _compared([annotation for annotation in stating if annotation.path not in probed], threads)
        for annotation, length in _with_lengths(stating, probed):
            remarks.add(misstated(annotation, length))
    remarks.report()
    unknown = [a for a in annotations if (stated_s(a) is None and (a.part is None or a.part.end_s is None))]
    paths = [a.path for a in unknown] + [path for a in annotations for path in a.expand_wav]
    probed |= _probed([path for path in paths if path not in probed], threads)
    durations = []
    for annotation in annotations:
        stated, found = stated_s(annotation), probed.get(annotation.path)
        # A right one as it is stated: which clips were compared must not change the order of clips.
        keeps_stated = stated is not None and not (found and misstated(annotation, found))
        first = stated if keeps_stated else found or 0.0
        if annotation.part is not None:
            first = annotation.part.length_s(first)
        durations.append(first + sum(EXPAND_SILENCE_S + probed[path] for path in annotation.expand_wav))
    return durations


def _compared(stating: Sequence[Annotation], threads: int) -> dict[str, float]:
    """Path -> length; where a header contradicts the stated duration, that of the sound: the header may be wrong."""
    probed = _probed([annotation.path for annotation in stating], threads)
    doubtful = [annotation.path for annotation, found in _with_lengths(stating, probed) if misstated(annotation, found)]
    return probed | _probed(doubtful, threads, exact=True)


def _with_lengths(annotations: Sequence[Annotation], probed: Mapping[str, float]) -> Iterator[tuple[Annotation, float]]:
    """Those whose file could be read, each with its length."""
    return ((annotation, probed[annotation.path]) for annotation in annotations if probed.get(annotation.path))


def _probed(paths: Sequence[str], threads: int, *, exact: bool = False) -> dict[str, float]:
    """Path -> length by its header, or of the sound that is there; 0 where it cannot be read."""
    paths = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(threads) as pool:
        probes = tqdm(
            pool.map(partial(_probe_or_zero, exact=exact), paths),
            total=len(paths), desc="reading clip lengths", unit="clip", disable=len(paths) < PROBES_WITH_PROGRESS,
        )  # fmt: skip
        return dict(zip(paths, probes, strict=True))


def _probe_or_zero(path: str, *, exact: bool) -> float:
    try:
        return probe_duration_s(path) if exact else header_duration_s(path)
    except AudioError:
        return 0.0

"""Several short clips joined into one, with their texts: longer utterances than those recorded.

A recogniser trained on single words does not recognise sequences of them. In a YAML: `datasets.join_clips: {p: 0.5,
most: 4, tasks: [asr], same: speaker}` (concatenation of utterances, as in Lam et al., "On-the-fly aligned data
augmentation for sequence-to-sequence ASR", 2021, with whole clips).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from configs.sections import JoinClipsConfig
from data.annotations import Annotation
from support.command_line import UserError
from support.units import SAMPLE_RATE


class Joiner:
    """Which clips of a list of annotations are joined: pure functions of a generator.

    Raises:
        ValueError: no clip has one of the tasks, or a clip of them lacks the field `same`.
    """

    def __init__(self, settings: JoinClipsConfig, annotations: Sequence[Annotation]) -> None:
        self.settings = settings
        self._groups: dict[tuple[str, object], list[int]] = defaultdict(list)
        for task in settings.tasks:
            if not any(annotation.task == task for annotation in annotations):
                raise UserError(f"datasets.join_clips.tasks names '{task}', which no clip has")
        for number, annotation in enumerate(annotations):
            if annotation.task in settings.tasks:
                self._groups[self._key(annotation)].append(number)

    def _key(self, annotation: Annotation) -> tuple[str, object]:
        same = self.settings.same
        if same is None:
            return annotation.task, None
        if same not in annotation.extra:
            raise UserError(
                f"{annotation.source or annotation.path}: no field '{same}', by which datasets.join_clips.same "
                "selects the clips to join; add it, or set `same` to null"
            )
        return annotation.task, annotation.extra[same]

    def draw(self, annotation: Annotation, rng: np.random.Generator) -> list[int]:
        """Positions of the clips to append to this one, often none."""
        if annotation.task not in self.settings.tasks or rng.random() >= self.settings.p:
            return []
        group = self._groups[self._key(annotation)]
        return [group[i] for i in rng.integers(len(group), size=int(rng.integers(1, self.settings.most + 1)))]

    def longest_s(self, waveforms: Sequence[Tensor]) -> float:
        """The length of joined waveforms with maximal pauses."""
        return sum(map(len, waveforms)) / SAMPLE_RATE + (len(waveforms) - 1) * self.settings.max_pause_s

    def join(self, waveforms: Sequence[Tensor], rng: np.random.Generator) -> Tensor:
        """Waveforms `[T]` joined, with a pause between each two."""
        row = [waveforms[0]]
        for waveform in waveforms[1:]:
            pause_s = rng.uniform(self.settings.min_pause_s, self.settings.max_pause_s)
            row += [torch.zeros(round(pause_s * SAMPLE_RATE)), waveform]
        return torch.cat(row)

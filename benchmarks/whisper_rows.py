"""Whisper alone, with its own decoder, as a row (evaluation/whisper_alone.py has the decoder)."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks.clip_by_clip import ClipByClip, waveform_of
from benchmarks.rows import Row
from data.annotations import Annotation
from efficiency.gauges import clock
from evaluation.whisper_alone import WhisperAlone
from support.units import dtype_name

CLIPS_AT_ONCE = 8


class OwnDecoder(ClipByClip):
    """Greedy or with beams, in float32, in the windows of 30 s that its feature extractor pads."""

    def __init__(self, row: Row) -> None:
        super().__init__(row.name, row.batch or CLIPS_AT_ONCE)
        assert row.whisper is not None
        self.whisper, self.beams = WhisperAlone.load(row.whisper, device=row.device), row.num_beams
        model = self.whisper.model
        self.about |= {
            "kernel": f"transformers generate, {dtype_name(model.dtype)}",
            "num_beams": row.num_beams,
            "bytes": {"total": sum(parameter.nbytes for parameter in model.parameters())},
        }

    def texts(self, waveforms: list[Tensor]) -> list[str]:
        return self.whisper.texts(waveforms, beams=self.beams)

    def token_times(self, clip: Annotation) -> tuple[float, float | None]:
        waveform, now = waveform_of(clip), clock(self.whisper.model.device)
        ends = _TokenEnds(now)
        start = now()
        self.whisper.texts([waveform], beams=self.beams, stopping_criteria=StoppingCriteriaList([ends]))
        steps = np.diff(ends.times).tolist()
        return ends.times[0] - start, statistics.fmean(steps) if steps else None


class _TokenEnds(StoppingCriteria):
    """Stops nothing, and notes when every token is there."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.times.append(self.now())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

"""Whisper alone, with its own decoder: the same weights through transformers, in the windows of 30 s that its own
feature extractor pads."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    StoppingCriteria,
    StoppingCriteriaList,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from benchmarks.clip_by_clip import ClipByClip, waveform_of
from benchmarks.rows import LeftOut, Row
from data.annotations import Annotation
from efficiency.gauges import clock
from models.hub import cached_folder, load_weights, located
from support.units import SAMPLE_RATE, dtype_name

CLIPS_AT_ONCE = 8
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")


class WhisperAlone(ClipByClip):
    """Greedy or with beams, in float32; an English model is given no language, another one `en`."""

    def __init__(self, row: Row) -> None:
        super().__init__(row.name, row.batch or CLIPS_AT_ONCE)
        assert row.whisper is not None
        name, revision = located(row.whisper)
        self.device = torch.device(row.device)
        self.model = load_weights(
            WhisperForConditionalGeneration.from_pretrained,
            row.whisper,
            None,
            part="whole Whisper, its decoder too",
            dtype=torch.float32,
        )
        self.model.to(self.device).eval()
        folder = cached_folder(row.whisper, None)
        if folder is None or not any((folder / file).is_file() for file in TOKENIZER_FILES):
            # The library would make an empty one, and every text would be empty.
            raise LeftOut(f"{row.whisper} has no tokenizer ({' or '.join(TOKENIZER_FILES)}) for Whisper's own decoder")
        self.tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        self.extractor = WhisperFeatureExtractor.from_pretrained(name, revision=revision)
        self.options: dict[str, Any] = {"num_beams": row.num_beams, "do_sample": False}
        if getattr(self.model.generation_config, "is_multilingual", False):
            self.options |= {"language": "en", "task": "transcribe"}
        self.about |= {
            "kernel": f"transformers generate, {dtype_name(self.model.dtype)}",
            "num_beams": row.num_beams,
            "bytes": {"total": sum(parameter.nbytes for parameter in self.model.parameters())},
        }

    def texts(self, waveforms: list[Tensor]) -> list[str]:
        windows, owners = in_windows(waveforms, self.extractor.n_samples)
        texts = self.tokenizer.batch_decode(self._generate(windows), skip_special_tokens=True)
        return joined(texts, owners, len(waveforms))

    @torch.no_grad()
    def _generate(self, windows: list[np.ndarray], **options: Any) -> Tensor:
        inputs = self.extractor(windows, sampling_rate=SAMPLE_RATE, return_attention_mask=True, return_tensors="pt")
        return self.model.generate(**inputs.to(self.device), **self.options, **options)

    def token_times(self, clip: Annotation) -> tuple[float, float | None]:
        windows, _ = in_windows([waveform_of(clip)], self.extractor.n_samples)
        now = clock(self.device)
        ends = _TokenEnds(now)
        start = now()
        self._generate(windows[:1], stopping_criteria=StoppingCriteriaList([ends]))
        steps = np.diff(ends.times).tolist()
        return ends.times[0] - start, statistics.fmean(steps) if steps else None


class _TokenEnds(StoppingCriteria):
    """Stops nothing, and notes when every token is there."""

    def __init__(self, now: Any) -> None:
        self.now = now
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.times.append(self.now())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def in_windows(waveforms: list[Tensor], samples: int) -> tuple[list[np.ndarray], list[int]]:
    """Pieces of at most so many samples, and which waveform each is of."""
    pieces = [(piece.numpy(), owner) for owner, wave in enumerate(waveforms) for piece in wave.split(samples)]
    windows, owners = zip(*pieces, strict=True)
    return list(windows), list(owners)


def joined(texts: list[str], owners: list[int], count: int) -> list[str]:
    """The texts of each waveform's windows as one."""
    return [" ".join(text.strip() for text, mine in zip(texts, owners, strict=True) if mine == n) for n in range(count)]

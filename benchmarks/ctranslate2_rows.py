"""The same Whisper weights through CTranslate2, which computes them for faster-whisper: the tool that a user who wants
transcripts alone would take. Neither package is needed by anything else here."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.clip_by_clip import ClipByClip, waveform_of
from benchmarks.rows import LeftOut, Row
from data.annotations import Annotation
from efficiency.gauges import clock


class _Timed(ClipByClip):
    """Tokens cannot be timed one by one from outside: a run that ends after one token, and a run of the whole text."""

    def token_times(self, clip: Annotation) -> tuple[float, float | None]:
        samples, now = waveform_of(clip).numpy(), clock(torch.device("cpu"))
        start = now()
        self.tokens(samples, most=1)
        first = now() - start
        start = now()
        count = self.tokens(samples)
        whole = now() - start
        return first, max(0.0, whole - first) / (count - 1) if count > 1 else None

    def tokens(self, samples: np.ndarray, most: int | None = None) -> int:
        """Decode and count the tokens, at most so many."""
        raise NotImplementedError


class FasterWhisper(_Timed):
    """faster-whisper with its defaults but for the beams: clip after clip, as its interface takes them."""

    def __init__(self, row: Row) -> None:
        super().__init__(row.name, 1)
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise LeftOut(f"faster-whisper cannot be imported ({error})") from error
        self.beams = row.num_beams
        threads = torch.get_num_threads()
        self.model = WhisperModel(
            row.whisper, device=row.device, compute_type=row.compute_type, cpu_threads=threads, local_files_only=True
        )
        self.about |= {"kernel": f"faster-whisper, {row.compute_type}", "num_beams": row.num_beams}

    def _segments(self, samples: np.ndarray, **options: Any) -> list[Any]:
        segments, _ = self.model.transcribe(samples, language="en", beam_size=self.beams, **options)
        return list(segments)

    def texts(self, waveforms: list[Tensor]) -> list[str]:
        return [
            " ".join(segment.text.strip() for segment in self._segments(wave.numpy())).strip() for wave in waveforms
        ]

    def tokens(self, samples: np.ndarray, most: int | None = None) -> int:
        options = {"without_timestamps": True, "temperature": 0.0, "max_new_tokens": most}
        return sum(len(segment.tokens) for segment in self._segments(samples, **options))


class PlainCTranslate2(_Timed):
    """CTranslate2's own Whisper, for machines without faster-whisper: the window of 30 s as transformers pads it."""

    def __init__(self, row: Row) -> None:
        from transformers import AutoTokenizer, WhisperFeatureExtractor

        from models.hub import located

        super().__init__(row.name, 1)
        try:
            import ctranslate2
        except ImportError as error:
            raise LeftOut(f"ctranslate2 cannot be imported ({error})") from error
        assert row.features is not None
        name, revision = located(row.features)
        self.view, self.beams = ctranslate2.StorageView, row.num_beams
        self.tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        self.extractor = WhisperFeatureExtractor.from_pretrained(name, revision=revision)
        threads = torch.get_num_threads()
        self.model = ctranslate2.models.Whisper(
            row.whisper, device=row.device, compute_type=row.compute_type, intra_threads=threads
        )
        language = ["<|en|>", "<|transcribe|>"] if self.model.is_multilingual else []
        self.start = ["<|startoftranscript|>", *language, "<|notimestamps|>"]
        self.about |= {"kernel": f"CTranslate2, {row.compute_type}", "num_beams": row.num_beams}

    def texts(self, waveforms: list[Tensor]) -> list[str]:
        windows, owners = in_windows(waveforms, self.extractor.n_samples)
        ids = [self._ids(window) for window in windows]
        return joined(self.tokenizer.batch_decode(ids, skip_special_tokens=True), owners, len(waveforms))

    def _ids(self, window: np.ndarray, most: int | None = None) -> list[int]:
        features = self.extractor(window, return_tensors="np", sampling_rate=self.extractor.sampling_rate)
        options = {} if most is None else {"max_length": len(self.start) + most}
        (result,) = self.model.generate(
            self.view.from_array(features.input_features), [self.start], beam_size=self.beams, **options
        )
        return result.sequences_ids[0]

    def tokens(self, samples: np.ndarray, most: int | None = None) -> int:
        return len(self._ids(samples[: self.extractor.n_samples], most))


def in_windows(waveforms: list[Tensor], samples: int) -> tuple[list[np.ndarray], list[int]]:
    """Pieces of at most so many samples, and which waveform each is of."""
    pieces = [(piece.numpy(), owner) for owner, wave in enumerate(waveforms) for piece in wave.split(samples)]
    windows, owners = zip(*pieces, strict=True)
    return list(windows), list(owners)


def joined(texts: list[str], owners: list[int], count: int) -> list[str]:
    """The texts of each waveform's windows as one."""
    return [" ".join(text.strip() for text, mine in zip(texts, owners, strict=True) if mine == n) for n in range(count)]

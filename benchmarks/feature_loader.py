"""The SALMONN forks' loader, which loader.py compares ours with: a 30 s log-mel spectrogram for every clip."""

from __future__ import annotations

from collections.abc import Sequence

import soundfile
import soxr
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from transformers import WhisperFeatureExtractor

from data.annotations import Annotation
from support.units import SAMPLE_RATE


class FeatureDataset(Dataset):
    """Decode, resample, and compute the padded 30 s log-mel `[M, 3000]` of each clip."""

    def __init__(self, annotations: Sequence[Annotation], mels: int) -> None:
        self.annotations = annotations
        self.extractor = WhisperFeatureExtractor(feature_size=mels)

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        samples, rate_hz = soundfile.read(self.annotations[index].path)
        if samples.ndim == 2:
            samples = samples[:, 0]
        if rate_hz != SAMPLE_RATE:
            samples = soxr.resample(samples, rate_hz, SAMPLE_RATE, quality="HQ")
        features = self.extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"][0]
        return features, torch.from_numpy(samples).float()


def collate_features(samples: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Spectrograms `[B, M, 3000]`, padded waveforms `[B, T]` and their lengths `[B]`."""
    features, waveforms = zip(*samples, strict=True)
    return {
        "spectrogram": torch.stack(features),
        "raw_wav": pad_sequence(waveforms, batch_first=True),
        "lengths": torch.tensor([len(waveform) for waveform in waveforms]),
    }


def feature_loader(annotations: Sequence[Annotation], workers: int, mels: int, *, batch_size: int) -> DataLoader:
    """The loader itself, with a thread a worker."""
    return DataLoader(
        FeatureDataset(annotations, mels),
        batch_size=batch_size,
        shuffle=True,
        collate_fn=collate_features,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=lambda _: torch.set_num_threads(1),
    )

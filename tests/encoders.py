"""Encoders and their input for tests."""

from __future__ import annotations

from pathlib import Path

import torch

from models.encoders.base import AudioEncoder
from models.encoders.beats import BEATs
from models.encoders.ced import CED
from models.encoders.whisper import WhisperEncoder
from models.frames import Frames

ENCODERS = ["whisper clip", "whisper full", "beats", "ced", "ced frequency major"]
RATE = 16_000
LENGTHS = torch.tensor([int(seconds * RATE) for seconds in (0.05, 0.2, 0.31, 0.5, 1.0, 1.37, 2.0, 3.0)])


def noise(rows: int, samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(rows, samples, generator=torch.Generator().manual_seed(seed))


def load_encoder(files: dict[str, Path], name: str) -> AudioEncoder:
    if name == "beats":
        return BEATs.from_checkpoint(files["beats"])
    if name.startswith("ced"):
        return CED.from_checkpoint(files["ced"], num_heads=2, frequency_major="frequency" in name)
    return WhisperEncoder.from_pretrained(files["whisper"], window=name.split()[1])


def clips_for(encoder: AudioEncoder) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight clips, the shortest possible one first, garbage after each one's end."""
    lengths = torch.tensor([encoder.min_samples, 3_000, 5_441, 8_000, 12_345, 16_000, 31_999, 48_000])
    return 0.1 * torch.randn(8, 48_000, generator=torch.Generator().manual_seed(1)), lengths


def equal_frames(first: list[Frames], second: list[Frames]) -> bool:
    return all(
        torch.equal(a.lengths, b.lengths) and torch.equal(a.frames, b.frames)
        for a, b in zip(first, second, strict=True)
    )

"""Encoder outputs at several rates, side by side at the fastest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor

from models.frames import length_mask

if TYPE_CHECKING:
    pass
from models.frames import Frames


def align_streams(streams: Sequence[Frames], rates_hz: Sequence[float]) -> tuple[list[Tensor], LongTensor]:
    """Bring streams to the fastest rate, and the shorter ones to the longest's length with zeros after their end.

    Returns the streams' frames, [B, N, D] each, and lengths [B], for each clip those of its longest stream. Slower
    streams are resampled by the nearest frame in time.
    """
    fastest_hz = max(rates_hz)
    aligned = [_resample(stream, rate_hz, fastest_hz) for stream, rate_hz in zip(streams, rates_hz, strict=True)]
    lengths = torch.stack([stream.lengths for stream in aligned]).amax(dim=0)
    size = max(stream.frames.shape[1] for stream in aligned)
    frames = []
    for stream in aligned:
        outside = ~length_mask(stream.lengths, stream.frames.shape[1])
        values = stream.frames.masked_fill(outside[..., None], 0)
        frames.append(F.pad(values, (0, 0, 0, size - values.shape[1])))
    return frames, lengths


def join_streams(streams: Sequence[Frames], rates_hz: Sequence[float]) -> Frames:
    """Align streams in time and lay them side by side: [B, N, sum of D]."""
    frames, lengths = align_streams(streams, rates_hz)
    return Frames(torch.cat(frames, dim=-1), lengths)


def resampled_length(count: int, rate_hz: float, target_hz: float) -> int:
    """Frames at `target_hz` that last as long, to the nearest; at least one for one."""
    if rate_hz == target_hz or count == 0:
        return count
    return max(1, int(count * target_hz / rate_hz + 0.5))


def _resample(stream: Frames, rate_hz: float, target_hz: float) -> Frames:
    if rate_hz == target_hz:
        return stream
    device = stream.frames.device
    counts = [resampled_length(count, rate_hz, target_hz) for count in stream.lengths.tolist()]
    centres = (torch.arange(max(counts), dtype=torch.float64, device=device) + 0.5) * (rate_hz / target_hz)
    last = (stream.lengths - 1).clamp(min=0)[:, None]
    index = torch.minimum(centres.long()[None], last)  # [B, N]
    frames = stream.frames.gather(1, index[..., None].expand(-1, -1, stream.frames.shape[-1]))
    return Frames(frames, torch.tensor(counts, device=device))

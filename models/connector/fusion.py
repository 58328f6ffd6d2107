"""Several encoders' outputs, brought to one frame rate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor

from models.frames import Frames, length_mask


def align_outputs(outputs: Sequence[Frames], rates_hz: Sequence[float]) -> tuple[list[Tensor], LongTensor]:
    """Bring encoder outputs to the fastest rate, and shorter ones to the longest's length with zeros after their end.

    Returns each encoder's frames, [B, N, D], and lengths [B], for each clip those of its longest output. Slower outputs
    are resampled by the nearest frame in time.
    """
    fastest_hz = max(rates_hz)
    aligned = [_resample(output, rate_hz, fastest_hz) for output, rate_hz in zip(outputs, rates_hz, strict=True)]
    lengths = torch.stack([output.lengths for output in aligned]).amax(dim=0)
    size = max(output.frames.shape[1] for output in aligned)
    frames = []
    for output in aligned:
        outside = ~length_mask(output.lengths, output.frames.shape[1])
        values = output.frames.masked_fill(outside[..., None], 0)
        frames.append(F.pad(values, (0, 0, 0, size - values.shape[1])))
    return frames, lengths


def resampled_length(count: int, rate_hz: float, target_hz: float) -> int:
    """Frames at `target_hz` that last as long, to the nearest; at least one for one."""
    if rate_hz == target_hz or count == 0:
        return count
    return max(1, int(count * target_hz / rate_hz + 0.5))


def _resample(output: Frames, rate_hz: float, target_hz: float) -> Frames:
    if rate_hz == target_hz:
        return output
    device = output.frames.device
    counts = [resampled_length(count, rate_hz, target_hz) for count in output.lengths.tolist()]
    centres = (torch.arange(max(counts), dtype=torch.float64, device=device) + 0.5) * (rate_hz / target_hz)
    last = (output.lengths - 1).clamp(min=0)[:, None]
    index = torch.minimum(centres.long()[None], last)  # [B, N]
    frames = output.frames.gather(1, index[..., None].expand(-1, -1, output.frames.shape[-1]))
    return Frames(frames, torch.tensor(counts, device=device))

"""Samples that come from a file or from a caller: one set of checks for both.

`as_waveform` reads what the Python interface is given, one clip; `as_clips` a batch of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from support.command_line import UserError

MAX_PEAK = 10.0  # float samples somewhat beyond full scale are scaled down; beyond this they were never in [-1, 1]
FULL_SCALE = {torch.int16: 1 << 15, torch.int32: 1 << 31}
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class WaveformError(UserError):
    """Samples that cannot be a clip."""


def problem_with(low: float, high: float) -> str | None:
    """What is wrong with float samples whose extremes these are (NaN where there is one), in one clause."""
    if not math.isfinite(low + high):
        return "samples are NaN or infinite; record or convert it again"
    peak = max(-low, high)
    if peak > MAX_PEAK:
        return f"float samples reach {peak:.4g}; expected [-1, 1]: divide them by full scale (32768?)"
    return None


def as_waveform(value: Any, name: str = "the waveform") -> Tensor:
    """One clip `[T]` or `[1, T]`, a torch tensor or numpy array at 16 kHz → float32 `[T]` in [-1, 1].

    int16 and int32 are divided by their full scale; floats somewhat beyond full scale are scaled down to it.

    Raises:
        WaveformError: another type or shape, no samples, samples that are not finite or not in [-1, 1].
    """
    samples = _as_tensor(value, name)
    if samples.dim() == 2 and samples.shape[0] == 1:
        samples = samples[0]
    if samples.dim() != 1:
        raise WaveformError(f"{name} has shape {list(samples.shape)}; expected [T]{_channels_hint(samples)}.")
    if not len(samples):
        raise WaveformError(f"{name} has no samples; expected at least one at 16 kHz.")
    return _in_range(samples[None], name)[0]


def as_clips(waveforms: Any, lengths: Any) -> tuple[Tensor, Tensor]:
    """A batch `[B, T]` and the samples of each clip, as tensors; checked and scaled as a file is.

    `lengths` may be a tensor, an array, a list, a whole number for a batch of one clip, or None: all are as long as the
    batch. Samples on a GPU are taken as they are: looking at them would wait for the device.

    Raises:
        WaveformError: shapes or types that do not fit, lengths outside the waveforms, samples as in `as_waveform`.
    """
    samples = _as_tensor(waveforms, "waveforms")
    counts = _as_lengths(lengths, samples)
    shapes = f"waveforms {list(samples.shape)} and lengths {list(counts.shape)}"
    if samples.dim() != 2 or counts.shape != samples.shape[:1] or not len(counts):
        raise WaveformError(f"expected waveforms [B, T] and lengths [B] with B of 1 or more; got {shapes}.")
    if counts.device.type == "cpu" and not 1 <= int(counts.min()) <= int(counts.max()) <= samples.shape[1]:
        raise WaveformError(
            f"lengths are {counts.tolist()}; expected samples of each clip, 1 to {samples.shape[1]}: got {shapes}."
        )
    return _in_range(samples, "waveforms"), counts


def _as_tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, np.ndarray):
        try:
            value = torch.from_numpy(np.require(value, value.dtype.newbyteorder("="), ["C", "W"]))
        except TypeError:
            raise WaveformError(f"{name}: numpy array of {value.dtype}; expected float32 in [-1, 1].") from None
    if not isinstance(value, Tensor):
        raise WaveformError(
            f"{name} is a {type(value).__name__}; expected a torch tensor or numpy array of samples at 16 kHz "
            "(data.audio.load_waveform reads a file)."
        )
    if value.layout != torch.strided:
        raise WaveformError(f"{name}: a tensor in the layout {value.layout}; expected a dense one (.to_dense()).")
    if value.dtype not in FLOATS and value.dtype not in FULL_SCALE:
        kind = str(value.dtype).removeprefix("torch.")
        raise WaveformError(
            f"{name} of {kind}; expected float32 in [-1, 1], or int16 or int32 at full scale: divide by the full scale."
        )
    return value


def _as_lengths(lengths: Any, samples: Tensor) -> Tensor:
    if lengths is None:
        return torch.full(samples.shape[:1], samples.shape[-1])
    if isinstance(lengths, int | np.integer) and not isinstance(lengths, bool):
        lengths = [int(lengths)]
    try:
        counts = torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError):
        raise WaveformError(f"lengths are {lengths!r}; expected the number of samples of each clip.") from None
    if counts.is_floating_point() or counts.is_complex() or counts.dtype == torch.bool:
        raise WaveformError(
            f"lengths are {counts.dtype}, {counts.tolist()}; expected whole numbers of samples, not seconds."
        )
    return (counts.reshape(1) if counts.dim() == 0 else counts).long()


def _in_range(samples: Tensor, name: str) -> Tensor:
    """`[B, T]` of any accepted type → float32 in [-1, 1]."""
    if samples.dtype in FULL_SCALE:
        return samples.to(torch.float32) / FULL_SCALE[samples.dtype]
    samples = samples.to(torch.float32)
    if samples.device.type != "cpu" or type(samples) is not Tensor:  # a fake tensor has no values
        return samples
    low, high = map(float, torch.aminmax(samples.detach()))
    if low >= -1.0 and high <= 1.0:
        return samples
    for row, clip in enumerate(samples):
        problem = problem_with(*map(float, torch.aminmax(clip)))
        if problem is not None:
            raise WaveformError(f"{name}{'' if len(samples) == 1 else f', clip {row}'}: {problem}")
    return samples / samples.abs().amax(dim=1, keepdim=True).clamp(min=1.0)


def _channels_hint(samples: Tensor) -> str:
    if samples.dim() == 2 and min(samples.shape) <= 8:
        return ", one channel: average several channels, or choose one"
    return ""

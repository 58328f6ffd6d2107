"""Several channels → one: their mean, or the loudest alone where the mean would cancel it.

A cable with its poles swapped, or a "side" channel, makes the mean of two loud channels quiet or silent, in the whole
recording or from the moment when the cable was changed. There is one decision for the whole clip.
"""

from __future__ import annotations

import math

import numpy as np

INT16_SCALE = np.float32(1 / 32_768)
KEPT_OF_LOUDEST = 0.49**2
"""The mean has at least this part of the loudest channel's energy, or that channel is used alone. Half of the amplitude
(-6.02 dB) is what remains of one channel next to a silent one: nothing is lost there but level. Codecs add some noise.
"""
MOST_CANCELLED = 0.1
"""Of a clip's energy, so much may be in stretches that the mean cancels."""
CONSTANT = 0.25
"""Above this part of the mean's energy, an offset that is not sound hides what cancels, and is left out of account."""
ROW = 4096  # samples whose squares are added at once; short rows use one thread, so sums do not depend on their number


def mix_down(samples: np.ndarray) -> tuple[np.ndarray, str | None]:
    """`[T]` or `[T, channels]`, int16 or float32 → float32 `[T]`, and a clause where the mean was not used."""
    scale = INT16_SCALE if samples.dtype == np.int16 else np.float32(1)
    if samples.ndim == 1:
        return (samples if samples.dtype == np.float32 else np.multiply(samples, scale, dtype=np.float32)), None
    with np.errstate(invalid="ignore", over="ignore"):  # samples that are not finite are refused by the caller
        if samples.dtype == np.int16:  # a cast of all at once is faster than one inside the sum
            samples = samples.astype(np.float32)
        mixed = _mean(samples, scale)
        clause = loudest = None
        if len(mixed):
            loudest, clause = _cancelled(samples, mixed, scale)
        return (mixed, None) if clause is None else (samples[:, loudest] * scale, clause)


def _mean(samples: np.ndarray, scale: np.float32) -> np.ndarray:
    if samples.shape[1] != 2:
        return samples.mean(axis=1, dtype=np.float32) * scale
    mixed = samples[:, 0] + samples[:, 1]  # several times faster than a mean over an axis of two
    mixed *= scale / 2
    return mixed


def _cancelled(samples: np.ndarray, mixed: np.ndarray, scale: np.float32) -> tuple[int | None, str | None]:
    """The loudest channel, and a clause that says so, where their mean cancels it."""
    channels = samples.shape[1]
    kept = energies(mixed) / float(scale) ** 2
    if float(mixed.mean()) ** 2 * len(mixed) > CONSTANT * kept.sum() * float(scale) ** 2:
        samples = samples - samples.mean(axis=0)
        kept = energies(_mean(samples, np.float32(1)))
    there = energies(samples.reshape(-1), ROW * channels)
    # No channel has more than all of them, and the loudest has at least its share.
    lost = float(there[kept < KEPT_OF_LOUDEST / channels * there].sum())
    if kept.sum() >= KEPT_OF_LOUDEST * there.sum() and lost <= MOST_CANCELLED * there.sum():
        return None, None
    of_channels = [energy(np.ascontiguousarray(samples[:, channel])) for channel in range(channels)]
    loudest = int(np.argmax(of_channels))
    if kept.sum() < KEPT_OF_LOUDEST * of_channels[loudest]:
        loss_db = 10 * math.log10(of_channels[loudest] / kept.sum()) if kept.sum() > 0 else math.inf
        what = "is silent" if loss_db > 90 else f"is {loss_db:.0f} dB below channel {loudest + 1}"
    elif lost > MOST_CANCELLED * there.sum():
        what = f"cancels in {lost / there.sum():.0%} of the sound"
    else:
        return None, None
    return loudest, f"the mean of its {channels} channels {what}; channel {loudest + 1} is used alone"


def energy(samples: np.ndarray) -> float:
    """The sum of squares of a contiguous `[T]`."""
    return float(energies(samples).sum())


def energies(samples: np.ndarray, row: int = ROW) -> np.ndarray:
    """The sums of squares of each `row` samples of a contiguous `[T]`, and of the rest."""
    whole = len(samples) // row * row
    rows, rest = samples[:whole].reshape(-1, row), samples[whole:]
    return np.append(np.vecdot(rows, rows), np.vecdot(rest, rest)).astype(np.float64)

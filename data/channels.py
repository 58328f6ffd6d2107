"""Several channels → one: their mean, or the loudest alone where the mean would cancel it.

A cable with its poles swapped, or a "side" channel, makes the mean of two loud channels quiet or silent. There is one
decision for the whole clip.
"""

from __future__ import annotations

import math

import numpy as np

INT16_SCALE = np.float32(1 / 32_768)
KEPT_OF_LOUDEST = 0.49**2
"""The mean has at least this part of the loudest channel's energy, or that channel is used alone. Half of the amplitude
(-6.02 dB) is what remains of one channel next to a silent one: nothing is lost there but level. Codecs add some noise.
"""
ROW = 4096  # samples whose squares are added at once; short rows use one thread, so sums do not depend on their number


def mix_down(samples: np.ndarray) -> tuple[np.ndarray, str | None]:
    """`[T]` or `[T, channels]`, int16 or float32 → float32 `[T]`, and a clause where the mean was not used."""
    scale = INT16_SCALE if samples.dtype == np.int16 else np.float32(1)
    if samples.ndim == 1:
        return (samples if samples.dtype == np.float32 else np.multiply(samples, scale, dtype=np.float32)), None
    with np.errstate(invalid="ignore", over="ignore"):  # samples that are not finite are refused by the caller
        return _mean_or_loudest(samples, scale)


def _mean_or_loudest(samples: np.ndarray, scale: np.float32) -> tuple[np.ndarray, str | None]:
    channels = samples.shape[1]
    if samples.dtype == np.int16:  # a cast of all at once is faster than one inside the sum
        samples = samples.astype(np.float32)
    if channels == 2:  # several times faster than a mean over an axis of two
        mixed = samples[:, 0] + samples[:, 1]
        mixed *= scale / 2
    else:
        mixed = samples.mean(axis=1, dtype=np.float32) * scale
    mixed_energy = energy(mixed) / float(scale) ** 2
    if mixed_energy >= KEPT_OF_LOUDEST * energy(samples.reshape(-1)):  # no channel has more than all of them
        return mixed, None
    energies = [energy(np.ascontiguousarray(samples[:, channel])) for channel in range(channels)]
    loudest = int(np.argmax(energies))
    if not mixed_energy < KEPT_OF_LOUDEST * energies[loudest]:
        return mixed, None
    loss_db = 10 * math.log10(energies[loudest] / mixed_energy) if mixed_energy > 0 else math.inf
    what = "is silent" if loss_db > 90 else f"is {loss_db:.0f} dB below channel {loudest + 1}"
    clause = f"the mean of its {channels} channels {what}; channel {loudest + 1} is used alone"
    return samples[:, loudest] * scale, clause


def energy(samples: np.ndarray) -> float:
    """The sum of squares of a contiguous `[T]`."""
    whole = len(samples) // ROW * ROW
    rows, rest = samples[:whole].reshape(-1, ROW), samples[whole:]
    return float(np.vecdot(rows, rows).sum(dtype=np.float64)) + float(np.vecdot(rest, rest))

"""Sounds and music of the demo corpus, by signal processing.

Every generator takes a random generator, a duration and the sample rate, and returns one event as float64 of about
that length with a peak near 1. Draws differ in pitch, tempo, timbre and level, so no two clips are alike.
"""

from collections.abc import Callable

import numpy as np

RATE_HZ = 32_000
"""Everything is generated at this rate and resampled once, when the clip is written."""


def _times(duration_s: float) -> np.ndarray:
    return np.arange(int(duration_s * RATE_HZ)) / RATE_HZ


def _normal(waveform: np.ndarray) -> np.ndarray:
    return waveform / (np.abs(waveform).max() + 1e-9)


def _noise(rng: np.random.Generator, samples: int, low_hz: float, high_hz: float, tilt: float = 0.0) -> np.ndarray:
    """Noise between two frequencies, falling by `tilt` powers of the frequency."""
    size = -(-samples // 4096) * 4096  # an FFT of any other length may be ten times slower
    spectrum = np.fft.rfft(rng.standard_normal(size))
    hz = np.fft.rfftfreq(size, 1 / RATE_HZ) + 1.0
    shape = (hz / 1000.0) ** -tilt / (1 + (low_hz / hz) ** 6) / (1 + (hz / high_hz) ** 6)
    return _normal(np.fft.irfft(spectrum * shape, size)[:samples])


def _sweep(hz: np.ndarray) -> np.ndarray:
    """The phase of a tone whose frequency in each sample is given."""
    return 2 * np.pi * np.cumsum(hz) / RATE_HZ


def _wander(rng: np.random.Generator, samples: int, per_s: float) -> np.ndarray:
    """A slow random curve in [-1, 1], with about `per_s` turns per second."""
    points = max(3, int(samples / RATE_HZ * per_s) + 2)
    return np.interp(np.linspace(0, points - 1, samples), np.arange(points), rng.uniform(-1, 1, points))


def _envelope(samples: int, attack_s: float, release_s: float) -> np.ndarray:
    t = np.arange(samples) / RATE_HZ
    return np.minimum(1.0, t / attack_s) * np.minimum(1.0, (samples / RATE_HZ - t) / release_s)


def _strikes(
    rng: np.random.Generator, duration_s: float, gap_s: float, jitter: float, strike: Callable[[int], np.ndarray]
) -> np.ndarray:
    """Repeat a short sound about every `gap_s` seconds, starting at 0."""
    out = np.zeros(int(duration_s * RATE_HZ))
    at_s, number = 0.0, 0
    while at_s < duration_s - 0.05:
        sound, start = strike(number), int(at_s * RATE_HZ)
        sound = sound[: out.size - start]
        out[start : start + sound.size] += sound
        at_s += gap_s * (1 + rng.uniform(-jitter, jitter))
        number += 1
    return _normal(out)


def _partials(t: np.ndarray, hz: float, ratios, gains, decays_s) -> np.ndarray:
    return sum(
        g * np.exp(-t / d) * np.sin(2 * np.pi * hz * r * t) for r, g, d in zip(ratios, gains, decays_s, strict=True)
    )


def _buzz(phase: np.ndarray, harmonics: int, slope: float) -> np.ndarray:
    """A harmonic tone over a given phase, partials falling as power `slope`."""
    return sum(np.sin(k * phase) / k**slope for k in range(1, harmonics + 1))


# ---------------------------------------------------------------------------------------------------------- animals


def dog(rng: np.random.Generator, duration_s: float) -> np.ndarray:
    base_hz = rng.uniform(260, 480)

    def bark(_: int) -> np.ndarray:
        t = _times(rng.uniform(0.14, 0.24))
        x = t / t[-1]
        tone = _buzz(_sweep(base_hz * (1 + 0.9 * np.exp(-(((x - 0.3) / 0.25) ** 2)))), 14, 0.8)
        rough = _noise(rng, t.size, 500, 3000)
        return (tone + 1.2 * rough) * np.sin(np.pi * x) ** 0.6 * np.exp(-2 * x)

    return _strikes(rng, duration_s, rng.uniform(0.35, 0.6), 0.25, bark)


def cat(rng: np.random.Generator, duration_s: float) -> np.ndarray:
    base_hz = rng.uniform(480, 700)

    def meow(_: int) -> np.ndarray:
        t = _times(rng.uniform(0.6, 0.9))
        x = t / t[-1]
        phase = _sweep(base_hz * (1 + 0.45 * np.sin(np.pi * x**0.7)) * (1 + 0.01 * np.sin(2 * np.pi * 6 * t)))
        opening = 1 + 7 * np.sin(np.pi * x) ** 2
        tone = sum(np.sin(k * phase) * np.exp(-k / opening) for k in range(1, 13))
        return tone * np.minimum(1, x / 0.1) * (1 - x) ** 0.5

    return _strikes(rng, duration_s, rng.uniform(0.9, 1.2), 0.15, meow)


def bird(rng: np.random.Generator, duration_s: float) -> np.ndarray:
    base_hz = rng.uniform(2600, 4200)

    def chirp(_: int) -> np.ndarray:
        t = _times(rng.uniform(0.06, 0.14))
        x = t / t[-1]
        bend = rng.uniform(-0.35, 0.35)
        return np.sin(_sweep(base_hz * (1 + bend * x + 0.06 * np.sin(2 * np.pi * 28 * t)))) * np.sin(np.pi * x)

    return _strikes(rng, duration_s, rng.uniform(0.14, 0.24), 0.5, chirp)


def frog(rng: np.random.Generator, duration_s: float) -> np.ndarray:
    base_hz, pulses_hz = rng.uniform(500, 900), rng.uniform(32, 50)

    def croak(_: int) -> np.ndarray:
        t = _times(rng.uniform(0.28, 0.42))
        pulses = np.clip(np.sin(2 * np.pi * pulses_hz * t), 0, 1) ** 3
        tone = np.sin(2 * np.pi * base_hz * t) + 0.6 * np.sin(2 * np.pi * base_hz * 2.1 * t)
        return tone * pulses * _envelope(t.size, 0.03, 0.08)

    return _strikes(rng, duration_s, rng.uniform(0.5, 0.75), 0.15, croak)


# ---------------------------------------------------------------------------------------------------------- signals


def siren(rng: np.random.Generator, duration_s: float) -> np.ndarray:
    t = _times(duration_s)
    low, high, rate = rng.uniform(500, 650), rng.uniform(1100, 1500), rng.uniform(0.5, 1.2)
    position = 0.5 - 0.5 * np.cos(2 * np.pi * (rate * t + rng.random()))
    return _normal(_buzz(_sweep(low + (high - low) * position), 5, 1.3) * _envelope(t.size, 0.05, 0.1))


def alarm(rng: np.random.Generator, duration_s: float) -> np.ndarray:
    hz, on_s = rng.uniform(1700, 2600), rng.uniform(0.08, 0.13)

    def beep(_: int) -> np.ndarray:
        t = _times(on_s)
        return np.sign(np.sin(2 * np.pi * hz * t)) * _envelope(t.size, 0.003, 0.003) * 0.7

    return _strikes(rng, duration_s, on_s * 2, 0.0, beep)


def phone(rng: np.random.Generator, duration_s: float) -> np.ndarray:
    low, high = rng.uniform(400, 480), rng.uniform(560, 700)

    def ring(_: int) -> np.ndarray:
        t = _times(0.7)
        flutter = np.where(np.sin(2 * np.pi * 20 * t) > 0, 1.0, 0.25)
        tone = _buzz(2 * np.pi * low * t, 4, 1.0) + _buzz(2 * np.pi * high * t, 4, 1.0)
        return tone * flutter * _envelope(t.size, 0.01, 0.05)

    return _strikes(rng, duration_s, rng.uniform(0.95, 1.15), 0.0, ring)


def bell(rng: np.random.Generator, duration_s: float) -> np.ndarray:
    hz = rng.uniform(380, 800)

    def toll(_: int) -> np.ndarray:
        t = _times(1.6)
        return _partials(t, hz, (0.5, 1, 1.19, 1.5, 2.0, 2.74, 4.1), (0.3, 1, 0.6, 0.4, 0.6, 0.4, 0.2),
                         (1.2, 0.9, 0.7, 0.5, 0.4, 0.3, 0.15))  # fmt: skip

    return _strikes(rng, duration_s, rng.uniform(0.7, 1.0), 0.05, toll)


def whistle(rng: np.random.Generator, duration_s: float) -> np.ndarray:
    t = _times(duration_s)
    hz = rng.uniform(2100, 3000) * (1 + 0.004 * _wander(rng, t.size, 5))
    trill = 1 - 0.6 * (np.sin(2 * np.pi * rng.uniform(24, 36) * t) > 0)
    breath = 0.12 * _noise(rng, t.size, 1800, 6000)
    return _normal((np.sin(_sweep(hz)) * trill + breath) * _envelope(t.size, 0.03, 0.08))


# ---------------------------------------------------------------------------------------------- knocks, steps, clicks


def clock(rng: np.random.Generator, duration_s: float) -> np.ndarray:
    hz = rng.uniform(2200, 3600)

    def tick(number: int) -> np.ndarray:
        t = _times(0.05)
        tone = np.sin(2 * np.pi * hz * (1.0 if number % 2 else 0.8) * t)
        return (tone + 0.5 * rng.standard_normal(t.size)) * np.exp(-t / 0.006)

    return _strikes(rng, duration_s, rng.uniform(0.22, 0.34), 0.0, tick)


def knocking(rng: np.random.Generator, duration_s: float) -> np.ndarray:
    hz = rng.uniform(140, 260)

    def knock(_: int) -> np.ndarray:
        t = _times(0.16)
        body = _partials(t, hz, (1, 2.3, 3.9), (1, 0.6, 0.35), (0.035, 0.02, 0.012))
        return body + 0.4 * _noise(rng, t.size, 300, 2500) * np.exp(-t / 0.008)

    return _strikes(rng, duration_s, rng.uniform(0.18, 0.28), 0.08, knock)


def footsteps(rng: np.random.Generator, duration_s: float) -> np.ndarray:
    def step(number: int) -> np.ndarray:
        t = _times(0.26)
        heel = _noise(rng, t.size, 60, 500, 0.8) * np.exp(-t / 0.03)
        toe = _noise(rng, t.size, 700, 5000, 0.4) * np.exp(-(((t - 0.11) / 0.035) ** 2))
        return heel * (1.0 if number % 2 else 0.8) + 0.45 * toe

    return _strikes(rng, duration_s, rng.uniform(0.5, 0.68), 0.06, step)


def clapping(rng: np.random.Generator, duration_s: float) -> np.ndarray:
    samples = int(duration_s * RATE_HZ)
    clap = _noise(rng, int(0.03 * RATE_HZ), 900, 5500) * np.exp(-_times(0.03) / 0.006)
    out = np.zeros(samples)
    for start in np.sort(rng.integers(0, samples - clap.size, int(duration_s * rng.uniform(28, 45)))):
        out[start : start + clap.size] += clap * rng.uniform(0.3, 1.0)
    return _normal(out)


def typing(rng: np.random.Generator, duration_s: float) -> np.ndarray:
    def key(_: int) -> np.ndarray:
        t = _times(0.05)
        down = _noise(rng, t.size, 1500, 9000) * np.exp(-t / 0.005)
        thump = np.sin(2 * np.pi * rng.uniform(280, 420) * t) * np.exp(-t / 0.01)
        return (down + 0.5 * thump) * rng.uniform(0.5, 1.0)

    return _strikes(rng, duration_s, rng.uniform(0.1, 0.15), 0.7, key)


# ------------------------------------------------------------------------------------------------ weather and engines


def rain(rng: np.random.Generator, duration_s: float) -> np.ndarray:
    samples = int(duration_s * RATE_HZ)
    out = 0.35 * _noise(rng, samples, 800, 12_000)
    drops = rng.integers(0, samples, int(duration_s * rng.uniform(150, 300)))
    clicks = np.zeros(samples)
    clicks[drops] = rng.uniform(-1, 1, drops.size)
    kernel = np.exp(-_times(0.004) / 0.001) * np.sin(2 * np.pi * 4500 * _times(0.004))
    out += 0.5 * np.convolve(clicks, kernel)[:samples]
    return _normal(out * _envelope(samples, 0.1, 0.1))


def water(rng: np.random.Generator, duration_s: float) -> np.ndarray:
    def drop(_: int) -> np.ndarray:
        t = _times(0.12)
        hz = rng.uniform(700, 1300) * (1 + 6 * t)
        return np.sin(_sweep(hz)) * np.exp(-t / 0.025) * rng.uniform(0.6, 1.0)

    return _strikes(rng, duration_s, rng.uniform(0.28, 0.42), 0.35, drop)


def wind(rng: np.random.Generator, duration_s: float) -> np.ndarray:
    samples = int(duration_s * RATE_HZ)
    low, high = _noise(rng, samples, 80, 450, 0.5), _noise(rng, samples, 350, 1100, 0.3)
    gust = 0.6 + 0.4 * _wander(rng, samples, 2.0)
    return _normal((low * gust + 0.7 * high * gust**3) * _envelope(samples, 0.15, 0.15))


def thunder(rng: np.random.Generator, duration_s: float) -> np.ndarray:
    samples = int(duration_s * RATE_HZ)
    t = np.arange(samples) / RATE_HZ
    rumble = _noise(rng, samples, 25, 140, 0.6) * (0.7 + 0.3 * _wander(rng, samples, 9))
    crack = _noise(rng, samples, 150, 3500, 0.7) * np.exp(-t / 0.12)
    return _normal((1.1 * crack + rumble) * np.exp(-t / rng.uniform(0.9, 1.6)) * _envelope(samples, 0.01, 0.1))


def engine(rng: np.random.Generator, duration_s: float) -> np.ndarray:
    samples = int(duration_s * RATE_HZ)
    hz = rng.uniform(38, 75) * (1 + 0.12 * _wander(rng, samples, 1.2))
    phase = _sweep(hz)
    tone = _buzz(phase, 24, 0.55) * (1 + 0.3 * np.sin(phase / 2))
    return _normal((_normal(tone) + 0.25 * _noise(rng, samples, 80, 1500, 0.5)) * _envelope(samples, 0.1, 0.15))


def helicopter(rng: np.random.Generator, duration_s: float) -> np.ndarray:
    samples = int(duration_s * RATE_HZ)
    phase = _sweep(rng.uniform(10, 15) * (1 + 0.02 * _wander(rng, samples, 1)))
    chop = np.clip(np.sin(phase), 0, 1) ** 6
    blades = _noise(rng, samples, 70, 900, 0.5) * (0.12 + chop)
    return _normal((blades + 0.08 * _noise(rng, samples, 1500, 5000)) * _envelope(samples, 0.1, 0.15))


# ------------------------------------------------------------------------------------------------------- instruments

CONTOURS = ("rising", "falling", "repeating")
TEMPOS = ("slow", "fast")
_MAJOR = (0, 2, 4, 5, 7, 9, 11, 12, 14, 16, 17, 19)


def melody(rng: np.random.Generator, duration_s: float, contour: str, tempo: str) -> list[tuple[float, float, float]]:
    """Notes (start and length in seconds, pitch in semitones above the instrument's base) of one contour."""
    length_s = rng.uniform(0.42, 0.55) if tempo == "slow" else rng.uniform(0.16, 0.22)
    count = max(3, int(duration_s / length_s))
    steps = {
        "rising": np.linspace(0, min(count, len(_MAJOR)) - 1, count),
        "falling": np.linspace(min(count, len(_MAJOR)) - 1, 0, count),
        "repeating": np.full(count, int(rng.integers(2, 8))),
    }[contour]
    key = int(rng.integers(0, 5))
    return [(i * length_s, length_s, key + _MAJOR[int(step)]) for i, step in enumerate(steps)]


def _piano(t: np.ndarray, hz: float, rng: np.random.Generator) -> np.ndarray:
    tone = sum(np.sin(2 * np.pi * hz * k * (1 + 0.0004 * k * k) * t) * np.exp(-t * (1.5 + k)) / k for k in range(1, 9))
    return tone * np.minimum(1, t / 0.004)


def _guitar(t: np.ndarray, hz: float, rng: np.random.Generator) -> np.ndarray:
    pluck = 0.23
    tone = sum(
        np.sin(np.pi * k * pluck) * np.sin(2 * np.pi * hz * k * t) * np.exp(-t * 1.1 * k) / k**0.7 for k in range(1, 16)
    )
    return tone + 0.15 * rng.standard_normal(t.size) * np.exp(-t / 0.006)


def _violin(t: np.ndarray, hz: float, rng: np.random.Generator) -> np.ndarray:
    vibrato = hz * (1 + 0.009 * np.sin(2 * np.pi * 5.8 * t + rng.uniform(0, 6)))
    return (_buzz(_sweep(vibrato), 14, 0.9) + 0.06 * rng.standard_normal(t.size)) * _envelope(t.size, 0.07, 0.05)


def _flute(t: np.ndarray, hz: float, rng: np.random.Generator) -> np.ndarray:
    tremolo = 1 + 0.15 * np.sin(2 * np.pi * 5 * t)
    tone = np.sin(2 * np.pi * hz * t) + 0.22 * np.sin(4 * np.pi * hz * t) + 0.05 * np.sin(6 * np.pi * hz * t)
    return (tone * tremolo + 0.08 * _noise(rng, t.size, hz, 4 * hz)) * _envelope(t.size, 0.05, 0.05)


def _organ(t: np.ndarray, hz: float, rng: np.random.Generator) -> np.ndarray:
    pipes = (0.5, 1, 1.5, 2, 3, 4, 6, 8)
    return sum(np.sin(2 * np.pi * hz * p * t) for p in pipes) * _envelope(t.size, 0.015, 0.02)


def _trumpet(t: np.ndarray, hz: float, rng: np.random.Generator) -> np.ndarray:
    bright = 2 + 9 * np.minimum(1, t / 0.08)
    phase = 2 * np.pi * hz * t
    return sum(np.sin(k * phase) * np.exp(-k / bright) for k in range(1, 15)) * _envelope(t.size, 0.03, 0.04)


def _xylophone(t: np.ndarray, hz: float, rng: np.random.Generator) -> np.ndarray:
    return _partials(t, hz * 2, (1, 3, 6.2), (1, 0.5, 0.25), (0.09, 0.03, 0.015))


def _drum(t: np.ndarray, hz: float, rng: np.random.Generator) -> np.ndarray:
    skin = np.sin(_sweep(hz * 0.35 * (1 + 1.2 * np.exp(-t / 0.025)))) * np.exp(-t / 0.09)
    return skin + 0.25 * _noise(rng, t.size, 1000, 8000) * np.exp(-t / 0.03)


INSTRUMENTS: dict[str, tuple[Callable[[np.ndarray, float, np.random.Generator], np.ndarray], float]] = {
    "piano": (_piano, 262.0),
    "guitar": (_guitar, 165.0),
    "violin": (_violin, 392.0),
    "flute": (_flute, 587.0),
    "organ": (_organ, 262.0),
    "trumpet": (_trumpet, 294.0),
    "xylophone": (_xylophone, 440.0),
    "drum": (_drum, 220.0),
}
"""Timbre (times, pitch in Hz, random generator → one note) and the instrument's base pitch in Hz."""


def music(rng: np.random.Generator, duration_s: float, instrument: str, contour: str, tempo: str) -> np.ndarray:
    """A melody on one instrument."""
    timbre, base_hz = INSTRUMENTS[instrument]
    notes = melody(rng, duration_s, contour, tempo)
    out = np.zeros(int((notes[-1][0] + notes[-1][1]) * RATE_HZ) + RATE_HZ // 2)
    for start_s, length_s, semitones in notes:
        note = timbre(_times(length_s * 1.05), base_hz * 2 ** (semitones / 12), rng) * rng.uniform(0.8, 1.0)
        start = int(start_s * RATE_HZ)
        out[start : start + note.size] += note
    return _normal(out[: int(duration_s * RATE_HZ)])


SOUNDS: dict[str, Callable[[np.random.Generator, float], np.ndarray]] = {
    "rain": rain, "wind": wind, "engine": engine, "helicopter": helicopter, "siren": siren, "thunder": thunder,
    "dog": dog, "cat": cat, "bird": bird, "frog": frog, "bell": bell, "clock": clock, "knocking": knocking,
    "footsteps": footsteps, "phone": phone, "water": water, "alarm": alarm, "whistle": whistle, "clapping": clapping,
    "typing": typing,
}  # fmt: skip
"""Kind of sound → generator. The continuous ones come first."""

CONTINUOUS = ("rain", "wind", "engine", "helicopter", "siren")
"""Kinds that can be in the background of another event."""

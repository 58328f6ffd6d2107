"""One clip of the demo corpus: its content, its recording channel, and how it is rendered."""

from dataclasses import dataclass

import numpy as np
import soxr

from data.demo.captions import draw_events
from data.demo.language import Sentence, draw_sentence
from data.demo.sounds import CONTOURS, INSTRUMENTS, RATE_HZ, SOUNDS, TEMPOS, music
from data.demo.speech import Synthesiser, Voice, draw_voice

_RATES_HZ = (8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_RATE_WEIGHTS = (0.05, 0.49, 0.18, 0.10, 0.06, 0.08, 0.04)
PAUSE_S = (0.1, 0.35)


@dataclass(frozen=True, kw_only=True)
class Channel:
    """How a clip was 'recorded' and stored."""

    rate_hz: int
    stereo: bool
    gain_db: float
    noise_snr_db: float | None
    reverb_s: float | None
    suffix: str
    """`.wav` or `.flac`"""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One sound or one melody."""

    kind: str
    duration_s: float
    contour: str = "rising"
    tempo: str = "slow"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Speech, sounds, or speech over one sound; all that is needed to render it."""

    seed: tuple[int, ...]
    channel: Channel
    sentence: Sentence | None = None
    voice: Voice | None = None
    relation: str = "single"
    events: tuple[Event, ...] = ()


@dataclass(frozen=True)
class Rendered:
    """Samples and where in them every sound happens."""

    waveform: np.ndarray  # [channels, T] float32 at channel.rate_hz
    events: tuple[tuple[str, float, float], ...]  # kind, start and end in seconds


def draw_channel(rng: np.random.Generator) -> Channel:
    """A random recording channel: rate, stereo, level, noise, room, file format."""
    return Channel(
        rate_hz=int(rng.choice(_RATES_HZ, p=_RATE_WEIGHTS)),
        stereo=bool(rng.random() < 0.15),
        gain_db=float(rng.uniform(-14, 0)),
        noise_snr_db=float(rng.uniform(22, 40)) if rng.random() < 0.3 else None,
        reverb_s=float(rng.uniform(0.05, 0.2)) if rng.random() < 0.1 else None,
        suffix=".flac" if rng.random() < 0.4 else ".wav",
    )


def draw_speech_clip(seed: tuple[int, ...], *, test: bool, command: bool | None = None) -> Clip:
    """A random sentence by a random voice, both of one split; a function of `seed`."""
    rng = np.random.default_rng(seed)
    return Clip(
        seed=seed,
        channel=draw_channel(rng),
        sentence=draw_sentence(rng, test=test, command=command),
        voice=draw_voice(rng, test=test),
    )


def draw_sound_clip(
    seed: tuple[int, ...], *, test: bool, single: float = 0.3, kinds: tuple[str, ...] | None = None
) -> Clip:
    """One or two events. `kinds` restricts to one-event clips of these kinds."""
    rng = np.random.default_rng(seed)
    channel = draw_channel(rng)
    if kinds is not None:
        relation, chosen = "single", (kinds[int(rng.integers(len(kinds)))],)
    else:
        relation, chosen = draw_events(rng, test=test, single=single)
    low_s, high_s = {"single": (1.4, 3.2), "then": (1.0, 2.0), "while": (2.2, 3.8)}[relation]
    events = [draw_event(rng, kind, float(rng.uniform(low_s, high_s))) for kind in chosen]
    if relation == "while":
        events[1] = draw_event(rng, chosen[1], float(rng.uniform(0.5, 0.85)) * events[0].duration_s)
    return Clip(seed=seed, channel=channel, relation=relation, events=tuple(events))


def draw_event(rng: np.random.Generator, kind: str, duration_s: float) -> Event:
    """An event of one kind, with a melody for instruments."""
    contour, tempo = CONTOURS[int(rng.integers(len(CONTOURS)))], TEMPOS[int(rng.integers(len(TEMPOS)))]
    return Event(kind=kind, duration_s=duration_s, contour=contour, tempo=tempo)


def render(clip: Clip, synthesiser: Synthesiser) -> Rendered:
    """Make the samples; the same clip gives the same samples (speech: after the same calls to espeak-ng)."""
    rng = np.random.default_rng((*clip.seed, 1))
    spans: list[tuple[str, float, float]] = []
    if clip.sentence is not None:
        spoken = synthesiser.say(clip.sentence.text, clip.voice)
        mono, rate_hz = spoken.waveform.astype(np.float64), spoken.rate_hz
        mono /= np.abs(mono).max() + 1e-9
        if clip.events:
            duration_s = mono.size / rate_hz
            behind = _event(rng, clip.events[0], duration_s)
            behind = soxr.resample(behind, RATE_HZ, rate_hz)[: mono.size]
            mono[: behind.size] += behind * 10 ** (rng.uniform(-16, -9) / 20)
            spans.append((clip.events[0].kind, 0.0, duration_s))
    else:
        mono, rate_hz = _sounds(rng, clip, spans), RATE_HZ
    mono = _through(rng, mono, rate_hz, clip.channel)
    if rate_hz != clip.channel.rate_hz:
        mono = soxr.resample(mono, rate_hz, clip.channel.rate_hz)
    waveform = mono[None].astype(np.float32)
    if clip.channel.stereo:
        balance = rng.uniform(0.35, 0.65)
        waveform = np.concatenate([waveform * 2 * balance, waveform * 2 * (1 - balance)])
    return Rendered(np.clip(waveform, -1, 1), tuple(spans))


def _event(rng: np.random.Generator, event: Event, duration_s: float) -> np.ndarray:
    if event.kind in INSTRUMENTS:
        return music(rng, duration_s, event.kind, event.contour, event.tempo)
    return SOUNDS[event.kind](rng, duration_s)


def _sounds(rng: np.random.Generator, clip: Clip, spans: list[tuple[str, float, float]]) -> np.ndarray:
    first = clip.events[0]
    lead_s = rng.uniform(0.0, 0.2)
    levels = 10 ** (rng.uniform(-6, 0, 2) / 20)
    parts = [(lead_s, _event(rng, first, first.duration_s) * levels[0])]
    spans.append((first.kind, lead_s, lead_s + first.duration_s))
    if clip.relation != "single":
        second = clip.events[1]
        if clip.relation == "then":
            at_s = lead_s + first.duration_s + rng.uniform(*PAUSE_S)
        else:
            at_s = lead_s + rng.uniform(0.05, 1.0) * (first.duration_s - second.duration_s)
            parts[0] = (lead_s, parts[0][1] * 0.6)
        parts.append((at_s, _event(rng, second, second.duration_s) * levels[1]))
        spans.append((second.kind, at_s, at_s + second.duration_s))
    end_s = max(end for *_, end in spans) + rng.uniform(0.0, 0.2)
    out = np.zeros(int(end_s * RATE_HZ) + 1)
    for at_s, sound in parts:
        start = int(at_s * RATE_HZ)
        sound = sound[: out.size - start]
        out[start : start + sound.size] += sound
    return out / (np.abs(out).max() + 1e-9)


def _through(rng: np.random.Generator, mono: np.ndarray, rate_hz: int, channel: Channel) -> np.ndarray:
    if channel.reverb_s is not None:
        t = np.arange(int(2.5 * channel.reverb_s * rate_hz)) / rate_hz
        tail = rng.standard_normal(t.size) * np.exp(-t / (channel.reverb_s / 3))
        tail *= 0.5 / (np.sqrt((tail**2).sum()) + 1e-9)
        tail[0] = 1.0
        size = 1 << int(np.ceil(np.log2(mono.size + t.size)))
        mono = np.fft.irfft(np.fft.rfft(mono, size) * np.fft.rfft(tail, size), size)[: mono.size]
    if channel.noise_snr_db is not None:
        level = np.sqrt((mono**2).mean()) * 10 ** (-channel.noise_snr_db / 20)
        mono = mono + rng.standard_normal(mono.size) * level
    return mono / (np.abs(mono).max() + 1e-9) * 10 ** (channel.gain_db / 20)

"""A path or bytes → the mono 16 kHz waveform of all the sound in it, or an `AudioError` that names the clip.

`data.opening` finds all of the sound, libsndfile decodes it (wav, flac, mp3, ogg, opus, aiff …), soxr resamples. Whole
flac files are decoded by dr_flac (miniaudio) if it is installed: the same samples in two thirds of the time. Features
are computed elsewhere, on the model's device: a loader that only decodes is several times faster than one that also
computes spectra.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from data.channels import mix_down
from data.opening import (
    AudioError,
    Source,
    clip_name,
    detail_of,
    probe_duration_s,
    sounds_checked_once,
    sounds_of,
)
from data.parts import RESAMPLER_MARGIN_S, Part, PartError
from data.remarks import CHANNELS, LEVEL, Remark
from support.units import SAMPLE_RATE
from support.waveforms import problem_with

try:
    import miniaudio
except ImportError:  # libsndfile reads flac too
    miniaudio = None

__all__ = ["AudioError", "clip_name", "load_clip", "load_waveform", "probe_duration_s"]

log = logging.getLogger(__name__)

EXPAND_SILENCE_S = 0.1
EXPAND_SILENCE_SAMPLES = round(EXPAND_SILENCE_S * SAMPLE_RATE)  # between a clip and each clip of its `expand_wav`
OVERSHOOT = 0.1  # so large a part of a lossy file of clipped sound may be beyond full scale; it is clipped again
DECODER_MARGIN_S = 1.0  # read before a part where the decoder's state depends on what came before
MP3_FROM_START_S = 60  # later parts of an mp3 differ from a whole read by a rounding of float32
MP3_GUESS_FRAMES = 2 * 1152  # without a length header the decoder estimates; `inspect` counted before


def load_waveform(source: Source, *, expand: Sequence[str | Path] = (), max_audio_s: float | None = None) -> Tensor:
    """The clip as a waveform `[T]`: mono, 16 kHz, float32 in [-1, 1].

    Channels are averaged, unless they cancel (`data.channels`). Each clip of `expand` is appended after 0.1 s of
    silence. All sound of the file is used, whatever its header says. `max_audio_s` cuts the result, with a warning;
    there is one as well where header and sound disagree, channels cancel, or float samples are beyond full scale.

    Raises:
        AudioError: missing, empty, truncated or non-audio file, no samples, samples that are not finite.
    """
    remarks: list[Remark] = []
    waveform, capped = load_clip(source, expand=expand, max_audio_s=max_audio_s, remarks=remarks)
    for remark in remarks:
        log.warning("%s", remark)
    if capped:
        log.warning("%s: cut to max_audio_s = %g s", clip_name(source), max_audio_s)
    return waveform


def load_clip(
    source: Source,
    *,
    expand: Sequence[str | Path] = (),
    max_audio_s: float | None = None,
    first_channel: bool = False,
    remarks: list[Remark] | None = None,
    part: Part | None = None,
) -> tuple[Tensor, bool]:
    """As `load_waveform`, without the warnings: (waveform `[T]`, whether `max_audio_s` cut it).

    `first_channel` uses the first of several channels instead of their mean. What `load_waveform` warns of is appended
    to `remarks`. `part` of `source` alone is read; clips of `expand` are whole.
    """
    remarks = [] if remarks is None else remarks
    limit = None if max_audio_s is None else round(max_audio_s * SAMPLE_RATE)
    if part is None:
        waveform = _decode(source, limit, first_channel, remarks)
    else:
        waveform = _decode_part(source, part, limit, first_channel, remarks)
    if expand:
        parts = [waveform]
        total = len(waveform)
        for extra in expand:
            if limit is not None and total > limit:
                break
            further = _decode(extra, limit, first_channel, remarks)
            parts += [np.zeros(EXPAND_SILENCE_SAMPLES, np.float32), further]
            total += EXPAND_SILENCE_SAMPLES + len(further)
        waveform = np.concatenate(parts)
    capped = limit is not None and len(waveform) > limit
    return torch.from_numpy(waveform[:limit] if capped else waveform), capped


def _decode(source: Source, limit: int | None, first_channel: bool, remarks: list[Remark]) -> np.ndarray:
    """One file as float32 `[T]`, mono, 16 kHz; with `limit` (in 16 kHz samples), at least limit + 1 samples of it."""
    name = clip_name(source)
    parts: list[np.ndarray] = []
    for readable, sound in sounds_of(source, name, remarks):
        rest = None if limit is None else limit - sum(map(len, parts))
        if rest is not None and rest < 0:
            break
        parts.append(_decode_sound(readable, name, sound, rest, first_channel, remarks))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _decode_sound(
    source: Source, name: str, sound: soundfile.SoundFile, limit: int | None, first_channel: bool, remarks: list[Remark]
) -> np.ndarray:
    """An open file, as `_decode` gives it."""
    rate_hz = sound.samplerate
    wanted = sound.frames
    if limit is not None:
        wanted = min(wanted, math.ceil((limit / SAMPLE_RATE + RESAMPLER_MARGIN_S) * rate_hz))
    samples = _read(source, name, sound, wanted)
    if len(samples) < wanted - (MP3_GUESS_FRAMES if sound.format == "MP3" else 0) or len(samples) == 0:
        raise AudioError(
            name, f"truncated: its header says {wanted} samples, {len(samples)} were read; copy or encode it again"
        )
    return _at_16_khz(name, samples, sound, first_channel, remarks)


def _at_16_khz(
    name: str, samples: np.ndarray, sound: soundfile.SoundFile, first_channel: bool, remarks: list[Remark]
) -> np.ndarray:
    """Samples as `_read` gives them, checked, mono and resampled, as float32 `[T]`."""
    rate_hz = sound.samplerate
    waveform, cancelled = mix_down(samples[:, 0].copy() if first_channel and samples.ndim > 1 else samples)
    if cancelled:
        remarks.append(Remark(CHANNELS, name, cancelled))
    is_int16 = samples.dtype == np.int16  # cannot be out of range
    if not is_int16:
        waveform = _in_range(name, waveform, sound.subtype, remarks)
    if rate_hz != SAMPLE_RATE:
        waveform = soxr.resample(waveform, rate_hz, SAMPLE_RATE, quality="HQ")
        if len(waveform) == 0:
            raise AudioError(name, f"has {len(samples)} samples at {rate_hz} Hz, none at 16 kHz; remove it")
    elif is_int16:
        return waveform
    return np.clip(waveform, -1.0, 1.0, out=waveform)  # filters and lossy codecs overshoot a little


def _decode_part(
    source: Source, part: Part, limit: int | None, first_channel: bool, remarks: list[Remark]
) -> np.ndarray:
    """As `_decode`, of a part: the samples of the whole file at 16 kHz from its start to its end, without decoding what
    lies before where the format allows. Levels and channels are judged by the part's own sound."""
    name = clip_name(source)
    found: np.ndarray | PartError | None = None
    for readable, sound in sounds_checked_once(source, name, remarks):
        if found is not None:  # one of several files in a row: their lengths are known only once they are resampled
            return _cut(name, source, part, limit, first_channel, remarks)
        try:
            found = _decode_window(readable, name, sound, part, limit, first_channel, remarks)
        except PartError as error:
            found = error
    if isinstance(found, PartError):
        raise AudioError(name, str(found)) from None
    return found


def _decode_window(
    source: Source,
    name: str,
    sound: soundfile.SoundFile,
    part: Part,
    limit: int | None,
    first_channel: bool,
    remarks: list[Remark],
) -> np.ndarray:
    """A part of an open file, as `_decode_part` gives it; raises `PartError` where the file does not have it."""
    window = part.window(sound.frames, sound.samplerate, None if limit is None else limit + 1)
    samples = _read_window(source, name, sound, window.first, window.frames)
    if len(samples) < window.frames - (MP3_GUESS_FRAMES if sound.format == "MP3" else 0) or len(samples) == 0:
        raise AudioError(
            name, f"truncated: its part has {window.frames} samples, {len(samples)} were read; copy or encode it again"
        )
    if part.channel is not None:
        samples = _one_channel(name, samples, part)
    waveform = _at_16_khz(name, samples, sound, first_channel, remarks)
    kept = waveform[window.skip : None if window.keep is None else window.skip + window.keep]
    if len(kept) == 0:
        raise PartError(f"its part ({part.fields or part}) has no sample at 16 kHz; correct or remove the entry")
    return kept


def _cut(
    name: str, source: Source, part: Part, limit: int | None, first_channel: bool, remarks: list[Remark]
) -> np.ndarray:
    """A part of a file that must be decoded whole."""
    if part.channel not in (None, 0):
        raise AudioError(name, f"channel {part.channel} of several files in one cannot be read alone; split the file")
    waveform = _decode(source, None, first_channel or part.channel == 0, remarks)
    try:
        window = part.window(len(waveform), SAMPLE_RATE, None if limit is None else limit + 1)
    except PartError as error:
        raise AudioError(name, str(error)) from None
    return waveform[window.first : window.first + window.frames].copy()


def _read_window(source: Source, name: str, sound: soundfile.SoundFile, first: int, frames: int) -> np.ndarray:
    """`frames` samples from `first` on, the same as those of a whole read.

    libsndfile moves to any sample exactly, but mp3 and opus frames depend on those before them: there, reading begins a
    second earlier, and at the beginning of an mp3's first minute.
    """
    before = 0
    if sound.format == "MP3" or sound.subtype == "OPUS":
        exact = sound.format == "MP3" and first < MP3_FROM_START_S * sound.samplerate
        before = first if exact else min(first, round(DECODER_MARGIN_S * sound.samplerate))
    if first > before:
        try:
            sound.seek(first - before)
        except RuntimeError as error:
            raise AudioError(
                name, f"damaged: sample {first} cannot be reached ({detail_of(error)}); encode it again"
            ) from None
    return _read(source, name, sound, before + frames)[before:]


def _one_channel(name: str, samples: np.ndarray, part: Part) -> np.ndarray:
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    if part.channel >= channels:
        raise AudioError(
            name,
            f"the annotation names channel {part.channel} (counted from 0), but the file has {channels}; correct the "
            "field, or drop it",
        )
    return samples if samples.ndim == 1 else samples[:, part.channel].copy()


def _read(source: Source, name: str, sound: soundfile.SoundFile, frames: int) -> np.ndarray:
    """The first `frames` of an open file, `[T]` or `[T, channels]`: int16 of a 16-bit wav, else float32."""
    if sound.format == "FLAC" and frames == sound.frames and miniaudio is not None:
        try:
            decoded = miniaudio.flac_read_f32(source if isinstance(source, bytes) else Path(source).read_bytes())
        except (miniaudio.MiniaudioError, OSError):
            decoded = None  # libsndfile's error is raised below
        if decoded is not None and decoded.num_frames == frames:
            samples = np.frombuffer(decoded.samples, dtype=np.float32)
            return samples if decoded.nchannels == 1 else samples.reshape(frames, decoded.nchannels)
    # libsndfile's own conversion of 16-bit samples to float is five times slower than numpy's.
    is_int16 = sound.subtype == "PCM_16" and sound.format != "FLAC"
    try:
        return sound.read(frames, dtype="int16" if is_int16 else "float32")
    except (RuntimeError, MemoryError) as error:
        raise AudioError(
            name, f"truncated or damaged: decoding failed ({detail_of(error)}); copy or encode it again"
        ) from None


def _in_range(name: str, waveform: np.ndarray, subtype: str, remarks: list[Remark]) -> np.ndarray:
    """Float samples within [-1, 1].

    A float file beyond full scale is scaled down: clipped, its waveform would be another one. A lossy codec overshoots
    a little, which is clipped later.
    """
    low, high = float(waveform.min()), float(waveform.max())  # NaN propagates through both
    peak = max(-low, high)
    if peak <= 1.0:
        return waveform
    if problem := problem_with(low, high):
        if not math.isfinite(low + high):
            problem = f"{np.count_nonzero(~np.isfinite(waveform))} of {len(waveform)} {problem}"
        raise AudioError(name, problem)
    if subtype in ("FLOAT", "DOUBLE") or np.count_nonzero(np.abs(waveform) > 1) > OVERSHOOT * len(waveform):
        remarks.append(Remark(LEVEL, name, f"its float samples reach {peak:.4g}; it is scaled down to [-1, 1]"))
        return waveform * np.float32(1 / peak)
    return waveform

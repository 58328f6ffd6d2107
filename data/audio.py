"""A path or bytes → the mono 16 kHz waveform, or an `AudioError` that names the clip.

libsndfile decodes (wav, flac, mp3, ogg, opus, aiff …), soxr resamples. Whole flac files are decoded by dr_flac
(miniaudio) if it is installed: the same samples in two thirds of the time. Features are computed elsewhere, on the
model's device: a loader that only decodes is several times faster than one that also computes spectra.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from data.file_names import near_name
from data.integrity import find_damage
from data.parts import Part, PartError
from support.command_line import UserError
from support.units import SAMPLE_RATE

try:
    import miniaudio
except ImportError:  # libsndfile reads flac too
    miniaudio = None

log = logging.getLogger(__name__)

EXPAND_SILENCE_S = 0.1
EXPAND_SILENCE_SAMPLES = round(EXPAND_SILENCE_S * SAMPLE_RATE)  # between a clip and each clip of its `expand_wav`
INT16_SCALE = np.float32(1 / 32_768)
MAX_PEAK = 10.0  # float files a little over full scale are clipped; beyond this they were never in [-1, 1]
RESAMPLER_MARGIN_S = 0.1  # read past a cap, so that the filter's input does not end at the cut
DECODER_MARGIN_S = 1.0  # read before a part where the decoder's state depends on what came before
MP3_FROM_START_S = 60  # later parts of an mp3 differ from a whole read by a rounding of float32
MP3_GUESS_FRAMES = 2 * 1152  # without a length header the decoder estimates; `find_damage` counted before
UNKNOWN_LENGTH_FRAMES = 1 << 62  # libsndfile's answer where a header gives no length is 2^63 - 1

Source = str | Path | bytes


class AudioError(UserError):
    """A clip that cannot be used.

    Attributes:
        clip: its path, or `<N bytes>`.
        reason: what was found, and how to fix it.
    """

    def __init__(self, clip: str, reason: str) -> None:
        super().__init__(clip, reason)
        self.clip = clip
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.clip}: {self.reason}"


def load_waveform(source: Source, *, expand: Sequence[str | Path] = (), max_audio_s: float | None = None) -> Tensor:
    """The clip as a waveform `[T]`: mono, 16 kHz, float32 in [-1, 1].

    Channels are averaged. Each clip of `expand` is appended after 0.1 s of silence. `max_audio_s` cuts the result,
    with a warning.

    Raises:
        AudioError: missing, empty, truncated or non-audio file, no samples, samples that are not finite.
    """
    waveform, capped = load_clip(source, expand=expand, max_audio_s=max_audio_s)
    if capped:
        log.warning("%s: cut to max_audio_s = %g s", clip_name(source), max_audio_s)
    return waveform


def load_clip(
    source: Source,
    *,
    expand: Sequence[str | Path] = (),
    max_audio_s: float | None = None,
    first_channel: bool = False,
    part: Part | None = None,
) -> tuple[Tensor, bool]:
    """As `load_waveform`, without the warning: (waveform `[T]`, whether `max_audio_s` cut it).

    `first_channel` uses the first of several channels instead of their mean. `part` of `source` alone is read; clips of
    `expand` are whole.
    """
    limit = None if max_audio_s is None else round(max_audio_s * SAMPLE_RATE)
    if part is None:
        waveform = _decode(source, limit, first_channel)
    else:
        waveform = _decode_part(source, part, limit, first_channel)
    if expand:
        parts = [waveform]
        total = len(waveform)
        for extra in expand:
            if limit is not None and total > limit:
                break
            further = _decode(extra, limit, first_channel)
            parts += [np.zeros(EXPAND_SILENCE_SAMPLES, np.float32), further]
            total += EXPAND_SILENCE_SAMPLES + len(further)
        waveform = np.concatenate(parts)
    capped = limit is not None and len(waveform) > limit
    return torch.from_numpy(waveform[:limit] if capped else waveform), capped


def probe_duration_s(source: Source) -> float:
    """Length in seconds, from the header alone; raises `AudioError` if it cannot be read."""
    with _open(source) as sound:
        _check_length(source, sound)
        return sound.frames / sound.samplerate


def probe_rate_hz(source: Source) -> int:
    """The sample rate, from the header; raises `AudioError` if it cannot be read."""
    with _open(source) as sound:
        return sound.samplerate


def clip_name(source: Source) -> str:
    """The clip's name in errors."""
    return f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source)


def _open(source: Source) -> soundfile.SoundFile:
    """Open by content, not by suffix; every failure becomes an `AudioError`."""
    name = clip_name(source)
    try:
        if isinstance(source, bytes):
            size = len(source)
        else:
            path = Path(source)
            size = path.stat().st_size
            if path.is_dir():
                raise AudioError(name, "is a folder; expected an audio file")
    except AudioError:
        raise
    except FileNotFoundError:
        near = near_name(str(source))
        meant = f" ({near} is there)" if near else ""
        raise AudioError(name, f"no such file{meant}; check the annotation's path and datasets.prefix") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise AudioError(name, f"cannot be opened ({error}); check its path and permissions") from None
    if size == 0:
        raise AudioError(name, "is empty (0 bytes); copy or download it again")
    try:
        return soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source))
    except (RuntimeError, TypeError) as error:  # LibsndfileError is a RuntimeError; TypeError: '*.raw' has no header
        _check_whole(source)
        detail = str(getattr(error, "error_string", error)).strip().rstrip(".")
        raise AudioError(
            name,
            f"is not audio that libsndfile {soundfile.__libsndfile_version__} reads ({detail}); "
            "expected wav, flac, mp3, ogg or opus",
        ) from None


def _check_whole(source: Source, decoder_frames: int | None = None) -> None:
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb", buffering=0) as file:
            damage = find_damage(file, decoder_frames)
    except OSError as error:
        raise AudioError(clip_name(source), f"cannot be read ({error}); check its permissions and the disk") from None
    if damage:
        raise AudioError(clip_name(source), f"{damage}; copy or encode it again")


def _check_length(source: Source, sound: soundfile.SoundFile) -> None:
    if sound.frames == 0:
        raise AudioError(clip_name(source), "has 0 samples; remove it or record it again")
    if sound.frames >= UNKNOWN_LENGTH_FRAMES:
        raise AudioError(clip_name(source), "its header has no length; encode it again from a file")


def _decode(source: Source, limit: int | None, first_channel: bool) -> np.ndarray:
    """One file as float32 `[T]`, mono, 16 kHz; with `limit` (in 16 kHz samples), at least limit + 1 samples of it."""
    name = clip_name(source)
    with _open(source) as sound:
        _check_whole(source, sound.frames)
        _check_length(source, sound)
        rate_hz = sound.samplerate
        wanted = sound.frames
        if limit is not None:
            wanted = min(wanted, math.ceil((limit / SAMPLE_RATE + RESAMPLER_MARGIN_S) * rate_hz))
        samples = _read(source, sound, wanted)
    if len(samples) < wanted - (MP3_GUESS_FRAMES if sound.format == "MP3" else 0) or len(samples) == 0:
        raise AudioError(
            name, f"truncated: its header says {wanted} samples, {len(samples)} were read; copy or encode it again"
        )
    return _at_16_khz(name, samples, rate_hz, first_channel)


def _at_16_khz(name: str, samples: np.ndarray, rate_hz: int, first_channel: bool) -> np.ndarray:
    """Samples as `_read` gives them, checked, mono and resampled, as float32 `[T]`."""
    waveform = _mix_down(samples[:, 0].copy() if first_channel and samples.ndim > 1 else samples)
    is_int16 = samples.dtype == np.int16  # cannot be out of range
    if not is_int16:
        _check_finite(name, waveform)
    if rate_hz != SAMPLE_RATE:
        waveform = soxr.resample(waveform, rate_hz, SAMPLE_RATE, quality="HQ")
        if len(waveform) == 0:
            raise AudioError(name, f"has {len(samples)} samples at {rate_hz} Hz, none at 16 kHz; remove it")
    elif is_int16:
        return waveform
    return np.clip(waveform, -1.0, 1.0, out=waveform)  # filters and lossy codecs overshoot a little


def _decode_part(source: Source, part: Part, limit: int | None, first_channel: bool) -> np.ndarray:
    """As `_decode`, of a part: the samples of the whole file at 16 kHz from its start to its end, without decoding what
    lies before where the format allows."""
    name = clip_name(source)
    with _open(source) as sound:
        _check_whole_once(source, sound.frames)
        _check_length(source, sound)
        rate_hz = sound.samplerate
        try:
            window = part.window(sound.frames, rate_hz, None if limit is None else limit + 1)
        except PartError as error:
            raise AudioError(name, str(error)) from None
        samples = _read_window(source, sound, window.first, window.frames)
    if len(samples) < window.frames - (MP3_GUESS_FRAMES if sound.format == "MP3" else 0) or len(samples) == 0:
        raise AudioError(
            name, f"truncated: its part has {window.frames} samples, {len(samples)} were read; copy or encode it again"
        )
    if part.channel is not None:
        samples = _one_channel(name, samples, part)
    waveform = _at_16_khz(name, samples, rate_hz, first_channel)
    kept = waveform[window.skip : None if window.keep is None else window.skip + window.keep]
    if len(kept) == 0:
        raise AudioError(name, f"its part ({part.fields or part}) has no sample; correct or remove the entry")
    return kept


def _read_window(source: Source, sound: soundfile.SoundFile, first: int, frames: int) -> np.ndarray:
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
            reason = f"damaged: sample {first} cannot be reached ({error}); encode it again"
            raise AudioError(clip_name(source), reason) from None
    return _read(source, sound, before + frames)[before:]


def _one_channel(name: str, samples: np.ndarray, part: Part) -> np.ndarray:
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    if part.channel >= channels:
        raise AudioError(
            name,
            f"the annotation names channel {part.channel} (counted from 0), but the file has {channels}; correct the "
            "field, or drop it",
        )
    return samples if samples.ndim == 1 else samples[:, part.channel].copy()


def _check_whole_once(source: Source, decoder_frames: int) -> None:
    """`_check_whole`; of a recording with many parts once, not once a part."""
    if isinstance(source, bytes):
        return _check_whole(source, decoder_frames)
    state = Path(source).stat()
    _check_whole_as_of(str(source), decoder_frames, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _check_whole_as_of(path: str, decoder_frames: int, _size: int, _mtime_ns: int) -> None:
    _check_whole(path, decoder_frames)


def _read(source: Source, sound: soundfile.SoundFile, frames: int) -> np.ndarray:
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
        detail = str(getattr(error, "error_string", error)).strip().rstrip(".")
        raise AudioError(
            clip_name(source), f"truncated or damaged: decoding failed ({detail}); copy or encode it again"
        ) from None


def _mix_down(samples: np.ndarray) -> np.ndarray:
    """`[T]` or `[T, channels]`, int16 or float32 → float32 `[T]`, the mean over channels."""
    scale = INT16_SCALE if samples.dtype == np.int16 else np.float32(1)
    if samples.ndim == 1:
        return samples if samples.dtype == np.float32 else np.multiply(samples, scale, dtype=np.float32)
    if samples.shape[1] == 2:  # several times faster than a mean over an axis of two
        mixed = np.add(samples[:, 0], samples[:, 1], dtype=np.float32)
        mixed *= scale / 2
        return mixed
    return samples.mean(axis=1, dtype=np.float32) * scale


def _check_finite(name: str, waveform: np.ndarray) -> None:
    low, high = float(waveform.min()), float(waveform.max())  # NaN propagates through both
    if not math.isfinite(low + high):
        count = int(np.count_nonzero(~np.isfinite(waveform)))
        raise AudioError(name, f"{count} of {len(waveform)} samples are NaN or infinite; record or convert it again")
    if max(-low, high) > MAX_PEAK:
        raise AudioError(
            name, f"float samples reach {max(-low, high):.4g}; expected [-1, 1]: divide them by full scale (32768?)"
        )

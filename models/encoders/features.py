"""Waveforms to spectra: those of Whisper, BEATs, CED and transformers' encoders, batched, on the waveforms' device.

A clip's values depend on its own samples alone: samples after its length in the batch count as silence, and floors are
relative to the clip itself. Everything runs in float32 (fbank also in float64), whatever the autocast setting.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor
from transformers.audio_utils import mel_filter_bank

from models.frames import length_mask, zero_after
from support.units import SAMPLE_RATE

HOP = SAMPLE_RATE // 100  # 160 samples: 10 ms between two frames
WINDOW = SAMPLE_RATE // 40  # 400 samples: 25 ms per frame
HALF_WINDOW = WINDOW // 2

LOG_MEL_EPSILON = 1e-10
LOG_MEL_RANGE = 8.0  # decades kept below the clip's loudest bin

FBANK_BINS = 128
FBANK_FFT = 512  # the next power of two after WINDOW
FBANK_LOW_HZ = 20.0
FBANK_HIGH_HZ = SAMPLE_RATE / 2
FBANK_GAIN = 2.0**15  # Kaldi works at the scale of 16-bit samples
FBANK_EPSILON = torch.finfo(torch.float32).eps  # also in float64, as in Kaldi
FBANK_MEAN, FBANK_STD = 15.41663, 6.55582  # of AudioSet, from BEATs' code
PREEMPHASIS = 0.97
POVEY_POWER = 0.85

VARIANCE_FLOOR = 1e-7  # added to variances by transformers' feature extractors

PARAKEET_FFT = 512
PARAKEET_GUARD = 2.0**-24  # added before the logarithm
PARAKEET_EPSILON = 1e-5  # added to the standard deviation of a bin

DECIBEL_BINS = 64
DECIBEL_FFT = 512  # also the length of CED's window
DECIBEL_EPSILON = 1e-10
DECIBEL_RANGE = 120.0  # kept below the clip's loudest bin


def log_mel_frames(samples: int) -> int:
    """Frames of a clip at its real length: one per 10 ms, rounded up."""
    return -(-samples // HOP)


def fbank_frames(samples: int) -> int:
    """Frames of a Kaldi fbank: whole windows only, the tail is dropped."""
    return max(0, 1 + (samples - WINDOW) // HOP)


@torch.no_grad()
def log_mel(
    waveforms: Tensor, lengths: LongTensor, *, bins: int, full_samples: int | None = None
) -> tuple[Tensor, LongTensor]:
    """Whisper's log-mel spectrogram: [B, T] -> ([B, M, F], frame lengths [B]).

    Args:
        waveforms: [B, T], 16 kHz.
        lengths: [B], samples; at least one each.
        bins: 80, or 128 for Whisper large-v3.
        full_samples: pad with silence or cut every clip to so many samples, as WhisperFeatureExtractor does (480,000);
            None: each clip at its real length, `log_mel_frames(samples)` frames, zero afterwards.

    Source: WhisperFeatureExtractor of transformers.
    """
    waveforms = zero_after(waveforms.float(), lengths)
    if full_samples is None:
        samples = HOP * log_mel_frames(max(lengths.tolist()))
        frame_lengths = -(-lengths // HOP)
    else:
        samples = full_samples
        frame_lengths = torch.full_like(lengths, full_samples // HOP)
    # Reflection needs more samples than it mirrors; after a short clip's end these are silence.
    buffer = max(samples, HALF_WINDOW + 1)
    waveforms = F.pad(waveforms, (0, max(0, buffer - waveforms.shape[1])))[:, :buffer]
    if full_samples is None:
        waveforms = F.pad(F.pad(waveforms, (HALF_WINDOW, 0), mode="reflect"), (0, HALF_WINDOW))
    else:
        waveforms = F.pad(waveforms, (HALF_WINDOW, HALF_WINDOW), mode="reflect")
    with torch.autocast(waveforms.device.type, enabled=False):
        window = torch.hann_window(WINDOW, device=waveforms.device)
        spectrum = torch.stft(waveforms, WINDOW, HOP, window=window, center=False, return_complex=True)
        power = _power(spectrum[..., : samples // HOP])  # [B, WINDOW / 2 + 1, F]
        mel = _slaney_filters(bins, WINDOW, waveforms.device) @ power  # [B, M, F]
    decades = mel.clamp(min=LOG_MEL_EPSILON).log10()
    inside = length_mask(frame_lengths, decades.shape[-1])[:, None]  # [B, 1, F]
    loudest = decades.masked_fill(~inside, -torch.inf).amax(dim=(1, 2), keepdim=True)
    scaled = (torch.maximum(decades, loudest - LOG_MEL_RANGE) + 4.0) / 4.0
    return scaled.masked_fill(~inside, 0.0), frame_lengths


@torch.no_grad()
def kaldi_log_mel(
    waveforms: Tensor,
    lengths: LongTensor,
    *,
    bins: int = FBANK_BINS,
    window: Literal["povey", "hann"] = "povey",
    gain: float = FBANK_GAIN,
    dtype: torch.dtype = torch.float32,
    filter_dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Kaldi's fbank, unchanged: [B, T] -> [B, F, M] in `dtype`, without meaning from `fbank_frames(length)` on.

    `dtype` is that of the computation; in float32 the quiet bins of clean tones differ visibly from float64.
    `filter_dtype` is that in which the filters are computed: float64 in transformers, float32 in torchaudio.

    Raises ValueError if the batch is shorter than one frame.
    Source: torchaudio.compliance.kaldi.fbank.
    """
    if waveforms.shape[1] < WINDOW:
        raise ValueError(f"fbank: the batch has {waveforms.shape[1]} samples; expected at least {WINDOW}, one frame")
    waveforms = zero_after(waveforms.to(dtype), lengths) * gain
    with torch.autocast(waveforms.device.type, enabled=False):
        frames = waveforms.unfold(1, WINDOW, HOP)  # [B, F, WINDOW]
        frames = frames - frames.mean(dim=-1, keepdim=True)
        # The window's weight of a frame's first sample is zero. Without it the frame is shifted by a sample, which does
        # not change the power, and every sample has a predecessor for pre-emphasis.
        frames = (frames[..., 1:] - PREEMPHASIS * frames[..., :-1]) * _kaldi_window(window, frames.device, dtype)[1:]
        power = _power(torch.fft.rfft(frames, FBANK_FFT))  # [B, F, FFT / 2 + 1]
        mel = power @ _kaldi_filters(bins, frames.device, dtype, filter_dtype)  # [B, F, M]
    return mel.clamp(min=FBANK_EPSILON).log()


@torch.no_grad()
def kaldi_fbank(waveforms: Tensor, lengths: LongTensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """BEATs' fbank, normalised: [B, T] -> [B, F, M] float32, zero from frame `fbank_frames(length)` on.

    `dtype` is that of the computation. Released systems ran it in float64.

    Raises ValueError if the batch is shorter than one frame.
    """
    fbank = kaldi_log_mel(waveforms, lengths, dtype=dtype, filter_dtype=torch.float32)
    fbank = (fbank - FBANK_MEAN) / (2 * FBANK_STD)
    return zero_after(fbank.float(), fbank_lengths(lengths))


def fbank_lengths(lengths: LongTensor) -> LongTensor:
    """`fbank_frames` of each clip: [B] samples -> [B]."""
    return (1 + (lengths - WINDOW) // HOP).clamp(min=0)


def bin_statistics(spectrogram: Tensor, frame_lengths: LongTensor) -> tuple[Tensor, Tensor]:
    """Means and unbiased variances of each bin over a clip's own frames: [B, F, M] -> [B, 1, M] each."""
    counts = frame_lengths[:, None, None]
    mean = zero_after(spectrogram, frame_lengths).sum(dim=1, keepdim=True) / counts
    deviation = zero_after(spectrogram - mean, frame_lengths)
    return mean, deviation.square().sum(dim=1, keepdim=True) / (counts - 1)


@torch.no_grad()
def stacked_fbank(waveforms: Tensor, lengths: LongTensor, *, bins: int, stride: int = 2) -> tuple[Tensor, LongTensor]:
    """Wav2Vec2-BERT's input: Kaldi's fbank, each bin normalised over the clip, `stride` frames concatenated.

    [B, T] -> ([B, F / stride, stride · M] float32, frame lengths [B]); last frames that fill no stack are dropped.

    Source: SeamlessM4TFeatureExtractor of transformers.
    """
    # In float64, like the library: normalising amplifies the rounding of quiet bins.
    fbank = kaldi_log_mel(waveforms, lengths, bins=bins, dtype=torch.float64)
    counts = fbank_lengths(lengths)
    mean, variance = bin_statistics(fbank, counts)
    fbank = (fbank - mean) / (variance + VARIANCE_FLOOR).sqrt()
    frame_lengths = counts // stride
    stacked = fbank[:, : int(frame_lengths.max()) * stride].unflatten(1, (-1, stride)).flatten(2)
    return zero_after(stacked.float(), frame_lengths), frame_lengths


def parakeet_frames(samples: int) -> int:
    """Frames of Parakeet's spectrogram: one per whole 10 ms."""
    return samples // HOP


@torch.no_grad()
def parakeet_log_mel(
    waveforms: Tensor, lengths: LongTensor, *, bins: int, preemphasis: float | None = PREEMPHASIS
) -> tuple[Tensor, LongTensor]:
    """Parakeet's log-mel spectrogram, each bin normalised over the clip: [B, T] -> ([B, F, M], frame lengths [B]).

    Source: ParakeetFeatureExtractor of transformers.
    """
    waveforms = zero_after(waveforms.float(), lengths)
    if preemphasis is not None:
        emphasised = waveforms[:, 1:] - preemphasis * waveforms[:, :-1]
        waveforms = zero_after(torch.cat([waveforms[:, :1], emphasised], dim=1), lengths)
    frame_lengths = lengths // HOP
    with torch.autocast(waveforms.device.type, enabled=False):
        window = torch.hann_window(WINDOW, periodic=False, device=waveforms.device)
        spectrum = torch.stft(
            waveforms, PARAKEET_FFT, HOP, WINDOW, window=window, pad_mode="constant", return_complex=True
        )
        power = _power(spectrum[..., : int(frame_lengths.max())])  # [B, FFT / 2 + 1, F]
        mel = (_slaney_filters(bins, PARAKEET_FFT, waveforms.device) @ power).transpose(1, 2)  # [B, F, M]
        decades = (mel + PARAKEET_GUARD).log()
        mean, variance = bin_statistics(decades, frame_lengths)
        scaled = (decades - mean) / (variance.sqrt() + PARAKEET_EPSILON)
    return zero_after(scaled, frame_lengths), frame_lengths


def decibel_frames(samples: int) -> int:
    """Frames of CED's spectrogram, whose windows are centred on both ends of the clip."""
    return 1 + samples // HOP


@torch.no_grad()
def decibel_spectrogram(waveforms: Tensor, lengths: LongTensor, *, batch_floor: bool = False) -> Tensor:
    """CED's mel spectrogram in dB: [B, T] -> [B, M, F], zero from frame `decibel_frames(length)` on.

    Each clip is reflected at its own ends, and has a floor 120 dB below its own loudest bin. With `batch_floor` the
    floor is relative to the loudest bin of the batch, and rows are not cut to their lengths, as in the released code.

    Source: torchaudio's MelSpectrogram and AmplitudeToDB with the settings of CED.
    """
    if batch_floor:
        lengths = torch.full_like(lengths, waveforms.shape[1])
    half = DECIBEL_FFT // 2
    last = (lengths - 1)[:, None]
    position = torch.arange(-half, int(lengths.max()) + half, device=waveforms.device).abs()[None]
    inside = position <= last + half
    position = torch.where(position > last, 2 * last - position, position).clamp(min=0)
    reflected = waveforms.float().gather(1, position).masked_fill(~inside, 0.0)
    with torch.autocast(waveforms.device.type, enabled=False):
        window = torch.hann_window(DECIBEL_FFT, device=waveforms.device)
        spectrum = torch.stft(reflected, DECIBEL_FFT, HOP, window=window, center=False, return_complex=True)
        mel = _decibel_filters(waveforms.device) @ _power(spectrum)  # [B, M, F]
    decibels = 10.0 * mel.clamp(min=DECIBEL_EPSILON).log10()
    inside = length_mask(1 + lengths // HOP, decibels.shape[-1])[:, None]
    loudest = decibels.masked_fill(~inside, -torch.inf).amax(dim=(1, 2), keepdim=True)
    if batch_floor:
        loudest = loudest.max()
    return torch.maximum(decibels, loudest - DECIBEL_RANGE).masked_fill(~inside, 0.0)


def _power(spectrum: Tensor) -> Tensor:
    return spectrum.real.square() + spectrum.imag.square()


@lru_cache
def _slaney_filters(bins: int, fft: int, device: torch.device) -> Tensor:
    """[M, FFT / 2 + 1], Slaney's mel scale and area norm."""
    filters = mel_filter_bank(
        num_frequency_bins=fft // 2 + 1,
        num_mel_filters=bins,
        min_frequency=0.0,
        max_frequency=SAMPLE_RATE / 2,
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters).T.contiguous().to(device, torch.float32)


@lru_cache
def _decibel_filters(device: torch.device) -> Tensor:
    """[M, FFT / 2 + 1], HTK's mel scale, all triangles of height one.

    Computed in float32, as in torchaudio: where a triangle begins, its weights are differences of large numbers, and
    clean tones there depend on them. Exact triangles are up to 3e-3 dB from the input that CED was trained on.
    """
    highest = 2595.0 * math.log10(1.0 + SAMPLE_RATE / 2 / 700.0)
    edges = 700.0 * (10.0 ** (torch.linspace(0.0, highest, DECIBEL_BINS + 2) / 2595.0) - 1.0)  # [M + 2]
    widths = edges.diff()
    distance = edges[:, None] - torch.linspace(0, SAMPLE_RATE // 2, DECIBEL_FFT // 2 + 1)  # [M + 2, FFT / 2 + 1]
    rising, falling = -distance[:-2] / widths[:-1, None], distance[2:] / widths[1:, None]
    return torch.minimum(rising, falling).clamp(min=0.0).to(device)


@lru_cache
def _kaldi_window(kind: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    window = torch.hann_window(WINDOW, periodic=False, dtype=torch.float64)
    return (window.pow(POVEY_POWER) if kind == "povey" else window).to(device, dtype)


@lru_cache
def _kaldi_filters(count: int, device: torch.device, dtype: torch.dtype, computed_in: torch.dtype) -> Tensor:
    """[FFT / 2 + 1, M]: triangles of equal width on Kaldi's mel scale; the weight of the Nyquist bin is zero."""
    low, high = (1127.0 * math.log(1.0 + frequency_hz / 700.0) for frequency_hz in (FBANK_LOW_HZ, FBANK_HIGH_HZ))
    width = (high - low) / (count + 1)
    edges = low + torch.arange(count + 2, dtype=computed_in) * width
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]  # [M] each
    frequencies = torch.arange(FBANK_FFT // 2, dtype=computed_in) * (SAMPLE_RATE / FBANK_FFT)
    bins = (1127.0 * (1.0 + frequencies / 700.0).log())[:, None]
    rising = (bins - left) / (centre - left)
    falling = (right - bins) / (right - centre)
    filters = F.pad(torch.minimum(rising, falling).clamp(min=0.0), (0, 0, 0, 1))
    return filters.to(device, dtype)

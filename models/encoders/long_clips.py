"""Encode clips of any length: cut them, encode them in groups of similar length, join the parts in time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import LongTensor, Tensor
from torch.nn.utils.rnn import pad_sequence

from models.encoders.base import AudioEncoder, FeatureSource
from models.frames import Frames
from support.units import SAMPLE_RATE

PARTS_AT_ONCE = 8  # at least; a long clip's parts are encoded in batches, to bound the memory
NUMBERS_AT_ONCE = 1 << 23  # of a layer's widest activations, on the CPU: 32 MiB in float32


def cut_points(samples: int, max_samples: int | None, grain: int = AudioEncoder.cut_grain) -> list[int]:
    """Where a clip is cut: 0, …, samples. Parts are equal up to `grain`, and none is longer than `max_samples`."""
    if max_samples is None or samples <= max_samples:
        return [0, samples]
    parts = -(-samples // (max_samples - max_samples % grain))
    return [-(-samples * part // (parts * grain)) * grain for part in range(parts)] + [samples]


def joined_frame_count(encoder: AudioEncoder, samples: int) -> int:
    cuts = cut_points(samples, encoder.max_samples, encoder.cut_grain)
    return encoder.frame_count(samples) if len(cuts) == 2 else sum(_frames_of_parts(encoder, cuts))


def _frames_of_parts(encoder: AudioEncoder, cuts: Sequence[int]) -> list[int]:
    """Frames of each part of a clip that is cut: of the last, what its samples give; of the others, the frames between
    their cuts in time. An encoder that gives a few less would otherwise lag behind the others, more with each part."""
    starts = [round(cut * encoder.frame_rate_hz / SAMPLE_RATE) for cut in cuts[:-1]]
    return [stop - start for start, stop in itertools.pairwise(starts)] + [encoder.content_frames(cuts[-1] - cuts[-2])]


def _with_frames(values: Tensor, count: int) -> Tensor:
    """[N, D] -> [count, D]: cut, or with the last frame repeated."""
    missing = count - len(values)
    return values[:count] if missing <= 0 else torch.cat([values, values[-1:].expand(missing, -1)])


def encode_any_length(
    encoder: AudioEncoder, waveforms: Tensor, lengths: LongTensor, feature_source: FeatureSource | None = None
) -> Frames:
    """Encode clips, those over the encoder's limit in parts that are joined in time."""
    samples = lengths.tolist()
    if encoder.max_samples is None or max(samples) <= encoder.max_samples:
        return _encode_in_groups(encoder, waveforms, lengths, feature_source)

    parts: list[Tensor] = []
    owners: list[tuple[int, int | None]] = []  # row of the batch; frames to keep, None for all
    for row, size in enumerate(samples):
        cuts = cut_points(size, encoder.max_samples, encoder.cut_grain)
        parts += [waveforms[row, start:stop] for start, stop in itertools.pairwise(cuts)]
        owners += [(row, keep) for keep in ([None] if len(cuts) == 2 else _frames_of_parts(encoder, cuts))]
    pieces: list[list[Tensor]] = [[] for _ in samples]
    group = max(len(samples), PARTS_AT_ONCE)
    for first in range(0, len(parts), group):
        batch = parts[first : first + group]
        sizes = torch.tensor([len(part) for part in batch], device=lengths.device)
        encoded = _encode_in_groups(encoder, pad_sequence(batch, batch_first=True), sizes, feature_source)
        counts = encoded.lengths.tolist()
        for (row, keep), values, count in zip(owners[first : first + group], encoded.frames, counts, strict=True):
            pieces[row].append(values[:count] if keep is None else _with_frames(values[:count], keep))
    joined = [torch.cat(row) for row in pieces]
    counts = torch.tensor([len(row) for row in joined], device=joined[0].device)
    return Frames(pad_sequence(joined, batch_first=True), counts)


def _encode_in_groups(
    encoder: AudioEncoder, waveforms: Tensor, lengths: LongTensor, feature_source: FeatureSource | None
) -> Frames:
    """Encode clips that the encoder takes whole: in one batch, on the CPU in groups of similar length.

    One clip keeps a processor busy. A large batch only adds activations that fit in no cache, in blocks that the C
    library requests from the system again for every layer: a fifth of the time at Whisper's size, with 19 s.
    """
    if waveforms.device.type != "cpu" or torch.is_grad_enabled():
        return Frames(*encoder.run(waveforms, lengths, feature_source))
    samples = lengths.tolist()
    groups = _groups_of_like_length(encoder, samples)
    if len(groups) == 1:
        return Frames(*encoder.run(waveforms, lengths, feature_source))
    frames: dict[int, Tensor] = {}
    counts = torch.zeros_like(lengths)
    for rows in groups:
        encoded, counts[rows] = encoder.run(waveforms[rows, : samples[rows[0]]], lengths[rows], feature_source)
        frames |= zip(rows, encoded, strict=True)
    return Frames(pad_sequence([frames[row] for row in range(len(samples))], batch_first=True), counts)


def _groups_of_like_length(encoder: AudioEncoder, samples: Sequence[int]) -> list[list[int]]:
    """Rows in groups, the longest first in each; a group is within `NUMBERS_AT_ONCE`, or a single clip."""
    groups: list[list[int]] = []
    for row in sorted(range(len(samples)), key=lambda row: -samples[row]):
        if groups:
            widest = 4 * encoder.dim * encoder.frame_count(samples[groups[-1][0]])  # a feed-forward layer's
            if (len(groups[-1]) + 1) * widest <= NUMBERS_AT_ONCE:
                groups[-1].append(row)
                continue
        groups.append([row])
    return groups

"""Clips too long for memory, or for an encoder: groups, equal parts, and the parts' times."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

from models.connector.fusion import align_outputs
from models.encoders import base, long_clips
from models.encoders.long_clips import cut_points
from models.encoders.stack import EncoderStack
from tests.encoders import LENGTHS, RATE, noise


@torch.no_grad()
@pytest.mark.parametrize("longest_s", [3, 32])  # the latter is over what Whisper takes at once
def test_groups_of_clips_give_what_the_batch_gives(
    stack: EncoderStack, monkeypatch: pytest.MonkeyPatch, longest_s: int
) -> None:
    lengths = torch.cat([LENGTHS[:-1], torch.tensor([longest_s * RATE])])
    waveforms = noise(8, int(lengths.max()))
    together = stack(waveforms, lengths)
    widths: list[list[int]] = []
    for encoder in stack.encoders.values():
        given = encoder.forward
        widths.append(seen := [])
        monkeypatch.setattr(encoder, "forward", lambda w, n, f=given, s=seen: (s.append(len(w)), f(w, n))[1])
    one = max(4 * encoder.dim * encoder.frame_count(2 * RATE) for encoder in stack.encoders.values())
    monkeypatch.setattr(long_clips, "NUMBERS_AT_ONCE", 2 * one)
    for whole, grouped, seen in zip(together, stack(waveforms, lengths), widths, strict=True):
        assert len(seen) > 1 and max(seen) > 1, seen
        assert whole.lengths.tolist() == grouped.lengths.tolist()
        for row, count in enumerate(whole.lengths.tolist()):
            assert torch.allclose(whole.frames[row, :count], grouped.frames[row, :count], atol=1e-5)
    calls = [[*seen] for seen in widths]
    with torch.enable_grad():  # of frozen encoders no gradients are asked for
        stack(waveforms, lengths)
    assert widths == [2 * seen for seen in calls]


def test_groups_are_of_like_length_and_within_the_limit(stack: EncoderStack, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = stack.encoders["whisper"]
    monkeypatch.setattr(long_clips, "NUMBERS_AT_ONCE", 4 * encoder.dim * encoder.frame_count(4 * RATE))
    samples = [int(seconds * RATE) for seconds in (1, 9, 2, 1.9, 0.5, 0.9)]
    assert long_clips._groups_of_like_length(encoder, samples) == [[1], [2, 3], [0, 5, 4]]


@pytest.mark.parametrize("window", ["clip", "full"])
@torch.no_grad()
def test_long_clips_are_encoded_in_equal_parts(config: SimpleNamespace, window: str) -> None:
    stack = EncoderStack.from_config(SimpleNamespace(**{**vars(config), "window": window}))
    whisper, beats = stack.encoders.values()
    long, half = 45 * RATE, 45 * RATE // 2
    waveforms, lengths = noise(2, long), torch.tensor([long, 2 * RATE])
    streams = stack(waveforms, lengths)
    for encoder, stream in zip((whisper, beats), streams, strict=True):
        parts = waveforms[0].view(2, half)
        expected, _ = encoder(parts, torch.tensor([half, half]))
        content = encoder.content_frames(half)
        first, second = expected[0, :content], expected[1, :content]
        missing = half * 50 // RATE - content  # the second part has its place in time, whatever the first gives
        expected = torch.cat([first, first[-1:].expand(missing, -1), second])
        assert stream.lengths[0] == len(expected) == long_clips.joined_frame_count(encoder, long)
        torch.testing.assert_close(stream.frames[0, : len(expected)], expected, atol=1e-4, rtol=0)
        short, count = encoder(waveforms[1:, : 2 * RATE], lengths[1:])
        assert stream.lengths[1] == count[0]
        torch.testing.assert_close(stream.frames[1, : count[0]], short[0], atol=1e-4, rtol=0)
    assert stack.frame_count(long) == align_outputs(streams, stack.frame_rates_hz)[1][0] == 2250


@pytest.mark.parametrize("seconds", [45, 300, 1800])
def test_streams_of_long_clips_do_not_drift_apart(stack: EncoderStack, seconds: int) -> None:
    whisper, beats = (long_clips.joined_frame_count(encoder, seconds * RATE) for encoder in stack.encoders.values())
    assert whisper == stack.frame_count(seconds * RATE) == seconds * 50
    assert 0 <= whisper - beats < 8  # what the last part lacks of a step


@torch.no_grad()
def test_parts_stand_where_they_are_in_time_at_odd_rates_too() -> None:
    """A network whose frames hold the time of their first sample, some missing at the end or one too many."""

    class Clock(base.AudioEncoder):
        dim, frame_rate_hz, max_samples, cut_grain = 1, 24.7, 10 * RATE, 320

        def __init__(self, surplus: int) -> None:
            super().__init__()
            self.surplus = surplus

        def content_frames(self, samples: int) -> int:
            return int(samples * self.frame_rate_hz / RATE) + self.surplus

        frame_count = content_frames

        def forward(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            counts = torch.tensor([self.content_frames(samples) for samples in lengths.tolist()])
            times = torch.arange(int(counts.max())) / self.frame_rate_hz
            return (waveforms[:, :1] + times)[..., None], counts

    seconds = 95
    waveforms = torch.arange(seconds * RATE)[None] / RATE  # each sample is its own time in seconds
    for surplus in (-3, 0, 2):
        encoder = Clock(surplus)
        joined = long_clips.encode_any_length(encoder, waveforms, torch.tensor([seconds * RATE]))
        assert joined.lengths.tolist() == [long_clips.joined_frame_count(encoder, seconds * RATE)]
        times = torch.arange(joined.frames.shape[1]) / encoder.frame_rate_hz
        assert (joined.frames[0, :, 0] - times).abs().max() < (2 + max(0, -surplus)) / encoder.frame_rate_hz


@pytest.mark.parametrize("max_samples", [480_000, 160_000, 159_999])
def test_cuts_are_equal_and_short_enough(max_samples: int) -> None:
    assert cut_points(max_samples, max_samples) == [0, max_samples]
    assert cut_points(10**9, None) == [0, 10**9]
    for samples in (max_samples + 1, 2 * max_samples - 1, 2 * max_samples, 2 * max_samples + 1, 7_777_777, 10**9):
        cuts = cut_points(samples, max_samples)
        sizes = [stop - start for start, stop in itertools.pairwise(cuts)]
        assert sum(sizes) == samples and max(sizes) <= max_samples
        assert max(sizes) - min(sizes) <= 640
        assert all(cut % 320 == 0 for cut in cuts[:-1])

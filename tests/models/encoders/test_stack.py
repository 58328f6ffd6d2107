"""The stack: padding, frozen parts, number types."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from models.connector.fusion import align_outputs
from models.encoders.frame_cache import FrameCache
from models.encoders.stack import EncoderStack
from tests.encoders import LENGTHS, RATE, equal_frames, noise


@torch.no_grad()
def test_padding_is_neutral(stack: EncoderStack) -> None:
    waveforms = noise(8, int(LENGTHS.max()))  # garbage after each clip's end
    together = stack(waveforms, LENGTHS)
    _, aligned_lengths = align_outputs(together, stack.frame_rates_hz)
    for row, samples in enumerate(LENGTHS.tolist()):
        alone = stack(waveforms[row : row + 1, :samples], LENGTHS[[row]])
        for batched, single in zip(together, alone, strict=True):
            count = int(batched.lengths[row])
            assert count == int(single.lengths[0]) == single.frames.shape[1] > 0
            torch.testing.assert_close(batched.frames[row, :count], single.frames[0], atol=1e-4, rtol=0)
        assert aligned_lengths[row] == stack.frame_count(samples)


def test_frozen_encoders_stay_in_eval_and_others_learn(config: SimpleNamespace) -> None:
    stack = EncoderStack.from_config(SimpleNamespace(**{**vars(config), "freeze_beats": False})).train()
    assert stack.frozen == {"whisper": True, "beats": False}
    assert not stack.encoders["whisper"].training and stack.encoders["beats"].training
    streams = stack(noise(2, RATE), torch.tensor([RATE, RATE // 2]))
    assert not streams[0].frames.requires_grad
    streams[1].frames.square().sum().backward()
    assert all(parameter.grad is None for parameter in stack.encoders["whisper"].parameters())
    assert all(parameter.grad is not None for parameter in stack.encoders["beats"].parameters())


def test_frozen_weights_take_the_configured_dtype_and_others_do_not(config: SimpleNamespace) -> None:
    half = EncoderStack.from_config(SimpleNamespace(**{**vars(config), "dtype": "bfloat16"}))
    assert [next(encoder.parameters()).dtype for encoder in half.encoders.values()] == [torch.bfloat16, torch.float32]
    trained = EncoderStack.from_config(
        SimpleNamespace(**{**vars(config), "dtype": "bfloat16", "freeze_whisper": False})
    )
    assert next(trained.encoders["whisper"].parameters()).dtype == torch.float32
    outputs = half(noise(1, RATE), torch.tensor([RATE]))
    assert [output.frames.shape[-1] for output in outputs] == half.dims


def test_autocast_does_not_change_what_frozen_encoders_hear(stack: EncoderStack, tmp_path: Path) -> None:
    waveforms, lengths = noise(2, RATE), torch.tensor([RATE, RATE // 2])
    plain = stack(waveforms, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        assert equal_frames(stack(waveforms, lengths), plain)
        cached = FrameCache(tmp_path, stack).encode(waveforms, lengths)
    assert equal_frames(FrameCache(tmp_path, stack).encode(waveforms, lengths), cached)
    assert all(frames.frames.dtype == torch.float32 for frames in cached)

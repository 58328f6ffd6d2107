"""Encoder outputs on disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from models.encoders import base, frame_cache
from models.encoders.frame_cache import FrameCache
from models.encoders.stack import EncoderStack
from tests.encoders import RATE, equal_frames, noise


def test_cache_returns_what_the_stack_does(
    stack: EncoderStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waveforms, lengths = noise(3, RATE), torch.tensor([RATE, RATE // 20, RATE // 2])
    cache = FrameCache(tmp_path, stack)
    first = cache.encode(waveforms, lengths)
    for cached, direct in zip(first, stack(waveforms, lengths), strict=True):
        assert torch.equal(cached.lengths, direct.lengths)
        torch.testing.assert_close(cached.frames, direct.frames, atol=1e-4, rtol=0)
    files = sorted(tmp_path.rglob("*.*"))
    assert [file.suffix for file in files] == [".safetensors"] * 3

    files[0].write_bytes(files[0].read_bytes()[:100])  # a damaged file is encoded again
    assert equal_frames(cache.encode(waveforms, lengths), first)
    order = torch.tensor([2, 0])  # another batch, same values
    again = cache.encode(waveforms[order], lengths[order])
    assert torch.equal(again[0].frames[1], first[0].frames[0])
    monkeypatch.setattr(EncoderStack, "forward", lambda *_: pytest.fail("every clip is in the cache"))
    assert equal_frames(cache.encode(waveforms, lengths), first)


def test_cache_is_keyed_by_all_that_shapes_frames(
    config: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = EncoderStack.from_config(config)
    seen = {stack.fingerprint}
    assert FrameCache(tmp_path, stack).folder == tmp_path / stack.fingerprint
    with monkeypatch.context() as patched:  # code whose numerics are others
        patched.setattr(base, "FRAMES_VERSION", base.FRAMES_VERSION + 1)
        seen.add(stack.fingerprint)
    with monkeypatch.context() as patched:
        patched.setattr(EncoderStack, "min_samples", RATE)
        seen.add(stack.fingerprint)
    assert stack.fingerprint in seen
    with torch.no_grad():
        stack.encoders["beats"].layer_norm.bias += 1e-3
    seen.add(stack.fingerprint)
    assert len(seen) == 4


def test_no_cache_of_trained_encoders(config: SimpleNamespace, tmp_path: Path) -> None:
    trained = EncoderStack.from_config(SimpleNamespace(**{**vars(config), "freeze_whisper": False}))
    with pytest.raises(ValueError, match=r"cache_encoder_outputs is .*, but the encoder whisper is trained"):
        FrameCache(tmp_path, trained)
    assert FrameCache.where_possible(tmp_path, trained) is None
    assert FrameCache.where_possible(None, EncoderStack.from_config(config)) is None
    assert not list(tmp_path.iterdir())


def test_a_cache_on_a_full_disk_goes_on_without(
    stack: EncoderStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waveforms, lengths = noise(2, RATE), torch.tensor([RATE, RATE])
    expected = FrameCache(tmp_path / "roomy", stack).encode(waveforms, lengths)

    def full(tensors: dict, path: Path) -> None:
        path.write_bytes(b"half a file")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(frame_cache, "save_file", full)
    cache = FrameCache(tmp_path / "full", stack)
    for _ in range(2):
        assert equal_frames(cache.encode(waveforms, lengths), expected)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left" in caplog.text and "datasets.cache_encoder_outputs" in caplog.text
    assert not [path for path in (tmp_path / "full").rglob("*") if path.is_file()]

"""The stack: short and long clips, alignment in time, frozen parts, the cache."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from configs.sections import ENCODER_PATHS, ModelConfig
from models.connector.fusion import align_streams, join_streams
from models.encoders import base, frame_cache, long_clips
from models.encoders.frame_cache import FrameCache
from models.encoders.long_clips import cut_points
from models.encoders.stack import EncoderStack
from models.encoders.table import ENCODERS, OWN_RULES, build_encoder
from models.frames import Frames
from tests import tiny

RATE = 16_000
LENGTHS = torch.tensor([int(seconds * RATE) for seconds in (0.05, 0.2, 0.31, 0.5, 1.0, 1.37, 2.0, 3.0)])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("encoders")
    paths = {f"{entry.path_key}": None for entry in ENCODERS.values()}
    freeze = {f"{entry.freeze_key}": True for entry in ENCODERS.values()}
    paths |= {"whisper_path": str(tiny.write_whisper(folder / "whisper"))}
    paths |= {"beats_path": str(tiny.write_beats(folder / "beats.pt"))}
    whole = {"encoder_quantization": "none", "whisper_layers": None, "beats_layers": None}
    return SimpleNamespace(**paths, **freeze, **whole, window="clip", legacy="off", token=None, dtype="auto")


@pytest.fixture(scope="module")
def stack(config: SimpleNamespace) -> EncoderStack:
    return EncoderStack.from_config(config)


def _noise(rows: int, samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(rows, samples, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_padding_is_neutral(stack: EncoderStack) -> None:
    waveforms = _noise(8, int(LENGTHS.max()))  # garbage after each clip's end
    together = stack(waveforms, LENGTHS)
    joined = join_streams(together, stack.frame_rates_hz)
    for row, samples in enumerate(LENGTHS.tolist()):
        alone = stack(waveforms[row : row + 1, :samples], LENGTHS[[row]])
        for batched, single in zip(together, alone, strict=True):
            count = int(batched.lengths[row])
            assert count == int(single.lengths[0]) == single.frames.shape[1] > 0
            torch.testing.assert_close(batched.frames[row, :count], single.frames[0], atol=1e-4, rtol=0)
        assert joined.lengths[row] == stack.frame_count(samples)


@torch.no_grad()
@pytest.mark.parametrize("longest_s", [3, 32])  # the latter is over what Whisper takes at once
def test_groups_of_clips_give_what_the_batch_gives(
    stack: EncoderStack, monkeypatch: pytest.MonkeyPatch, longest_s: int
) -> None:
    lengths = torch.cat([LENGTHS[:-1], torch.tensor([longest_s * RATE])])
    waveforms = _noise(8, int(lengths.max()))
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
    waveforms, lengths = _noise(2, long), torch.tensor([long, 2 * RATE])
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
    assert stack.frame_count(long) == join_streams(streams, stack.frame_rates_hz).lengths[0] == 2250


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


def test_streams_are_aligned_in_time() -> None:
    fast = Frames(torch.ones(2, 5, 1), torch.tensor([5, 2]))
    slow = Frames(torch.tensor([[1.0, 2.0, 3.0], [4.0, 9.0, 9.0]])[..., None], torch.tensor([3, 1]))
    (first, second), lengths = align_streams([fast, slow], [50.0, 25.0])
    assert lengths.tolist() == [6, 2]
    assert first[..., 0].tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]]
    assert second[..., 0].tolist() == [[1, 1, 2, 2, 3, 3], [4, 4, 0, 0, 0, 0]]
    joined = join_streams([fast, slow], [50.0, 25.0])
    assert joined.frames.shape == (2, 6, 2) and joined.lengths.tolist() == [6, 2]


def test_odd_rates_keep_lengths_of_a_batch_and_alone_equal() -> None:
    counts = torch.arange(1, 40)
    slow = Frames(torch.arange(40.0).expand(39, 40)[..., None], counts)
    fast = Frames(torch.zeros(39, 1, 1), torch.ones(39, dtype=torch.long))
    (_, together), lengths = align_streams([fast, slow], [50.0, 12.3])
    for row, count in enumerate(counts.tolist()):
        one = [Frames(s.frames[row : row + 1, : s.lengths[row]], s.lengths[[row]]) for s in (fast, slow)]
        (_, alone), length = align_streams(one, [50.0, 12.3])
        assert torch.equal(together[row, : length[0]], alone[0])
        assert lengths[row] == length[0] == max(1, round(count * 50 / 12.3))
        assert alone[0, -1, 0] == count - 1


def test_frozen_encoders_stay_in_eval_and_others_learn(config: SimpleNamespace) -> None:
    stack = EncoderStack.from_config(SimpleNamespace(**{**vars(config), "freeze_beats": False})).train()
    assert stack.frozen == {"whisper": True, "beats": False}
    assert not stack.encoders["whisper"].training and stack.encoders["beats"].training
    streams = stack(_noise(2, RATE), torch.tensor([RATE, RATE // 2]))
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
    joined = join_streams(half(_noise(1, RATE), torch.tensor([RATE])), half.frame_rates_hz)
    assert joined.frames.shape[-1] == sum(half.dims)


def test_every_encoder_of_the_table_has_its_keys() -> None:
    assert tuple(entry.path_key for entry in ENCODERS.values()) == ENCODER_PATHS
    assert all(getattr(ModelConfig(), entry.freeze_key) is True for entry in ENCODERS.values())
    assert all(getattr(ModelConfig(), entry.path_key) is None for entry in ENCODERS.values())


def test_a_path_to_another_kind_of_encoder_is_an_error(config: SimpleNamespace, tmp_path: Path) -> None:
    folder = tiny.write_hf_encoder(tmp_path, "hubert base")
    wrong = SimpleNamespace(**{**vars(config), "wavlm_path": str(folder)})
    with pytest.raises(ValueError, match=r"model\.wavlm_path: '.*' is of type 'hubert'; expected wavlm"):
        EncoderStack.from_config(wrong)
    stack = EncoderStack.from_config(SimpleNamespace(**{**vars(config), "hubert_path": str(folder)}))
    assert list(stack.encoders) == ["whisper", "beats", "hubert"]


def test_errors_list_what_there_is(config: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="encoder 'wispher' is not known; expected one of whisper, beats"):
        build_encoder("wispher", config, OWN_RULES)
    nothing = SimpleNamespace(**{**vars(config), "whisper_path": None, "beats_path": None})
    with pytest.raises(ValueError, match=r"no audio encoder; set at least one of model\.whisper_path"):
        EncoderStack.from_config(nothing)
    with pytest.raises(ValueError, match=r"encoder 'beats' has no weights; set model\.beats_path"):
        build_encoder("beats", nothing, OWN_RULES)


def _equal(first: list[Frames], second: list[Frames]) -> bool:
    return all(
        torch.equal(a.lengths, b.lengths) and torch.equal(a.frames, b.frames)
        for a, b in zip(first, second, strict=True)
    )


def test_cache_returns_what_the_stack_does(
    stack: EncoderStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waveforms, lengths = _noise(3, RATE), torch.tensor([RATE, RATE // 20, RATE // 2])
    cache = FrameCache(tmp_path, stack)
    first = cache.encode(waveforms, lengths)
    for cached, direct in zip(first, stack(waveforms, lengths), strict=True):
        assert torch.equal(cached.lengths, direct.lengths)
        torch.testing.assert_close(cached.frames, direct.frames, atol=1e-4, rtol=0)
    files = sorted(tmp_path.rglob("*.*"))
    assert [file.suffix for file in files] == [".safetensors"] * 3

    files[0].write_bytes(files[0].read_bytes()[:100])  # a damaged file is encoded again
    assert _equal(cache.encode(waveforms, lengths), first)
    order = torch.tensor([2, 0])  # other company, same values
    again = cache.encode(waveforms[order], lengths[order])
    assert torch.equal(again[0].frames[1], first[0].frames[0])
    monkeypatch.setattr(EncoderStack, "forward", lambda *_: pytest.fail("every clip is in the cache"))
    assert _equal(cache.encode(waveforms, lengths), first)


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


def test_autocast_does_not_change_what_frozen_encoders_hear(stack: EncoderStack, tmp_path: Path) -> None:
    waveforms, lengths = _noise(2, RATE), torch.tensor([RATE, RATE // 2])
    plain = stack(waveforms, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        assert _equal(stack(waveforms, lengths), plain)
        cached = FrameCache(tmp_path, stack).encode(waveforms, lengths)
    assert _equal(FrameCache(tmp_path, stack).encode(waveforms, lengths), cached)
    assert all(frames.frames.dtype == torch.float32 for frames in cached)


def test_a_cache_on_a_full_disk_goes_on_without(
    stack: EncoderStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waveforms, lengths = _noise(2, RATE), torch.tensor([RATE, RATE])
    expected = FrameCache(tmp_path / "roomy", stack).encode(waveforms, lengths)

    def full(tensors: dict, path: Path) -> None:
        path.write_bytes(b"half a file")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(frame_cache, "save_file", full)
    cache = FrameCache(tmp_path / "full", stack)
    for _ in range(2):
        assert _equal(cache.encode(waveforms, lengths), expected)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left" in caplog.text and "datasets.cache_encoder_outputs" in caplog.text
    assert not [path for path in (tmp_path / "full").rglob("*") if path.is_file()]

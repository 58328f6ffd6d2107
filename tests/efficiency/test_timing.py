"""Times: what is timed is what generation runs, and every part of it is measured, once, whatever the encoders."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import load_config
from efficiency import timing
from efficiency.gauges import Memory
from efficiency.limits import count_work
from models import SALMONN, build_model
from models.decoding.engine import DecodeEngine
from models.decoding.step_graphs import StepGraphs
from models.encoders import beats, whisper
from models.encoders.base import Features
from tests.tiny import HF_ENCODERS, TinyProject, write_ced, write_hf_encoder

STEPS = 4


@pytest.fixture(scope="module")
def model(shared_tiny_project: TinyProject) -> SALMONN:
    return build_model(load_config(shared_tiny_project.config).model)


@pytest.fixture
def work() -> timing.TimedClip:
    return timing.TimedClip(
        waveform=timing.synthetic_clip(0.8),
        prompt="<Speech><SpeechHere></Speech> Write down what is said.",
        decode_steps=STEPS,
        iterations=2,
        warmup=1,
    )


def greedy(model: SALMONN, work: timing.TimedClip, new_tokens: int) -> list[int]:
    """What generation itself decodes, ends of sequence forbidden."""
    lengths = torch.tensor([len(work.waveform)])
    (generation,) = model.generate(
        work.waveform[None],
        lengths,
        [work.prompt],
        return_details=True,
        num_beams=1,
        max_new_tokens=new_tokens,
        min_length=new_tokens,
    )
    return [int(token) for token in generation.tokens]


def test_spread_orders_values() -> None:
    spread = timing.Spread.of([3.0, 1.0, 2.0, 10.0])
    assert (spread.median, spread.minimum, spread.mean, spread.count) == (2.5, 1.0, 4.0, 4)
    assert 3.0 < spread.p90 <= 10.0


def test_synthetic_clip_is_seeded_and_in_range() -> None:
    clip = timing.synthetic_clip(0.5)
    assert clip.shape == (8000,) and clip.dtype == torch.float32
    assert 0.2 < clip.abs().max() <= 1
    assert torch.equal(clip, timing.synthetic_clip(0.5))
    assert not torch.equal(clip, timing.synthetic_clip(0.5, seed=1))


def test_first_token_is_the_one_that_generation_gives(model: SALMONN, work: timing.TimedClip) -> None:
    token, _ = timing.first_token(model, work)
    assert token.tolist() == greedy(model, work, 1)


def test_every_iteration_tokenises_the_prompt_and_reuses_the_fixed_text(
    model: SALMONN, work: timing.TimedClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    original = model.text.tokenizer.encode
    monkeypatch.setattr(
        model.text.tokenizer, "encode", lambda text, **options: encoded.append(text) or original(text, **options)
    )
    model.engine.prefixes.clear()
    reused = timing.reuse_prefix(model, work)
    before, after = (
        piece[0] for piece in (model.text.batch([work.prompt]).before, model.text.batch([work.prompt]).after)
    )
    assert reused == len(before) > 0
    encoded.clear()
    hits = model.engine.prefixes.hits
    for _ in range(3):
        timing.first_token(model, work)
    assert len(encoded) == 3 * 2 and model.engine.prefixes.hits == hits + 3
    counted = count_work(model, lambda: timing.first_token(model, work), STEPS)
    model.engine.prefixes.clear()
    whole = count_work(model, lambda: timing.first_token(model, work), STEPS)
    assert counted.flops["prefill"] < whole.flops["prefill"] and len(after) > 0


def test_decode_runs_real_steps_and_the_cache_grows(
    model: SALMONN, work: timing.TimedClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = greedy(model, work, STEPS)
    fed: list[int] = []
    original = DecodeEngine.step

    def watched(engine: DecodeEngine, token: torch.Tensor, cache: object) -> torch.Tensor:
        fed.append(token.item())
        return original(engine, token, cache)

    monkeypatch.setattr(DecodeEngine, "step", watched)
    token, cache = timing.first_token(model, work)
    before = int(cache.lengths[0])
    seconds = timing.decode(model, token, cache, STEPS, time.perf_counter)
    assert len(seconds) == STEPS and all(second > 0 for second in seconds)
    assert int(cache.lengths[0]) == before + STEPS
    if not model.text.eos_ids & set(fed):  # generation with min_length may not choose an end; here ends are passed over
        assert fed == expected


def test_every_part_is_timed(model: SALMONN, work: timing.TimedClip) -> None:
    start = time.perf_counter()
    parts = timing.parts_of_first_token(model, work, time.perf_counter)
    total = time.perf_counter() - start
    assert list(parts) == [
        "features.whisper",
        "encoder.whisper",
        "features.beats",
        "encoder.beats",
        "connector",
        "assemble",
        "prefill",
        "other",
    ]
    assert all(seconds > 0 for seconds in parts.values())
    assert sum(parts.values()) <= total


def test_parts_add_up_to_the_whole(model: SALMONN, work: timing.TimedClip) -> None:
    ticks = itertools.count()
    parts = timing.parts_of_first_token(model, work, lambda: float(next(ticks)))
    assert "other" in parts and sum(parts.values()) == next(ticks) - 1


@pytest.mark.parametrize("name", ["ced", *HF_ENCODERS])
def test_every_part_of_any_encoder_is_timed(
    shared_tiny_project: TinyProject, work: timing.TimedClip, tmp_path: Path, name: str
) -> None:
    key = {"wav2vec2-bert": "wav2vec2"}.get(name, name.split()[0])
    path = write_ced(tmp_path / "ced.pt") if name == "ced" else write_hf_encoder(tmp_path, name)
    paths = {"whisper_path": None, "beats_path": None, f"{key}_path": str(path)}
    model = build_model(replace(load_config(shared_tiny_project.config).model, **paths))
    parts = timing.parts_of_first_token(model, work, time.perf_counter)
    assert all(seconds > 0 for seconds in parts.values())
    reads_waveforms = name.split()[0] in ("wavlm", "hubert", "wav2vec2")
    encoder = {f"encoder.{key}"} if reads_waveforms else {f"features.{key}", f"encoder.{key}"}
    assert set(parts) == encoder | {"connector", "assemble", "prefill", "other"}
    counted = count_work(model, lambda: timing.first_token(model, work), STEPS)
    assert set(counted.flops) == {f"encoder.{key}", "connector", "prefill"} and min(counted.flops.values()) > 0


@pytest.mark.parametrize("legacy", ["weights", "exact"])
def test_every_part_is_timed_under_the_released_rules(
    shared_tiny_project: TinyProject, work: timing.TimedClip, legacy: str
) -> None:
    model = build_model(replace(load_config(shared_tiny_project.config).model, legacy=legacy))
    assert list(timing.parts_of_first_token(model, work, time.perf_counter)) == [*model.spans, "other"]
    assert all(seconds > 0 for times in timing.contest_times(model, work, time.perf_counter) for seconds in times)


def test_a_part_that_is_not_measured_is_an_error(
    model: SALMONN, work: timing.TimedClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    def features(encoder: beats.BEATs, waveforms: torch.Tensor, lengths: torch.Tensor) -> Features:
        """Without a span."""
        return beats.kaldi_fbank(waveforms, lengths), beats.fbank_lengths(lengths)

    monkeypatch.setattr(beats.BEATs, "features", features)
    with pytest.raises(RuntimeError, match=r"^features\.beats was not measured: no span"):
        timing.parts_of_first_token(model, work, time.perf_counter)
    with pytest.raises(RuntimeError, match=r"^features\.beats was not measured"):
        count_work(model, lambda: timing.first_token(model, work), STEPS)


def test_contest_times_leave_whispers_features_out(
    model: SALMONN, work: timing.TimedClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    functions = {"whisper": (whisper, "log_mel"), "beats": (beats, "kaldi_fbank")}
    calls = dict.fromkeys(functions, 0)
    for encoder, (owner, name) in functions.items():
        original = getattr(owner, name)

        def counted(*args: object, encoder: str = encoder, original: object = original, **kwargs: object) -> object:
            calls[encoder] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)
    ttft, tpot = timing.contest_times(model, work, time.perf_counter)
    assert len(ttft) == len(tpot) == work.iterations
    assert calls == {"whisper": 1, "beats": 1 + work.warmup + work.iterations}


@pytest.mark.parametrize(("seconds", "parts"), [(0.8, 1), (61.0, 3)])
@torch.no_grad()
def test_ready_features_change_no_frame(model: SALMONN, work: timing.TimedClip, seconds: float, parts: int) -> None:
    work = replace(work, waveform=timing.synthetic_clip(seconds))
    features = timing.contest_features(model, work)
    assert sum(len(spectra) for spectra, _ in features) == parts
    waiting = iter(features)
    clip = work.waveform[None], torch.tensor([len(work.waveform)])
    frames = model.encode_frames(*clip, lambda encoder, *_: next(waiting) if encoder.name == "whisper" else None)
    assert next(waiting, None) is None
    for ready, expected in zip(frames, model.encode_frames(*clip), strict=True):
        assert torch.equal(ready.frames, expected.frames) and torch.equal(ready.lengths, expected.lengths)


def test_every_round_goes_through_the_same_graphs(
    model: SALMONN, work: timing.TimedClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    replays: list[str] = []

    def capture(body: Callable[[], torch.Tensor], changed: Sequence[torch.Tensor], _: object) -> object:
        kind = "step" if changed else "prompt"
        return lambda: (replays.append(kind), body())[1]

    monkeypatch.setattr(model, "engine", DecodeEngine(model.llm, graphs=StepGraphs(capture)))
    monkeypatch.setattr(timing, "warmup_rounds", lambda *_: timing.CAPTURED_AFTER - 1)
    timing.contest_times(model, work, time.perf_counter)
    rounds = timing.CAPTURED_AFTER - 1 + work.iterations
    assert replays.count("step") == rounds and replays.count("prompt") == work.iterations


def test_what_graphs_compute_in_counts_as_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = {"device": 0, "total_size": 5 << 30, "allocated_size": 1 << 30}
    segments = [shared | {"segment_pool_id": pool, "device": device} for pool, device in (((0, 0), 0), ((0, 1), 0))]
    segments.append(segments[1] | {"device": 1})
    for name, face in {
        "init": lambda: None,
        "max_memory_allocated": lambda device: 2 << 30,
        "memory_snapshot": lambda: segments,
    }.items():
        monkeypatch.setattr(torch.cuda, name, face)
    assert Memory(torch.device("cuda:0")).peak_gib() == 2 + 4


def test_peak_memory_can_be_reset() -> None:
    memory = Memory(torch.device("cpu"))
    block = np.ones(30_000_000)  # 0.22 GiB
    high = memory.peak_gib()
    assert high >= memory.now_gib() > 0
    del block
    memory.reset()
    if not memory.resettable:
        pytest.skip("this system cannot reset the peak of the resident set")
    assert memory.peak_gib() < high - 0.1
    block = np.ones(30_000_000)
    del block
    assert memory.peak_gib() > high - 0.1

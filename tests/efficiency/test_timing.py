"""Efficiency: what is timed is what generation runs, every part is counted once, and the report is whole."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import evaluate_efficiency as efficiency
from configs.schema import load_config
from efficiency import timing
from efficiency.gauges import Memory
from efficiency.limits import count_work
from efficiency.report import published_rows
from models import SALMONN, build_model
from models.decoding import engine
from models.decoding.step_graphs import StepGraphs
from support.tables import format_table
from tests.tiny import TinyProject

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
    model.llm.prefixes.clear()
    reused = timing.reuse_prefix(model, work)
    before, after = (
        piece[0] for piece in (model.text.batch([work.prompt]).before, model.text.batch([work.prompt]).after)
    )
    assert reused == len(before) > 0
    encoded.clear()
    hits = model.llm.prefixes.hits
    for _ in range(3):
        timing.first_token(model, work)
    assert len(encoded) == 3 * 2 and model.llm.prefixes.hits == hits + 3
    counted = count_work(model, lambda: timing.first_token(model, work), STEPS)
    model.llm.prefixes.clear()
    whole = count_work(model, lambda: timing.first_token(model, work), STEPS)
    assert counted.flops["prefill"] < whole.flops["prefill"] and len(after) > 0


def test_decode_runs_real_steps_and_the_cache_grows(
    model: SALMONN, work: timing.TimedClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = greedy(model, work, STEPS)
    fed: list[int] = []
    original = engine.decode_step

    def watched(llm: object, token: torch.Tensor, cache: object) -> torch.Tensor:
        fed.append(token.item())
        return original(llm, token, cache)

    monkeypatch.setattr(engine, "decode_step", watched)
    token, cache = timing.first_token(model, work)
    before = int(cache.lengths[0])
    seconds = timing.decode(model, token, cache, STEPS, time.perf_counter)
    assert len(seconds) == STEPS and all(second > 0 for second in seconds)
    assert int(cache.lengths[0]) == before + STEPS
    if not model.text.eos_ids & set(fed):  # generation with min_length may not choose an end; here ends are passed over
        assert fed == expected


def test_every_part_is_timed_and_nothing_stays_wrapped(model: SALMONN, work: timing.TimedClip) -> None:
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    prefill = engine.prefill
    with timing.timed_parts(model, time.perf_counter) as parts:
        start = time.perf_counter()
        timing.first_token(model, work)
        total = time.perf_counter() - start
    assert set(parts) == {
        "features.whisper",
        "features.beats",
        "encoder.whisper",
        "encoder.beats",
        "connector",
        "assemble",
        "prefill",
    }
    assert all(seconds > 0 for seconds in parts.values())
    assert sum(parts.values()) <= total
    assert engine.prefill is prefill
    assert {name: set(vars(module)) for name, module in model.named_modules()} == {
        name: set(attributes) for name, attributes in before.items()
    }


def test_parts_add_up_to_the_whole(model: SALMONN, work: timing.TimedClip) -> None:
    ticks = itertools.count()
    parts = timing.parts_of_first_token(model, work, lambda: float(next(ticks)))
    assert "other" in parts and sum(parts.values()) == next(ticks) - 1


def test_contest_times_leave_whispers_features_out(
    model: SALMONN, work: timing.TimedClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = dict.fromkeys(timing.FEATURES, 0)
    for encoder, (owner, name) in timing.FEATURES.items():
        original = getattr(owner, name)

        def counted(*args: object, encoder: str = encoder, original: object = original, **kwargs: object) -> object:
            calls[encoder] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)
    ttft, tpot = timing.contest_times(model, work, time.perf_counter)
    assert len(ttft) == len(tpot) == work.iterations
    assert calls == {"whisper": 1, "beats": 1 + work.warmup + work.iterations}


def test_every_round_goes_through_the_same_graphs(
    model: SALMONN, work: timing.TimedClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    replays: list[str] = []

    def capture(body: Callable[[], torch.Tensor], changed: Sequence[torch.Tensor], _: object) -> object:
        kind = "step" if changed else "prompt"
        return lambda: (replays.append(kind), body())[1]

    monkeypatch.setattr(model.llm, "graphs", StepGraphs(capture))
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


def test_report_is_whole(shared_tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, timing.synthetic_clip(0.6).numpy(), 16_000)
    out = tmp_path / "new" / "efficiency.json"
    arguments = ["--cfg-path", str(shared_tiny_project.config), "--out", str(out), "--clip", str(clip)]
    arguments += ["--num_it", "2", "--num_warmup", "1", "--decode-steps", str(STEPS)]
    assert efficiency.main([*arguments, "--options", "run.seed=5"]) == 0

    report = json.loads(out.read_text())
    for name in ("ttft_s", "tpot_s", "generate_s", "contest_ttft_s", "contest_tpot_s"):
        assert 0 < report[name] == report["spread"][name]["median"] <= report["spread"][name]["p90"]
    assert report["spread"]["ttft_s"]["count"] == report["iterations"] == 2
    for name in ("peak_gib", "load_peak_gib", "loaded_gib", "before_load_gib", "contest_peak_gib", "rtfx"):
        assert math.isfinite(report[name]) and report[name] > 0, name
    assert report["clip"] == {"source": str(clip), "seconds": 0.6, "window": "clip"}
    assert {"features.whisper", "encoder.beats", "connector", "prefill", "other"} <= set(report["ttft_parts_s"])
    assert report["reused_prefix_tokens"] > 0
    limits = report["limits"]["figures"]
    for name, measured in (("ttft_s", report["ttft_s"]), ("tpot_s", report["tpot_s"])):
        assert limits[name]["measured_s"] == measured
        assert limits[name]["ratio"] == pytest.approx(measured / limits[name]["limit_s"])
    assert {"encoder.whisper", "encoder.beats", "connector", "prefill"} <= set(limits)
    assert report["machine"]["name"] and report["versions"]["torch"] and report["config"]["run"]["seed"] == 5
    assert report["config"]["model"]["token"] is None

    printed = capsys.readouterr().out
    for row in published_rows():
        assert f"| {row['name']} " in printed
    assert report["kernel"].endswith(" linear, float32, cpu") and report["kernel"] in printed
    assert report["lora"] == "merged into the weights"
    assert "unstated 48.5" in printed and str(out) in printed


def test_user_errors_are_sentences(
    shared_tiny_project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["--cfg-path", str(shared_tiny_project.config)]
    assert efficiency.main([*config, "--task", "singing"]) == 1
    assert "singing" in capsys.readouterr().err
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"not audio")
    assert efficiency.main([*config, "--clip", str(broken)]) == 1
    assert "broken.wav" in capsys.readouterr().err
    assert efficiency.main([*config, "--clip", "nowhere.wav"]) == 1
    assert capsys.readouterr().err == "error: --clip nowhere.wav: no such file; expected an audio file\n"
    assert efficiency.main([*config, "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: [Errno 21] Is a directory")
    assert efficiency.main([*config, "--device", "gpu"]) == 1
    assert "'gpu': no such device" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        efficiency.main([*config, "--iterations", "0"])
    assert "--iterations/--num_it: 0; expected at least 1" in capsys.readouterr().err


def test_table_is_aligned() -> None:
    table = format_table(["a", "long header"], [["x", None], ["wide cell", 1.5]])
    assert len({len(line) for line in table.splitlines()}) == 1
    assert "–" in table and "1.5" in table

"""What CUDA graphs and streams must not change. Capturing itself needs CUDA; all that is around it does not."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from configs.schema import load_config
from models import SALMONN, build_model
from models.decoding.engine import DecodeEngine
from models.decoding.step_graphs import StepGraphs
from models.encoders.base import REPLAYED_FRAMES, AudioEncoder
from models.encoders.beats import BEATs
from models.encoders.ced import CED, CEDConfig
from models.encoders.frame_cache import FrameCache
from models.encoders.stack import EncoderStack
from models.encoders.whisper import WhisperEncoder
from models.runtime import cuda_graphs, cuda_streams
from models.runtime.cuda_graphs import KEPT, PATIENCE, CudaCapture, Replays, alike
from tests import tiny
from tests.clips import PROMPTS, alone, mixed_clips

RATE = 16_000


def replaying(captured: list):
    """Takes a computation for captured and repeats it line by line; notes how often."""

    def capture(body, changed, device):
        captured.append(body)
        return body

    return capture


# A computation


@torch.no_grad()
def test_a_shape_is_captured_when_it_is_met_again() -> None:
    layer, captured = nn.Linear(3, 2), []
    replays = Replays(replaying(captured))
    for size, count in ((1, 0), (1, 1), (2, 1), (1, 1), (2, 2), (2, 2)):
        values = torch.randn(size, 3)
        got = replays.run(layer, layer.forward, values)
        assert len(captured) == len(replays) == count
        assert got is None or torch.equal(got, layer(values))
    layer.weight.data = layer.weight.data.clone()  # graphs would read the old ones
    assert replays.run(layer, layer.forward, values) is None and not len(replays)
    for size in range(KEPT + 3):
        for _ in range(2):
            replays.run(layer, layer.forward, torch.randn(1 + size, 3))
    assert len(replays) == KEPT
    assert len(copy.deepcopy(replays)) == 0
    with torch.enable_grad():
        assert replays.run(layer, layer.forward, values) is None


@torch.no_grad()
def test_graphs_in_use_do_not_make_room() -> None:
    layer, captured = nn.Linear(3, 2), []
    replays = Replays(replaying(captured))
    for size in [1 + number % (KEPT + 4) for number in range(PATIENCE)]:  # more shapes in turn than there are graphs
        replays.run(layer, layer.forward, torch.randn(size, 3))
    assert len(captured) == KEPT
    new = torch.randn(99, 3)
    assert replays.run(layer, layer.forward, new) is None
    for _ in range(PATIENCE):
        replays.run(layer, layer.forward, torch.randn(2, 3))
    assert torch.equal(replays.run(layer, layer.forward, new), layer(new))
    assert len(captured) == KEPT + 1 and len(replays) == KEPT


@torch.no_grad()
def test_what_cannot_be_captured_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(body, changed, device):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    layer = nn.Linear(3, 2)
    replays = Replays(refuse)
    with caplog.at_level(logging.WARNING):
        assert [replays.run(layer, layer.forward, torch.zeros(1, 3)) for _ in range(4)] == [None] * 4
    assert [record.message for record in caplog.records] == [
        "Linear: runs without CUDA graphs: operation not permitted when stream is capturing"
    ]

    def too_large(body, changed, device):
        raise torch.cuda.OutOfMemoryError("too much")

    replays = Replays(too_large)
    replays.run(layer, layer.forward, torch.zeros(1, 3))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        replays.run(layer, layer.forward, torch.zeros(1, 3))


def test_results_are_compared_as_a_whole() -> None:
    values = torch.tensor([100.0, 0.5, torch.nan, torch.inf])
    assert alike(values + 1, values)
    assert not alike(values + 3, values)
    assert not alike(torch.tensor([100.0, 0.5, 0.0, torch.inf]), values)
    assert alike(torch.empty(0), torch.empty(0))


class FakeGraph:
    """A `CUDAGraph` that does at replay what `wrong` says."""

    wrong = 0.0

    def replay(self) -> None:
        FakeGraph.result.add_(self.wrong)


def fake_cuda(monkeypatch: pytest.MonkeyPatch, **faces: object) -> None:
    for name, fake in {"graph_pool_handle": lambda: (0, 1), "CUDAGraph": FakeGraph, **faces}.items():
        monkeypatch.setattr(torch.cuda, name, fake)


@pytest.mark.parametrize("wrong", [0.0, 5.0])
def test_a_graph_is_checked_before_it_is_used(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    @contextmanager
    def anything(*_, **__):
        yield

    stream = SimpleNamespace(wait_stream=lambda other: None, device=torch.device("cpu"))
    here = {"current_stream": lambda: stream, "Stream": lambda device: stream}
    fake_cuda(monkeypatch, **here, stream=anything, device=anything, graph=anything)
    monkeypatch.setattr(FakeGraph, "wrong", wrong)
    count = torch.zeros(2)

    def body() -> torch.Tensor:
        assert not torch.is_autocast_cache_enabled()  # a graph must not read casts that go with autocast's context
        count.add_(1)
        FakeGraph.result = count * 2
        return FakeGraph.result

    capture = CudaCapture()
    if wrong:
        with pytest.raises(RuntimeError, match="other values"):
            capture(body, [count], count.device)
    else:
        assert torch.equal(capture(body, [count], count.device)(), torch.full((2,), 2.0))
        assert torch.equal(count, torch.zeros(2))  # what it changes is left as it was
    assert torch.is_autocast_cache_enabled()


def test_a_failed_capture_leaves_the_stream_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    here, aside = (SimpleNamespace(wait_stream=lambda other: None, device=torch.device("cpu")) for _ in range(2))
    current = [here]

    @contextmanager
    def on(stream: SimpleNamespace):
        before, current[0] = current[0], stream
        try:
            yield
        finally:
            current[0] = before

    class Stays:
        """Torch's own context of a capture: an invalid one raises before the stream is restored."""

        def __init__(self, graph: object, stream: SimpleNamespace, **_: object) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            current[0] = self.stream

        def __exit__(self, *_: object) -> None:
            raise RuntimeError("operation failed due to a previous error during capture")

    fake_cuda(monkeypatch, current_stream=lambda: current[0], stream=on, graph=Stays)
    monkeypatch.setattr(cuda_graphs, "side_stream", lambda device, index: aside)
    with pytest.raises(RuntimeError, match="previous error"):
        CudaCapture()._captured(lambda: torch.zeros(1), ())
    assert current == [here]


# Encoders


@pytest.fixture(scope="module", params=["whisper", "whisper full", "beats", "ced", "ced frequency-major"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AudioEncoder:
    folder = tmp_path_factory.mktemp("graphs")
    name, _, kind = request.param.partition(" ")
    if name == "whisper":
        tiny.write_whisper(folder)
        return WhisperEncoder.from_pretrained(folder, window=kind or "clip")
    if name == "beats":
        tiny.write_beats(folder / "beats.pt")
        return BEATs.from_checkpoint(folder / "beats.pt")
    torch.manual_seed(0)
    return CED(CEDConfig(embed_dim=32, depth=2, num_heads=2, frequency_major=bool(kind))).eval()


@torch.no_grad()
def test_padding_to_the_widths_of_graphs_changes_no_frame(encoder: AudioEncoder) -> None:
    seconds = ((0.6,), (2.2,), (2.0, 0.7), (0.63,), (1.4, 2.1), (2.3,))
    batches = []
    for row in seconds:
        lengths = torch.tensor([int(RATE * length) for length in row])
        noise = 0.1 * torch.randn(len(row), int(lengths.max()), generator=torch.Generator().manual_seed(len(batches)))
        batches.append((noise, lengths))
    expected = [encoder(*batch) for batch in batches]
    captured: list = []
    encoder.replays = Replays(replaying(captured))
    try:
        for _ in range(2):
            for batch, (frames, lengths) in zip(batches, expected, strict=True):
                got, got_lengths = encoder(*batch)
                assert torch.equal(got_lengths, lengths)
                torch.testing.assert_close(got, frames, atol=2e-5, rtol=0)
        assert 1 <= len(captured) == len(encoder.replays) < len(batches)
    finally:
        encoder.replays = None


@torch.no_grad()
def test_much_audio_runs_without_graphs() -> None:
    encoder = SimpleNamespace(replays=SimpleNamespace(run=lambda *_: pytest.fail("too much for a graph")))
    spectrum = torch.zeros(2, 4, REPLAYED_FRAMES // 2 + 1)
    lengths = torch.tensor([1, 2])
    got = AudioEncoder.through_network(encoder, lambda values, _: values, spectrum, lengths, axis=2)
    assert got is spectrum


def test_encoders_have_graphs_in_evaluation_on_cuda_alone(shared_tiny_project: tiny.TinyProject) -> None:
    stack = EncoderStack.from_config(load_config(shared_tiny_project.config).model)
    assert all(encoder.replays is None for encoder in stack.eval().encoders.values())
    for encoder in stack.encoders.values():
        encoder.replays = Replays(replaying([]))
    assert all(encoder.replays is not None for encoder in stack.eval().encoders.values())
    assert all(encoder.replays is None for encoder in stack.train().encoders.values())
    assert not stack.runs_concurrently(torch.zeros(1, RATE))


def test_graphs_can_be_switched_off(shared_tiny_project: tiny.TinyProject) -> None:
    for wanted in (True, False):
        config = load_config(shared_tiny_project.config, overrides=[f"model.cuda_graphs={wanted}"]).model
        model = build_model(config)
        assert model.engine.captures is model.encoders.captures is wanted
    model.engine = DecodeEngine(model.llm, captures=False, graphs=StepGraphs(replaying([])))
    assert model.eval().engine.graphs is None


def test_graphs_are_back_after_counting(model: SALMONN) -> None:
    encoders = list(model.encoders.encoders.values())
    model.engine._graphs, encoders[0].replays = cuda_graphs, replays = StepGraphs(replaying([])), Replays(replaying([]))
    with model.without_cuda_graphs():
        model.eval()
        assert model.engine.graphs is None and all(encoder.replays is None for encoder in encoders)
    assert model.engine.graphs is cuda_graphs and encoders[0].replays is replays and encoders[1].replays is None
    model.train().eval()


@pytest.mark.parametrize("change", [lambda model: model.train().eval(), lambda model: model.double().float()])
def test_training_and_moves_free_what_decoding_keeps(model: SALMONN, change: Callable[[SALMONN], SALMONN]) -> None:
    model = copy.deepcopy(model)
    model.engine = DecodeEngine(model.llm, graphs=StepGraphs(replaying([])))
    waveforms, lengths = mixed_clips()
    model.generate(waveforms, lengths, PROMPTS, num_beams=1, max_new_tokens=2)
    assert len(model.engine.prefixes) > 0 and model.engine.graphs is not None
    change(model)
    assert len(model.engine.prefixes) == 0 and model.engine.graphs is None


class FakeStream:
    """A CUDA stream that only notes the order of things."""

    def __init__(self, name: str, log: list) -> None:
        self.name, self.log, self.device = name, log, torch.device("cpu")

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


def test_work_side_by_side_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    here = FakeStream("here", log)

    @contextmanager
    def on(stream: FakeStream):
        log.append(f"on {stream.name}")
        yield

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: here)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(cuda_streams, "side_stream", lambda device, index: FakeStream(f"side {index}", log))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: log.append(f"read {stream.name}"))
    works = [lambda value=value: (torch.tensor(value),) for value in (1, 2)]
    assert [int(result[0]) for result in cuda_streams.run_concurrently(works, here.device)] == [1, 2]
    assert log == [
        *("side 0 waits for here", "on side 0", "side 1 waits for here", "on side 1"),
        *("here waits for side 0", "read here", "here waits for side 1", "read here"),
    ]


# All of it together


@pytest.fixture(scope="module", params=["qwen3", "gemma3_text"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SALMONN:
    project = tiny.write_project(tmp_path_factory.mktemp(request.param), family=request.param)
    torch.manual_seed(3)
    model = build_model(load_config(project.config).model)
    with torch.no_grad():
        for parameter in model.llm.lora_parameters():
            parameter.normal_(0.0, 0.05)
    return model


@pytest.mark.parametrize("beams", [1, 2])
def test_texts_are_the_same_with_every_cache_and_graph(model: SALMONN, tmp_path, beams: int) -> None:
    waveforms, lengths = mixed_clips(seed=1)
    options = {"num_beams": beams, "max_new_tokens": 8, "repetition_penalty": 1.2, "min_length": 3}
    bare = copy.deepcopy(model).train().eval()  # gives back every graph
    bare.engine.prefixes.max_bytes = 0
    expected = [
        bare.generate(*alone(waveforms, lengths, row), PROMPTS[row : row + 1], **options)[0] for row in range(8)
    ]
    captured: list = []
    model.engine = DecodeEngine(model.llm, graphs=StepGraphs(replaying(captured)))
    for encoder in model.encoders.encoders.values():
        encoder.replays = Replays(replaying(captured))
    cache = FrameCache(tmp_path, model.encoders)
    batches = [(waveforms[rows], lengths[rows], PROMPTS[rows]) for rows in (slice(0, 3), slice(3, 8))]
    for frames in (None, cache.encode, cache.encode):
        results = dict(model.generate_each(batches, at_once=3, frame_source=frames, **options))
        assert [results[row].text for row in range(8)] == expected
        assert model.generate(waveforms, lengths, PROMPTS, **options) == expected
        for row in (0, 5):
            assert model.generate(*alone(waveforms, lengths, row), PROMPTS[row : row + 1], **options) == [expected[row]]
            if beams == 1:
                pieces = model.stream(alone(waveforms, lengths, row)[0][0], PROMPTS[row], **options)
                assert "".join(pieces) == expected[row]
    assert len(captured) > 4 and model.engine.prefixes.hits > 0

"""The program on a simulated CUDA device: devices are not mixed, graphs are captured, results are the CPU's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

import evaluate
import evaluate_efficiency
import train
from benchmarks import gpu_suite
from benchmarks.jobs import run_job
from benchmarks.suite import Job
from configs.schema import load_config
from configs.sections import ModelConfig
from efficiency import limits
from models import SALMONN, build_model
from models.encoders.table import ENCODERS
from models.runtime.cuda_graphs import CudaCapture
from tests import tiny
from tests.pretend_cuda import PretendedCuda, pretend_cuda
from tests.runs import log_of

PROMPTS = ["<Speech><SpeechHere></Speech> Write down what is said."] * 3
LENGTHS = torch.tensor([32_000, 9_000, 22_000])
WAVEFORMS = 0.1 * torch.randn(3, 32_000, generator=torch.Generator().manual_seed(0))
CLIPS = WAVEFORMS, LENGTHS, PROMPTS


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedCuda]:
    """The device, with little to calibrate. Ampere, so that Gemma's weights are bfloat16."""
    monkeypatch.setattr(limits, "MATRIX_SIDE", {"cpu": 32, "cuda": 32})
    monkeypatch.setattr(limits, "BUFFER_BYTES", {"cpu": 1 << 16, "cuda": 1 << 16})
    monkeypatch.setattr(limits, "EMPTY_KERNELS", 5)
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps device and precision for the process' life
    with pretend_cuda((8, 0)) as device:
        yield device
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def config(shared_tiny_project: tiny.TinyProject) -> ModelConfig:
    return dataclasses.replace(load_config(shared_tiny_project.config).model, dtype="float32")


def built(config: ModelConfig, device: str) -> SALMONN:
    torch.manual_seed(0)
    return build_model(config, device).eval()


def answers_agree(config: ModelConfig, *, beams: tuple[int, ...] = (1, 2)) -> PretendedCuda:
    """Generate on the CPU and, several times, on the device; the device, with its counts."""
    model = built(config, "cpu")
    options = [{"num_beams": number, "max_new_tokens": 8, "min_length": 8} for number in beams]
    expected = [model.generate(*CLIPS, **each) for each in options]
    with pretend_cuda((8, 0)) as device:
        model = built(config, "cuda")
        for _ in range(4):  # first without graphs, then captured, then replayed
            assert [model.generate(*CLIPS, **each) for each in options] == expected
    return device


# The device itself


def test_devices_are_kept_apart(cuda: PretendedCuda) -> None:
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    assert there.device == torch.device("cuda:0") and (there + 1).is_cuda and not there.cpu().is_cuda
    with pytest.raises(RuntimeError, match="one device"):
        here + there
    with pytest.raises(RuntimeError, match="one device"):
        here[there.long()]
    assert (there + torch.tensor(2.0)).tolist() == [3.0] * 3  # a number
    assert cuda.waits["tolist"] == 1
    here.to("cuda").zero_()
    assert here.tolist() == [1.0] * 3


def test_a_replay_repeats_what_was_recorded_on_the_memory_of_then(cuda: PretendedCuda) -> None:
    given, total = torch.ones(4, device="cuda"), torch.zeros(4, device="cuda")
    factor = 2.0

    def body() -> torch.Tensor:
        doubled = given * factor
        total.add_(doubled[:2].repeat(2))
        return total.view(2, 2) + doubled.sum()

    replay = CudaCapture()(body, (total,), given.device)
    assert total.tolist() == [0.0] * 4 and cuda.captures == 1
    given.fill_(3.0)
    factor = 100.0  # which the graph does not see
    assert replay().tolist() == [[30.0, 30.0], [30.0, 30.0]]
    assert replay().tolist() == [[36.0, 36.0], [36.0, 36.0]]


@pytest.mark.parametrize(
    "ask",
    [
        lambda given: given.sum().item(),
        lambda given: bool(given.all()),
        lambda given: given[given > 0],
        lambda given: given + torch.tensor([1.0] * 4, device="cuda"),
        lambda given: given.cpu(),
    ],
)
def test_a_capture_lets_nothing_pass_between_host_and_device(cuda: PretendedCuda, ask) -> None:
    given = torch.ones(4, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"), torch.cuda.graph(graph):
        ask(given)


# Models


@pytest.mark.parametrize("family", tiny.LLM_FAMILIES)
def test_answers_of_every_family(config: ModelConfig, tmp_path: Path, family: str, caplog) -> None:
    folder = tiny.write_llm(tmp_path / "llm", family=family)
    device = answers_agree(dataclasses.replace(config, llama_path=str(folder)))
    assert device.captures == 5 and device.replays > 50  # two encoders, a prompt, a step for either number of rows
    assert "without CUDA graphs" not in caplog.text


@pytest.mark.parametrize("changes", [{"window": "full"}, {"legacy": "weights"}, {"legacy": "exact"}], ids=str)
def test_answers_of_other_windows_and_rules(config: ModelConfig, changes: dict, caplog) -> None:
    answers_agree(dataclasses.replace(config, **changes))
    assert "without CUDA graphs" not in caplog.text


@pytest.mark.parametrize("name", tiny.HF_ENCODERS)
def test_answers_of_other_encoders(config: ModelConfig, tmp_path: Path, name: str, caplog) -> None:
    folder = tiny.write_hf_encoder(tmp_path / "encoder", name)
    kind = name.split()[0] if name.split()[0] in ENCODERS else "wav2vec2"
    answers_agree(dataclasses.replace(config, beats_path=None, **{f"{kind}_path": str(folder)}), beams=(1,))
    assert "without CUDA graphs" not in caplog.text


@pytest.mark.parametrize("changes", [{"dtype": "auto"}, {"encoder_quantization": "int8"}], ids=str)
def test_other_types_run_on_the_device(config: ModelConfig, changes: dict, cuda: PretendedCuda, caplog) -> None:
    model = built(dataclasses.replace(config, allow_slow_kernels=True, **changes), "cuda")
    answers = [model.generate(*CLIPS, max_new_tokens=8, min_length=8) for _ in range(4)]
    assert answers == answers[:1] * 4 and cuda.replays > 20
    assert "without CUDA graphs" not in caplog.text


@pytest.mark.parametrize("beams", [1, 3])
def test_finished_rows_are_refilled_in_the_same_graphs(config: ModelConfig, beams: int) -> None:
    batches = [tuple(part[rows] for part in CLIPS) for rows in (slice(0, 2), slice(2, 3), slice(0, 3))]
    options = {"num_beams": beams, "max_new_tokens": 12, "at_once": 2}
    expected = dict(built(config, "cpu").generate_each(batches, **options))
    with pretend_cuda() as device:
        model = built(config, "cuda")
        for _ in range(3):
            got = dict(model.generate_each(batches, **options))
            assert {number: row.text for number, row in got.items()} == {n: row.text for n, row in expected.items()}
    assert device.captures and device.replays > 40


def test_rows_that_finish_early_make_no_graphs_anew(config: ModelConfig) -> None:
    options = {"num_beams": 1, "max_new_tokens": 40, "return_details": True}
    clips = *CLIPS[:2], [PROMPTS[0], "Name the colours. <SpeechHere>", "<SpeechHere> one two three four five"]
    model = built(config, "cpu")
    rows = [row.tokens for row in model.generate(*clips, **options)]
    met = {token: [[*row, token].index(token) for row in rows] for token in {*rows[0], *rows[1], *rows[2]}}
    ends = {max(met, key=lambda token: max(met[token]) - min(met[token]))}
    model.text.eos_ids |= ends
    expected = [row.tokens for row in model.generate(*clips, **options)]
    assert len({len(row) for row in expected}) > 1
    with pretend_cuda():
        model = built(config, "cuda")
        model.text.eos_ids |= ends
        for _ in range(3):
            assert [row.tokens for row in model.generate(*clips, **options)] == expected
        assert {rows for rows, *_ in model.engine.graphs._buffers} == {3}


def test_streamed_text(config: ModelConfig) -> None:
    clip = WAVEFORMS[0], PROMPTS[0]
    expected = "".join(built(config, "cpu").stream(*clip, max_new_tokens=9))
    with pretend_cuda():
        model = built(config, "cuda")
        assert ["".join(model.stream(*clip, max_new_tokens=9)) for _ in range(3)] == [expected] * 3


def test_gradients_are_those_of_the_cpu(config: ModelConfig) -> None:
    def gradients(device: str) -> dict[str, torch.Tensor]:
        model = built(config, device)
        model(*CLIPS, ["one two", "red", "blue fish"]).loss.backward()
        return {name: value.grad.cpu() for name, value in model.named_parameters() if value.grad is not None}

    expected = gradients("cpu")
    with pretend_cuda():
        got = gradients("cuda")
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)


# Programs


@pytest.mark.parametrize("options", [[], ["run.amp=true", "model.dtype=float32"]], ids=str)
def test_training_evaluation_and_efficiency(
    tiny_project: tiny.TinyProject, cuda: PretendedCuda, options: list[str]
) -> None:
    common = ["--cfg-path", str(tiny_project.config)]
    assert train.main([*common, "--options", "run.device=cuda", *options]) == 0
    (folder,) = (path for path in tiny_project.output.rglob("best") if path.is_dir())
    assert all(line["loss"] > 0 for line in log_of(folder.parent) if "loss" in line)

    ours = [*common, "--ckpt", str(folder), "--options", "run.device=cuda"]
    assert evaluate.main([*ours, "--mode", "valid_asr"]) == 0
    before = cuda.replays
    assert evaluate_efficiency.main([*ours, "--decode-steps", "4", "--iterations", "2"]) == 0
    assert cuda.replays > before
    figures = json.loads(next(tiny_project.output.rglob("efficiency.json")).read_text())
    assert figures["tpot_s"] > 0 and figures["limits"]["rates"]["empty_kernel_s"] > 0


def test_the_suite(tmp_path: Path, cuda: PretendedCuda) -> None:
    def here(job: Job, timeout_s: float | None = None) -> dict:
        return run_job(job)

    out = tmp_path / "suite.json"
    systems = ["nlp07", "salmonn_3b"]
    assert gpu_suite.main(["--small", "--device", "cuda", "--systems", *systems, "--out", str(out)], run=here) == 0
    rows = json.loads(out.read_text())["systems"]
    for system in systems:
        assert rows[system]["ratios"]["ttft_s"] > 0 and rows[system]["ratios"]["tpot_s"] > 0
    assert cuda.captures > 0

"""Random weights are read by the lines that read real ones, at every system's shapes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks import random_weights
from benchmarks.bare_machine import PlainYaml
from benchmarks.weights import write_weights
from configs import loading
from configs.schema import load_config
from models import build_model

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "<Speech><SpeechHere></Speech> Write down what is said."


def test_a_small_system_is_written_once_and_generates(tmp_path: Path) -> None:
    config = dataclasses.replace(load_config(ROOT / "configs/salmonn_3b/evaluate.yaml").model, dtype="float32")
    written = write_weights(config, tmp_path, small=True)
    whisper = Path(written.whisper_path)
    before = {file: file.stat().st_mtime_ns for file in whisper.iterdir()}
    assert write_weights(config, tmp_path, small=True) == written
    assert before == {file: file.stat().st_mtime_ns for file in whisper.iterdir()}

    model = build_model(written)
    waveform = 0.1 * torch.randn(1, 12_000, generator=torch.Generator().manual_seed(0))
    options = {"num_beams": 1, "max_new_tokens": 4, "min_length": 4, "return_details": True}
    (answer,) = model.generate(waveform, torch.tensor([12_000]), [PROMPT], **options)
    assert len(answer.tokens) == 4 and all(torch.isfinite(torch.tensor(answer.logprobs)))
    assert len(set(answer.tokens)) > 1 and answer.text.startswith("w")


def test_sizes_of_a_family_have_folders_of_their_own(tmp_path: Path) -> None:
    names = ("meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-3B-Instruct")
    config = load_config(ROOT / "configs/nlp07/evaluate.yaml").model
    paths = [
        write_weights(dataclasses.replace(config, llama_path=name), tmp_path, small=True).llama_path for name in names
    ]
    assert len(set(paths)) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_ced_and_frozen_types(dtype: torch.dtype, tmp_path: Path) -> None:
    config = load_config(ROOT / "configs/nlp07/evaluate.yaml").model
    config = dataclasses.replace(config, dtype=str(dtype).removeprefix("torch."))
    model = build_model(write_weights(config, tmp_path, small=True))
    assert list(model.encoders.encoders) == ["whisper", "ced"]
    assert model.llm.dtype == model.encoders.encoders["whisper"].conv1.weight.dtype == dtype
    assert model.connector.dtype == torch.float32


def test_quantised_copies_are_refused(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs/nlp07/evaluate.yaml").model
    config = dataclasses.replace(config, llama_path="unsloth/Qwen2.5-0.5B-Instruct-bnb-4bit")
    with pytest.raises(ValueError, match=r"model\.llama_path.*stored as nf4"):
        write_weights(config, tmp_path, small=True)


def test_the_command_names_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--cfg-path", str(ROOT / "configs/nlp07/evaluate.yaml"), "--out", str(tmp_path), "--small"]
    assert random_weights.main([*arguments, "--dtype", "float32"]) == 0
    written = [line.split(": ", 1) for line in capsys.readouterr().out.splitlines()]
    assert [key for key, _ in written] == ["model.llama_path", "model.whisper_path", "model.ced_path", "model.ckpt"]
    assert all(Path(path).exists() for _, path in written)


@pytest.mark.parametrize("system", ["nlp07", "smolt", "cv16", "salmonn_3b"])
def test_yaml_without_omegaconf(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ROOT / f"configs/{system}/evaluate.yaml", ["model.dtype=float16", "run.seed=2", "model.ckpt="]
    expected = load_config(*arguments)
    monkeypatch.setattr(loading, "OmegaConf", PlainYaml)
    assert load_config(*arguments) == expected

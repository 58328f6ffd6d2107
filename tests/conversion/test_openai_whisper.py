"""OpenAI's `.pt`: both forms of torch.save, and files that are hostile or something else."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conversion.formats import convert, format_of
from support.command_line import UserError
from tests.whisper_sources import dims_of, openai_state, state_of, tiny_whisper, write_openai


def silent(_: str) -> None:
    """In place of print."""


def problem(path: Path, content: object) -> str:
    """What is said of a file with this content."""
    torch.save(content, path)
    with pytest.raises(UserError) as raised:
        convert(path, path.with_name("out"), report=silent)
    assert not path.with_name("out").exists()
    return str(raised.value)


def test_files_of_old_versions_are_read(tmp_path: Path) -> None:
    state = state_of(tiny_whisper())
    source = write_openai(tmp_path / "x", state, _use_new_zipfile_serialization=False)
    assert format_of(source).name == "Whisper in OpenAI's .pt"
    weights = load_file(convert(source, tmp_path / "out", report=silent) / "model.safetensors")
    assert all(torch.equal(weights[name].float(), tensor) for name, tensor in state.items())


def test_float32_that_float16_cannot_hold_stays(tmp_path: Path) -> None:
    state = state_of(tiny_whisper(half=False))
    weights = load_file(
        convert(write_openai(tmp_path / "x", state), tmp_path / "out", report=silent) / "model.safetensors"
    )
    assert all(torch.equal(weights[name], tensor) for name, tensor in state.items())


def test_the_missing_tokenizer_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    folder = convert(write_openai(tmp_path / "x", state_of(tiny_whisper(51_865))), tmp_path / "out", report=said.append)
    assert any("no tokenizer written: the file has none" in line for line in said) and "(multilingual)" in said[0]
    assert '"lang_to_id"' in (folder / "generation_config.json").read_text()


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        import os

        return os.system, (f"touch {self.mark}",)


def test_code_is_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    state = state_of(tiny_whisper())
    said = problem(
        tmp_path / "x", {"dims": dims_of(state), "model_state_dict": openai_state(state), "more": Evil(mark)}
    )
    assert "asks for" in said and "nothing was run" in said and not mark.exists()
    (tmp_path / "y").write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(UserError):
        convert(tmp_path / "y", tmp_path / "out", report=silent)
    assert not mark.exists()


def test_other_files_of_torch_save_are_named(tmp_path: Path) -> None:
    said = problem(tmp_path / "x", {"model.encoder.conv1.weight": torch.ones(2)})
    assert "holds ['model.encoder.conv1.weight']; expected OpenAI's Whisper" in said
    assert "holds Tensor; expected" in problem(tmp_path / "x", torch.ones(2))


def test_sizes_must_be_numbers_and_those_of_the_tensors(tmp_path: Path) -> None:
    state = state_of(tiny_whisper())
    whole = {"dims": dims_of(state), "model_state_dict": openai_state(state)}
    for value in (0, -3, 1.5, "80", None, True):
        said = problem(tmp_path / "x", {**whole, "dims": {**whole["dims"], "n_mels": value}})
        assert f"dims has n_mels = {value!r}; expected a whole number above 0" in said
    said = problem(tmp_path / "x", {**whole, "dims": {**whole["dims"], "n_text_layer": 2}})
    assert "states n_text_layer = 2, but its tensors have 1" in said


def test_tensors_must_be_what_they_seem(tmp_path: Path) -> None:
    state = state_of(tiny_whisper())
    whole = {"dims": dims_of(state), "model_state_dict": openai_state(state)}

    def with_bias(value: object) -> str:
        return problem(
            tmp_path / "x", {**whole, "model_state_dict": {**whole["model_state_dict"], "decoder.ln.bias": value}}
        )

    assert "expected tensors by name" in with_bias(3)
    assert "expected a dense tensor of floats" in with_bias(torch.ones(32, dtype=torch.int64))
    assert "expected a dense tensor of floats" in with_bias(torch.ones(32).to_sparse())
    assert "over fewer bytes than that" in with_bias(torch.ones(1).expand(32))
    assert "expected a dense tensor of floats" in with_bias(torch.ones(32, device="meta"))

"""`tools.convert`: what it prints, and where it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.whisper_sources import state_of, tiny_whisper, write_ggml, write_openai
from tools.convert import main


def test_it_says_what_it_found_and_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, _ = write_ggml(tmp_path / "x", state_of(tiny_whisper()), types="q8_0")
    assert main([str(source), str(tmp_path / "out"), "--dtype", "float16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{source}: whisper.cpp's ggml file, Whisper with 2 + 1 layers, width 32")
    assert lines[-2:] == ["65 tensors in float16", f"{tmp_path / 'out'}: complete"]
    assert len(load_file(tmp_path / "out" / "model.safetensors")) == 65


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent"), str(tmp_path / "out")]) == 1
    assert "absent does not exist" in capsys.readouterr().err
    source = write_openai(tmp_path / "x.pt", state_of(tiny_whisper()))
    source.write_bytes(source.read_bytes()[:-100])
    assert main([str(source), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {source} ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert main([str(tmp_path), str(tmp_path / "out")]) == 1
    assert f"is a folder; name what is in it: {source}; expected" in capsys.readouterr().err

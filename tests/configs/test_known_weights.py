"""The cache of weights: where it is, and that every part of the program finds a model there by its hub name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import dryrun
import train
from configs import known_weights
from configs.architectures import find_architecture
from configs.known_weights import KNOWN, cached_weights, weights_folder
from configs.schema import load_config
from configs.sections import ModelConfig
from evaluation.model_files import file_hashes
from models import build_model
from models.hub import located
from support.command_line import UserError
from support.content_hash import ContentHashes
from tests import tiny

WHISPER, LLM = (row.name for row in KNOWN)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own; the working folder is an empty one too."""
    monkeypatch.setenv("SMOLT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "cache" / "weights"


@pytest.fixture
def filled(cache: Path) -> Path:
    """The same with tiny models under the real names."""
    tiny.write_whisper(cache / WHISPER)
    tiny.write_llm(cache / LLM)
    return cache


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("SMOLT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert weights_folder() == tmp_path / ".cache" / "smolt" / "weights"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says its standard
    assert weights_folder() == tmp_path / ".cache" / "smolt" / "weights"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert weights_folder() == tmp_path / "xdg" / "smolt" / "weights"
    monkeypatch.setenv("SMOLT_CACHE", "~/own")
    assert weights_folder() == tmp_path / "own" / "weights"


def test_rows_are_whole() -> None:
    for row in KNOWN:
        assert len(row.sha256) == 64 and row.wheel_bytes > 0 and row.dtype in ("float16", "float32")
        assert find_architecture(row.name).source  # so that `--dryrun` plans without it
        in_wheel = "/" in row.license_file
        assert in_wheel or (known_weights.Path("conversion/licenses") / row.license_file).name == "whisper.txt"


def test_a_local_folder_comes_first_then_the_cache_then_the_hub(filled: Path) -> None:
    assert located(LLM) == (str(filled / LLM), None)
    assert located(LLM.lower()) == (str(filled / LLM), None)
    assert located(f"{LLM}@main") == (LLM, "main")  # a revision is the hub's
    assert located("org/model@v2") == ("org/model", "v2")
    Path(LLM).mkdir(parents=True)
    assert located(LLM) == (LLM, None)
    for name in ("../openai/whisper-tiny.en", "openai", "openai/../openai", "", "/", f"{filled}/{WHISPER}x"):
        assert cached_weights(name) is None
    shutil.rmtree(filled)
    assert located(WHISPER) == (WHISPER, None)


def test_every_part_of_the_program_finds_them(filled: Path, tmp_path: Path) -> None:
    project = tiny.write_project(tmp_path / "project")
    options = [f"model.whisper_path={WHISPER}", f"model.llama_path={LLM}"]
    config = load_config(project.config, options)
    config.require_paths("model")
    assert dryrun.missing_weights(config.model) == {}
    assert find_architecture(LLM).config["hidden_size"] == 32
    hashes = file_hashes(config.model, ContentHashes())
    assert {"config.json", "model.safetensors"} <= {name for name, _ in hashes["whisper_path"]}
    named = file_hashes(ModelConfig(llama_path=str(filled / LLM)), ContentHashes())
    assert hashes["llama_path"] == named["llama_path"]
    assert build_model(config.model).text.eos_ids


def test_licenses_are_no_part_of_a_model(filled: Path) -> None:
    before = file_hashes(ModelConfig(llama_path=LLM), ContentHashes())
    (filled / LLM / "LICENSE").write_text("a license")
    (filled / LLM / "SOURCE.md").write_text("a note")
    assert file_hashes(ModelConfig(llama_path=LLM), ContentHashes()) == before


@pytest.mark.parametrize(("key", "name"), [("llama_path", LLM), ("whisper_path", WHISPER)])
def test_where_nothing_answers_the_command_is_named(cache: Path, tmp_path: Path, key: str, name: str) -> None:
    project = tiny.write_project(tmp_path / "project")
    with pytest.raises(UserError, match=rf"model\.{key}: .*'python -m tools\.weights tiny' brings this model"):
        build_model(load_config(project.config, [f"model.{key}={name}"]).model)


def test_a_folder_that_hides_the_hub_name_is_told_the_command(cache: Path, tmp_path: Path) -> None:
    project = tiny.write_project(tmp_path / "project")
    Path("openai").mkdir()  # the name is a path then
    config = load_config(project.config, [f"model.whisper_path={WHISPER}"])
    with pytest.raises(UserError, match=r"does not exist.*python -m tools\.weights tiny brings it"):
        config.require_paths("model")
    tiny.write_whisper(cache / WHISPER)
    config.require_paths("model")


def test_a_dry_run_plans_and_names_the_command(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = tiny.write_project(tmp_path / "project", model={"beats_path": "", "lora": False})
    options = [f"model.whisper_path={WHISPER}", f"model.llama_path={LLM}"]
    assert train.main(["--cfg-path", str(project.config), "--dryrun", "--options", *options]) == 0
    out = capsys.readouterr().out
    assert "134,515,008" in out and "8,208,384" in out
    assert "weights not found" in out and out.count("python -m tools.weights tiny brings") == 1

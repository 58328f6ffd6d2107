"""The files that a model's parts come from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from configs.schema import load_config
from configs.sections import ModelConfig
from evaluation.model_files import file_hashes
from support.content_hash import ContentHashes
from tests import tiny


def test_every_part_has_its_files(shared_tiny_project: tiny.TinyProject) -> None:
    found = file_hashes(load_config(shared_tiny_project.config).model, ContentHashes())
    names = {key: {name for name, _ in files} for key, files in found.items()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names["llama_path"]
    assert {"config.json", "model.safetensors"} <= names["whisper_path"]
    assert names["beats_path"] == {""} and names["ced_path"] == set()


def test_where_a_model_is_does_not_matter_nor_what_is_no_part_of_it(
    shared_tiny_project: tiny.TinyProject, tmp_path: Path
) -> None:
    copy = shutil.copytree(shared_tiny_project.llm, tmp_path / "elsewhere")
    (copy / "README.md").write_text("a note")
    (copy / ".cache").mkdir()
    (copy / ".cache" / "download.json").write_text("{}")
    before, after = (
        file_hashes(load_config(shared_tiny_project.config, [f"model.llama_path={path}"]).model, ContentHashes())
        for path in (shared_tiny_project.llm, copy)
    )
    assert before == after


def marks(name: str) -> list[tuple[str, str]]:
    return file_hashes(ModelConfig(llama_path=name), ContentHashes())["llama_path"]


def test_a_hub_name_has_the_files_of_its_revision(
    shared_tiny_project: tiny.TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model, revisions = tmp_path / "models--org--model", ("a" * 40, "b" * 40)
    for revision in revisions:
        shutil.copytree(shared_tiny_project.llm, model / "snapshots" / revision)
    (model / "snapshots" / revisions[1] / "tokenizer_config.json").write_text("{}")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(revisions[0])
    main, same, other = (marks(f"org/model{at}") for at in ("", f"@{revisions[0]}", f"@{revisions[1]}"))
    assert "model.safetensors" in dict(main) and main == same != other
    (model / "refs" / "main").write_text(revisions[1])
    assert marks("org/model") == other
    assert marks("org/unknown") == [("org/unknown", "absent")]

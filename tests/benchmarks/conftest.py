"""A tiny trained system with a whole Whisper, for the comparisons with real weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from benchmarks import row_run
from configs.schema import load_config
from models.build import build_model
from models.checkpoint.adapter_folder import save_adapter
from tests import tiny


@dataclass(frozen=True)
class Trained:
    """Adapters' folders and the project that they belong to."""

    project: tiny.TinyProject
    adapter: Path
    aligned: Path
    """The same with a CTC head."""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    project = tiny.write_project(tmp_path_factory.mktemp("trained"), model={"beats_path": ""})
    tiny.write_tokenizer(project.whisper)
    GenerationConfig(
        max_length=8, decoder_start_token_id=1, bos_token_id=1, eos_token_id=2, pad_token_id=0, begin_suppress_tokens=[]
    ).save_pretrained(project.whisper)
    config = load_config(project.config)
    torch.manual_seed(3)
    model = build_model(config.model)
    adapter = save_adapter(model, project.root / "adapter", config=config)
    model.align_to(torch.arange(4, 300))
    return Trained(project, adapter, save_adapter(model, project.root / "aligned", config=config))


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a run keeps texts and answers."""
    monkeypatch.setattr(row_run, "KEPT", tmp_path / "kept")
    return tmp_path / "kept"

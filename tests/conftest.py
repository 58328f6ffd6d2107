"""Fixtures that several test files use: one CPU thread, reference vectors, real recordings, tiny projects."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here needs the network; a forgotten hub name must fail, not hang

import torch  # noqa: E402

from tests import tiny  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # tiny models: a second thread costs more than it brings, and sums keep their order


def _shared_folder(variable: str, default: Path, what: str) -> Path:
    named = os.environ.get(variable)
    folder = Path(named) if named else default
    if folder.is_dir():
        return folder.resolve()
    if named:
        pytest.fail(f"{variable} names {named}, which is no folder: {what} are required where the variable is set")
    pytest.skip(f"no {what} at {default}; set {variable} to the folder that holds them")


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Folder of reference vectors: `SMOLT_PARITY`, else `../shared/parity`."""
    return _shared_folder("SMOLT_PARITY", ROOT.parent / "shared" / "parity", "reference vectors")


@pytest.fixture(scope="session")
def real_dir() -> Path:
    """Folder of real recordings: `SMOLT_REAL`, else `../shared/real`."""
    return _shared_folder("SMOLT_REAL", ROOT.parent / "shared" / "real", "real recordings")


@pytest.fixture
def tiny_project(tmp_path: Path) -> tiny.TinyProject:
    """A fresh tiny project (Llama) of the test's own."""
    return tiny.write_project(tmp_path / "tiny")


@pytest.fixture(scope="session")
def shared_tiny_project(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyProject:
    """One tiny project (Llama) for all tests that only read it; write outputs elsewhere."""
    return tiny.write_project(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR takes seconds to start; its own tests start it."""
    from scoring import tasks
    from scoring.captions import MetricUnavailable

    def refuse(*arguments) -> float:
        raise MetricUnavailable("no Java in this test")

    monkeypatch.setattr(tasks, "meteor_or_raise", refuse)


@pytest.fixture
def project(shared_tiny_project: tiny.TinyProject, tmp_path: Path, without_java: None) -> tiny.TinyProject:
    """The shared project with an output folder and annotation files of the test's own, to be evaluated."""
    corpus = tmp_path / "corpus"
    shutil.copytree(shared_tiny_project.test_asr.parent, corpus)
    names = {name: corpus / getattr(shared_tiny_project, name).name for name in ("valid", "test_asr", "test_aac")}
    content = yaml.safe_load(shared_tiny_project.config.read_text())
    content["datasets"] |= {
        "prefix": str(corpus),
        "valid_ann_path": str(names["valid"]),
        "test_ann_path_asr": str(names["test_asr"]),
        "test_ann_path_aac": str(names["test_aac"]),
    }
    content["run"]["output_dir"] = str(tmp_path / "outputs")
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(content))
    return dataclasses.replace(shared_tiny_project, config=config, output=tmp_path / "outputs", **names)


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the model really encoded."""
    from models import SALMONN

    sizes: list[int] = []
    real = SALMONN.encode_audio

    def counting(model, waveforms, *rest):
        sizes.append(len(waveforms))
        return real(model, waveforms, *rest)

    monkeypatch.setattr(SALMONN, "encode_audio", counting)
    return sizes

"""Fixtures shared by all tests: one CPU thread, the reference vectors, real recordings, a tiny project."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

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

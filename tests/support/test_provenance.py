"""What results are saved with."""

from __future__ import annotations

import re
import subprocess

import pytest
import torch

from support import provenance


def test_commit_is_this_checkouts() -> None:
    head = provenance.commit()
    if not (provenance.ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", head)


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", absent)
    assert provenance.commit.__wrapped__() is None


def test_versions_name_what_results_depend_on() -> None:
    versions = provenance.versions()
    assert versions["torch"] == torch.__version__.split("+")[0] or versions["torch"] == torch.__version__
    assert {"python", "transformers", "peft", "accelerate", "bitsandbytes", "numpy", "cuda"} <= set(versions)


def test_machine_is_named() -> None:
    machine = provenance.machine(torch.device("cpu"))
    assert machine["name"] and machine["cores"] >= 1 and machine["memory_gib"] > 0 and machine["device"] == "cpu"

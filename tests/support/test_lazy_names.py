"""Packages that import their files when a name of theirs is asked for."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_a_name_is_loaded_when_it_is_asked_for() -> None:
    """In a new process: here everything is loaded already."""
    program = """
import sys, models
assert "models.build" not in sys.modules and "torch" not in sys.modules
from models import build_model
assert models.build_model is build_model is sys.modules["models.build"].build_model
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)


def test_a_name_that_a_package_does_not_have() -> None:
    import models

    with pytest.raises(AttributeError, match="module 'models' has no attribute 'build_modle'"):
        models.build_modle  # noqa: B018

"""A model that reads released checkpoints, and such a file."""

import pytest

from tests.released import make, released_state, write


@pytest.fixture(scope="module")
def project(shared_tiny_project):
    return shared_tiny_project


@pytest.fixture(scope="module")
def model(project):
    return make(project)


@pytest.fixture
def file(model, tmp_path):
    return write(tmp_path / "checkpoint_3.pth", released_state(model))

"""Which device a name picks."""

import pytest
import torch

from models import pick_device


def test_cuda_that_is_not_there_is_the_cpu_with_a_notice(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("cuda:1") == torch.device("cpu")
    assert "run.device is cuda:1" in caplog.text
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"run\.device"):
        pick_device("gpu")

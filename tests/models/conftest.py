"""The tiny project's model."""

import pytest
import torch

from configs.schema import load_config
from models import build_model


@pytest.fixture(scope="module")
def config(shared_tiny_project):
    return load_config(shared_tiny_project.config).model


@pytest.fixture(scope="module")
def model(config):
    torch.manual_seed(3)
    model = build_model(config)
    with torch.no_grad():  # LoRA starts as zero: make it count
        for parameter in model.llm.lora_parameters():
            parameter.normal_(0.0, 0.05)
    return model

"""Files of small encoders, and a stack of two of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from models.encoders.ced import CED, CEDConfig
from models.encoders.stack import EncoderStack
from models.encoders.table import ENCODERS
from tests import tiny


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("encoders")
    paths = {f"{entry.path_key}": None for entry in ENCODERS.values()}
    freeze = {f"{entry.freeze_key}": True for entry in ENCODERS.values()}
    paths |= {"whisper_path": str(tiny.write_whisper(folder / "whisper"))}
    paths |= {"beats_path": str(tiny.write_beats(folder / "beats.pt"))}
    whole = {"encoder_quantization": "none", "whisper_layers": None, "beats_layers": None}
    return SimpleNamespace(**paths, **freeze, **whole, window="clip", legacy="off", token=None, dtype="auto")


@pytest.fixture(scope="module")
def stack(config: SimpleNamespace) -> EncoderStack:
    return EncoderStack.from_config(config)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    ced = CED(CEDConfig(embed_dim=32, depth=2, num_heads=2))
    ced.init_bn["1"].running_mean.fill_(-20.0)
    ced.init_bn["1"].running_var.fill_(400.0)
    torch.save(ced.state_dict() | {"outputlayer.1.bias": torch.zeros(5)}, folder / "ced.pt")  # a classifier
    return {
        "whisper": tiny.write_whisper(folder / "whisper"),
        "beats": tiny.write_beats(folder / "beats.pt"),
        "ced": folder / "ced.pt",
    }

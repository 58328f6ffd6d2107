"""The table of encoders, and errors for an unknown or a wrong one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from configs.sections import ENCODER_PATHS, ModelConfig
from models.encoders.stack import EncoderStack
from models.encoders.table import ENCODERS, OWN_RULES, build_encoder
from tests import tiny


def test_every_encoder_of_the_table_has_its_keys() -> None:
    assert tuple(entry.path_key for entry in ENCODERS.values()) == ENCODER_PATHS
    assert all(getattr(ModelConfig(), entry.freeze_key) is True for entry in ENCODERS.values())
    assert all(getattr(ModelConfig(), entry.path_key) is None for entry in ENCODERS.values())


def test_a_path_to_another_kind_of_encoder_is_an_error(config: SimpleNamespace, tmp_path: Path) -> None:
    folder = tiny.write_hf_encoder(tmp_path, "hubert base")
    wrong = SimpleNamespace(**{**vars(config), "wavlm_path": str(folder)})
    with pytest.raises(ValueError, match=r"model\.wavlm_path: '.*' is of type 'hubert'; expected wavlm"):
        EncoderStack.from_config(wrong)
    stack = EncoderStack.from_config(SimpleNamespace(**{**vars(config), "hubert_path": str(folder)}))
    assert list(stack.encoders) == ["whisper", "beats", "hubert"]


def test_errors_list_what_there_is(config: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="encoder 'wispher' is not known; expected one of whisper, beats"):
        build_encoder("wispher", config, OWN_RULES)
    nothing = SimpleNamespace(**{**vars(config), "whisper_path": None, "beats_path": None})
    with pytest.raises(ValueError, match=r"no audio encoder; set at least one of model\.whisper_path"):
        EncoderStack.from_config(nothing)
    with pytest.raises(ValueError, match=r"encoder 'beats' has no weights; set model\.beats_path"):
        build_encoder("beats", nothing, OWN_RULES)

"""tools/cache_encoder_outputs.py: what training would encode is in the cache before it starts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from configs.parsing import ConfigError
from configs.schema import load_config
from models import build_model
from models.encoders.frame_cache import FrameCache
from tests.conftest import ROOT
from tools.cache_encoder_outputs import clips_of, fill_cache, main


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """The demo's first stage on four clips, one of them no audio, two of them named twice."""
    rng = np.random.default_rng(0)
    entries = []
    for name in ("a", "b", "c"):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * rng.standard_normal(6_000), 16_000)
        entries.append({"path": f"{name}.wav", "text": name, "task": "asr"})
    (tmp_path / "broken.wav").write_text("no audio")
    entries.append({"path": "broken.wav", "text": "?", "task": "asr"})
    for file, part in (("train", entries), ("valid", entries[:2]), ("test", entries[2:])):
        (tmp_path / f"{file}.json").write_text(json.dumps({"annotation": part}))
    return [
        f"datasets.prefix={tmp_path}",
        "datasets.train_ann_path=train.json",
        "datasets.valid_ann_path=valid.json",
        "datasets.test_ann_path_asr=test.json",
        "datasets.test_ann_path_aac=null",
        f"datasets.cache_encoder_outputs={tmp_path / 'frames'}",
    ]


def test_training_finds_every_clip(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(ROOT / "configs/demo/stage1.yaml", options)
    assert len(clips_of(config)) == 4
    assert fill_cache(config, 1) == (3, 1)
    folder = FrameCache(config.datasets.cache_encoder_outputs, build_model(config.model).encoders).folder
    stored = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert len(stored) == 3
    assert fill_cache(config, 1) == (3, 1), "a second run looks them up"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == stored


def test_parts_of_a_recording_are_clips_of_their_own(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    part = {"path": "a.wav", "text": "a", "task": "asr", "duration": 0.1}
    entries = [{**part, "offset": 0.0}, {**part, "offset": 0.2}, {**part, "duration": 0.375}]
    (tmp_path / "train.json").write_text(json.dumps(entries))
    config = load_config(ROOT / "configs/demo/stage1.yaml", [*options[:2], options[-1], "datasets.valid_ann_path=null",
                         "datasets.test_ann_path_asr=null", "datasets.test_ann_path_aac=null"])  # fmt: skip
    assert len(clips_of(config)) == 3
    assert fill_cache(config, 1) == (3, 0)
    assert len(list((tmp_path / "frames").rglob("*.safetensors"))) == 3


def test_what_cannot_be_cached_is_said(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    stage1 = str(ROOT / "configs/demo/stage1.yaml")
    for option, message in (
        ("datasets.cache_encoder_outputs=null", "cache_encoder_outputs is null"),
        ("datasets.augmentation={gain: {p: 1}}", "drop one of the two"),
        ("model.freeze_whisper=false", "the encoder whisper is trained"),
        ("model.legacy=exact", "depend on its batch"),
    ):
        with pytest.raises(ConfigError, match=message):
            fill_cache(load_config(stage1, [*options, option]), 1)
    assert main(["--cfg-path", stage1, "--options", *options, "datasets.cache_encoder_outputs=null"]) == 2
    assert "give it a folder" in capsys.readouterr().err

"""What a corpus holds, counted from its headers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.annotations import load_annotations
from data.describe import describe
from tests import tiny
from tools import describe_corpus


def write(path: Path, seconds: float, rate_hz: int = 16_000, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros((round(seconds * rate_hz), channels)), rate_hz)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write(tmp_path / "speech" / "a.wav", 0.5)
    write(tmp_path / "speech" / "b.flac", 2.0, 44_100, 2)
    write(tmp_path / "sounds" / "c.wav", 31.0, 8_000)
    (tmp_path / "sounds" / "broken.wav").write_text("<html>")
    entries = [
        {"path": "speech/a.wav", "text": "one two", "task": "asr"},
        {"path": "speech/b.flac", "text": "one two", "task": "asr"},
        {"path": "sounds/c.wav", "texts": ["a dog barks", "barking"], "task": "audiocaption"},
        {"path": "sounds/c.wav", "text": "", "task": "audiocaption"},
        {"path": "sounds/broken.wav", "text": "three", "task": "asr"},
        {"path": "sounds/absent.wav", "task": "QA", "Q": "who?"},
    ]
    return tiny.write_annotations(tmp_path / "train.json", entries)


def test_figures(corpus: Path) -> None:
    found = describe(load_annotations(corpus, require_text=False))
    assert found.whole.clips == 6 and {task: group.clips for task, group in found.tasks.items()} == {
        "asr": 3,
        "audiocaption": 2,
        "QA": 1,
    }
    asr = found.tasks["asr"]
    assert (asr.seconds.total, asr.seconds.least, asr.seconds.most) == pytest.approx((2.5, 0.5, 2.0))
    assert (asr.short, asr.long, asr.without_text) == (1, 0, 0)
    captions = found.tasks["audiocaption"]
    assert (captions.long, captions.without_text, captions.words.most, captions.words.least) == (2, 1, 3, 1)
    assert found.tasks["QA"].seconds is None and found.tasks["QA"].without_text == 1
    assert found.folders == {"sounds": 4, "speech": 2}
    assert found.rates_hz == {"8000": 2, "16000": 1, "44100": 1}
    assert found.channels == {"1": 3, "2": 1}
    assert (found.unreadable, found.repeated_clips, found.repeated_texts) == (2, 1, 1)
    assert all("broken" in path or "absent" in path for path in found.examples)


def test_the_command(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.json"
    assert describe_corpus.main([str(corpus), "--json", str(figures)]) == 1
    out = capsys.readouterr().out
    for expected in ("| asr ", "| all ", "44100 (1)", "cannot be read: 2 clips", "31.00"):
        assert expected in out
    (content,) = json.loads(figures.read_text()).values()
    assert content["tasks"]["asr"]["clips"] == 3 and content["unreadable"] == 2


def test_the_files_of_a_yaml(project: tiny.TinyProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert describe_corpus.main(["--cfg-path", str(project.config)]) == 0
    out = capsys.readouterr().out
    assert "datasets.train_ann_path" in out and "datasets.test_ann_path_aac" in out and "cannot be read" not in out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "expected one of the two"),
        (["a.json", "--cfg-path", "b.yaml"], "expected one of the two"),
        (["absent.json"], "absent.json: no such annotation file"),
        (["--cfg-path", "empty.yaml"], "names no annotation file"),
    ],
)
def test_mistakes_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.yaml").write_text("run: {seed: 1}\n")
    assert describe_corpus.main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and problem in err and err.count("\n") == 1

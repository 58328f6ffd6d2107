"""`.env`: keys of the working folder, never over the environment's, never shown."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.schema import dump_config, load_config
from support import command_line
from support.environment import read_environment_file
from support.provenance import ROOT

SECRET = "hf_abcdefghijklmnop"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for name in ("HF_TOKEN", "WANDB_API_KEY", "HF_KEY", "WANDB_KEY"):
        os.environ.pop(name, None)


def write(text: str | bytes) -> None:
    Path(".env").write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"HF_TOKEN={SECRET}\n", {"HF_TOKEN": SECRET}),
        (
            f"# keys\n\nexport HF_TOKEN = '{SECRET}' # mine\r\nWANDB_API_KEY=\"x y\"\r\n",
            {"HF_TOKEN": SECRET, "WANDB_API_KEY": "x y"},
        ),
        ("\ufeffHF_TOKEN=a$b${HOME}\n", {"HF_TOKEN": "a$b${HOME}"}),
        ("HF_KEY='k'\nWANDB_KEY=w\n", {"HF_TOKEN": "k", "WANDB_API_KEY": "w"}),
        ("HF_TOKEN=own\nHF_KEY=family\n", {"HF_TOKEN": "own"}),
        ("HF_KEY=family\nHF_TOKEN=\n", {}),
        ("HF_KEY=''\nWANDB_KEY=''\n", {}),
        ("", {}),
    ],
)
def test_forms_of_the_file(text: str, expected: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    write(text)
    read_environment_file()
    names = ("HF_TOKEN", "WANDB_API_KEY")
    assert {name: os.environ[name] for name in names if name in os.environ} == expected
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("already", ["theirs", ""])
def test_the_environment_comes_first(already: str) -> None:
    write(f"HF_TOKEN={SECRET}\nHF_KEY={SECRET}\n")
    os.environ["HF_TOKEN"] = already
    assert "HF_TOKEN" not in read_environment_file()
    assert os.environ["HF_TOKEN"] == already


def test_lines_that_say_nothing_are_named_without_their_content(capsys: pytest.CaptureFixture[str]) -> None:
    write(f"HF_TOKEN={SECRET}\n{SECRET} again\nWANDB_API_KEY\n")
    assert read_environment_file() == ["HF_TOKEN"]
    err = capsys.readouterr().err
    assert ".env: lines 2, 3: ignored, expected NAME=value" in err and SECRET not in err


def test_a_folder_of_that_name_is_no_file_of_keys() -> None:
    Path(".env").mkdir()
    assert read_environment_file() == []


def test_a_file_that_is_no_text_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    write(b"HF_TOKEN=\xff\xfe\n")
    assert command_line.run(lambda arguments: 0, argparse.ArgumentParser(), []) == 1
    assert capsys.readouterr().err == "error: .env: not a text file in UTF-8 (at byte 9); expected lines NAME=value\n"


def test_commands_read_it_and_no_file_of_a_run_holds_it(tmp_path: Path) -> None:
    write(f"HF_TOKEN={SECRET}\n")
    (tmp_path / "mine.yaml").write_text("model: {llama_path: org/name}\n")
    seen = []

    def work(arguments: argparse.Namespace) -> None:
        config = load_config(tmp_path / "mine.yaml")
        seen.append(config.model.token)
        dump_config(config, tmp_path / "config.yaml")

    assert command_line.run(work, argparse.ArgumentParser(), []) == 0
    assert seen == [SECRET] and SECRET not in (tmp_path / "config.yaml").read_text()


@pytest.mark.slow
def test_a_real_command_shows_nothing_of_it(tmp_path: Path) -> None:
    write(f"HF_TOKEN={SECRET}\n")
    (tmp_path / "mine.yaml").write_text("model: {llama_path: org/none, whisper_path: org/none}\n")
    words = [sys.executable, str(ROOT / "train.py"), "--cfg-path", "mine.yaml", "--traceback"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode and SECRET not in done.stdout + done.stderr

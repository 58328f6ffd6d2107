"""How every command ends: a user's mistake in one line, a fault of ours with its traceback."""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.command_line import UserError, require_writable, run
from tests.conftest import ROOT


def command(error: Exception | None = None, status: int | None = None, *arguments: str) -> int:
    def work(parsed: argparse.Namespace) -> int | None:
        if error is not None:
            raise error
        return status

    return run(work, argparse.ArgumentParser(), list(arguments))


def test_the_status_is_that_of_the_work() -> None:
    assert command() == 0
    assert command(None, 143) == 143


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("run.sed: unknown"), "run.sed: unknown"),
        (OSError(errno.ENOSPC, "No space left", "x"), "x: no space left on the disk; make room, then run it again"),
        (FileNotFoundError(errno.ENOENT, "No such file", "nix.csv"), "nix.csv: no such file or folder"),
        (OSError(errno.EISDIR, "Is a directory", "a", None, "b"), "a -> b: it is a folder; expected a file"),
        (OSError("a library's own words"), "a library's own words"),
        (UnicodeEncodeError("ascii", "caf\xe9.wav", 3, 4, "ordinal not in range"), "PYTHONUTF8=1"),
        (UnicodeEncodeError("utf-8", "caf\udce9.wav", 3, 4, "surrogates not allowed"), "rename the file"),
    ],
)
def test_what_a_user_can_fix_is_one_line(error: Exception, message: str, capsys: pytest.CaptureFixture) -> None:
    assert command(error) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and line.endswith(message) if "PYTHON" not in message else message in line
    with pytest.raises(type(error)):
        command(error, None, "--traceback")


@pytest.mark.parametrize("error", [RuntimeError("a fault"), KeyError("x"), OSError(errno.EBADF, "Bad file descriptor")])
def test_a_fault_of_ours_keeps_its_trace(error: Exception) -> None:
    with pytest.raises(type(error)):
        command(error)


def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    require_writable(str(tmp_path / "new" / "deeper"), "run.output_dir")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"run\.output_dir = .*file/deeper: .*file is a file; expected a folder"):
        require_writable(str(tmp_path / "file" / "deeper"), "run.output_dir")


def test_the_home_folder_is_expanded_after_an_equals_sign_too(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ckpt")
    parser.add_argument("--texts", nargs="*")
    seen = []
    run(seen.append, parser, ["--out=~/report.json", "--ckpt=~", "--texts", "~5 words", "a~/b"])
    assert (seen[0].out, seen[0].ckpt) == (tmp_path / "report.json", str(tmp_path))
    assert seen[0].texts == ["~5 words", "a~/b"]


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}],
)
@pytest.mark.parametrize("argument", ["--help", "--text=한국어 é"])
def test_a_terminal_without_utf_8_shows_escapes(tmp_path: Path, environment: dict[str, str], argument: str) -> None:
    script = tmp_path / "command.py"
    script.write_text(
        "import argparse, sys\nfrom support import command_line\n"
        "parser = argparse.ArgumentParser(description='B · é … 한')\nparser.add_argument('--text')\n"
        "def work(arguments):\n    print('done … 한국어')\n    raise command_line.UserError(arguments.text)\n"
        "sys.exit(command_line.run(work, parser))",
        encoding="utf-8",
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, str(script), argument]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == (0 if argument == "--help" else 1), done.stderr
    assert b"Traceback" not in done.stderr and (b"done" in done.stdout or b"usage" in done.stdout)

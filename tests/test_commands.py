"""Every command: a mistake of the user is one line, a fault of ours keeps its traceback, help loads no libraries."""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import imports
from support import command_line
from support.command_line import UserError, number

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ["--cfg-path", "configs/demo/stage2.yaml"]
COMMANDS = {
    "train": CONFIG,
    "evaluate": CONFIG,
    "evaluate_efficiency": CONFIG,
    "data.prepare": ["demo", "--out", "outputs/corpus"],
    "tools.cache_encoder_outputs": CONFIG,
    "tools.check_submission": ["submission.csv", "test_asr.json"],
    "tools.convert": ["ggml-tiny.bin", "outputs/whisper"],
    "tools.convert_checkpoint": ["best.pth", "outputs/adapter", *CONFIG],
    "tools.demo": [],
    "tools.describe_corpus": ["train.json"],
    "tools.hear": ["my.wav"],
    "tools.pretrain_standins": ["--out", "outputs/standins"],
    "tools.quantize": [*CONFIG, "--out", "outputs/gptq"],
    "tools.to_flac": ["wav", "flac"],
    "tools.pack_adapter": ["outputs/run/best", "outputs/packed"],
    "tools.weights": ["tiny"],
}
"""Module -> arguments that it accepts."""
OTHER_STATUS = {"tools.cache_encoder_outputs": 2, "tools.hear": 3, "tools.quantize": 2}
HEAVY = ("torch", "transformers", "accelerate", "peft")
every_command = pytest.mark.parametrize("name", COMMANDS)


def test_every_command_is_tested() -> None:
    helped = {words[-2].removesuffix(".py") for words in imports.commands() if words[-1] == "--help"}
    assert set(COMMANDS) == {name for name in helped if not name.startswith("benchmarks.")}


def failing_with(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> argparse.Namespace:
    """The command, whose work raises `error`."""

    def work(arguments: argparse.Namespace) -> None:
        raise error

    module = importlib.import_module(name)
    monkeypatch.setattr(module, "work", work)
    return module


@every_command
def test_a_users_mistake_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    module = failing_with(monkeypatch, name, UserError("run.seed: expected a whole number"))
    assert module.main(COMMANDS[name]) == OTHER_STATUS.get(name, 1)
    assert capsys.readouterr().err == "error: run.seed: expected a whole number\n"
    with pytest.raises(UserError):
        module.main([*COMMANDS[name], "--traceback"])


@every_command
def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for fault in (ValueError("zip() argument 2 is longer than argument 1"), RuntimeError("x"), OSError(errno.EIO, "x")):
        with pytest.raises(type(fault)):
            failing_with(monkeypatch, name, fault).main(COMMANDS[name])


@every_command
def test_an_error_of_the_disk_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert failing_with(monkeypatch, name, full).main(COMMANDS[name]) == OTHER_STATUS.get(name, 1)
    assert capsys.readouterr().err == "error: no space left on the disk; make room, then run it again\n"


@pytest.mark.parametrize("name", sorted(words[-2] for words in imports.commands() if "-m" in words))
def test_help_says_how_the_command_is_called(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module(name).main(["--help"])
    called = {"benchmarks.cpu_comparison": "benchmarks.against_reference"}.get(name, name)
    assert capsys.readouterr().out.startswith(f"usage: python -m {called} [-h]")


def loaded_by(*words: str, status: int = 0) -> set[str]:
    """The heavy libraries that a command imports in a process of its own."""
    script = (
        "import json, runpy, sys\nmodule, sys.argv = sys.argv[1], sys.argv[1:]\n"
        "try:\n    runpy.run_module(module, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n    status = end.code or 0\n"
        "print('\\n' + json.dumps([status, sorted({name.split('.')[0] for name in sys.modules})]))"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    found, modules = json.loads(done.stdout.splitlines()[-1])
    assert found == status, done.stderr
    return set(modules) & set(HEAVY)


@every_command
def test_help_comes_before_the_libraries(name: str) -> None:
    assert loaded_by(name, "--help") == set()


@pytest.mark.parametrize("name", ["train", "evaluate", "evaluate_efficiency", "tools.cache_encoder_outputs"])
def test_so_does_the_error_of_a_mistyped_file(name: str) -> None:
    assert loaded_by(name, "--cfg-path", "absent.yaml", status=OTHER_STATUS.get(name, 1)) == set()


def test_a_submission_is_checked_without_them(tmp_path: Path) -> None:
    (tmp_path / "test.json").write_text(json.dumps([{"path": "a.wav", "task": "asr", "testset_id": "a"}]))
    (tmp_path / "submission.csv").write_text("testset_id,text\na,hello\n")
    assert loaded_by("tools.check_submission", str(tmp_path / "submission.csv"), str(tmp_path / "test.json")) == set()


def test_one_part_of_the_model_does_not_load_the_others() -> None:
    script = "import sys, models.qformer; print([name for name in ('transformers', 'peft') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "problem"),
    [("0", "0; expected 1 to 9"), ("10", "10; expected 1 to 9"), ("x", "invalid int value: 'x'")],
)
def test_numbers_out_of_range_are_refused(capsys: pytest.CaptureFixture[str], text: str, problem: str) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=number(int, 1, 9))
    with pytest.raises(SystemExit) as end:
        command_line.run(lambda arguments: None, parser, ["--count", text])
    assert end.value.code == 2 and f"argument --count: {problem}" in capsys.readouterr().err

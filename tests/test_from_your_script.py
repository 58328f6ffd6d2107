"""docs/from-your-script.md: every command on it runs, one after another, on a tiny project."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import yaml

from tests import tiny

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "from-your-script.md").read_text(encoding="utf-8")
LAUNCHERS = {"torchrun": "torch.distributed.run", "accelerate": "accelerate.commands.accelerate_cli"}
SCRIPTS = (
    "evaluate_salmonn.py",
    "asr_inference.py",
    "aac_inference.py",
    "evaluate_efficiency_salmonn.py",
    "cli_inference.py",
    "web_demo.py",
    "submission_validator.py",
    "wav_to_flac.py",
    "run.py",
    "EDA.ipynb",
    "accelerate launch",
    "train.py",
    "torchrun",
    "inference_salmonn.py",
    "--mode test_all",
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the page names."""
    folder = tmp_path_factory.mktemp("page")
    project = tiny.write_project(folder / "tiny")
    content = yaml.safe_load(project.config.read_text())
    content["run"] |= {"output_dir": "outputs/mine", "batch_size_train": 1, "iters_per_epoch": 2}
    content["run"]["optims"]["max_epoch"] = 1
    (folder / "configs").mkdir()
    (folder / "configs" / "mine.yaml").write_text(yaml.safe_dump(content))
    clips = project.test_asr.parent
    for name in ("train", "test_asr"):
        annotations = getattr(project, name).read_text()
        (folder / f"{name}.json").write_text(annotations)
    shutil.copytree(clips, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.json"))
    (folder / "data" / "wav").mkdir(parents=True)
    clip = next(path for path in sorted(clips.rglob("*")) if path.suffix in (".wav", ".flac"))
    samples, rate_hz = soundfile.read(clip, dtype="int16")
    soundfile.write(folder / "data" / "wav" / "a.wav", samples, rate_hz, subtype="PCM_16")
    soundfile.write(folder / "clip.wav", samples, rate_hz, subtype="PCM_16")
    return folder


def in_a_process(words: list[str], folder: Path) -> None:
    """A launcher's command, in the page's folder, with the program's scripts."""
    launcher, *rest = words
    rest = [str(ROOT / word) if word == "train.py" else word for word in rest]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", LAUNCHERS[launcher], *rest]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_every_command_of_the_page_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, without_java: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the page's order: an evaluation needs the adapter that was trained before it."""
    monkeypatch.chdir(folder)
    for line in COMMANDS:
        words = shlex.split(line)
        if words[0] in LAUNCHERS:
            in_a_process(words, folder)
            continue
        assert words[0] == "python", line
        name, arguments = (words[2], words[3:]) if words[1] == "-m" else (words[1].removesuffix(".py"), words[2:])
        assert importlib.import_module(name).main(arguments) == 0, (line, capsys.readouterr())
    for made in ("mine/eval/test_all/submission.csv", "mine/efficiency.json", "two/last", "three/best", "corpus.json"):
        assert (folder / "outputs" / made).exists(), made
    assert len(list((folder / "outputs").glob("20*/best"))) == 1 and (folder / "data" / "flac" / "a.flac").is_file()
    (snippet,) = blocks("python")
    exec(compile(snippet, "docs/from-your-script.md", "exec"), {})


def test_every_script_of_the_family_is_named() -> None:
    there = "\n".join(blocks("text")) + PAGE
    assert not [script for script in SCRIPTS if script not in there]
    for section in ("cli_inference.py", "web_demo.py"):
        assert re.search(rf"`{re.escape(section)}`[^|]*\|[^|]*\| \[not yet\]", PAGE), section


def test_links_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lower()).strip().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", PAGE, re.M)
    }
    for link in re.findall(r"\]\(([^)]+)\)", PAGE):
        file, _, anchor = link.partition("#")
        assert not file or (ROOT / "docs" / file).exists(), link
        assert file or anchor in headings, link


@pytest.mark.parametrize("line", [line for line in COMMANDS if "evaluate" in line or line.startswith("python train")])
def test_options_are_known(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line)
    with pytest.raises(SystemExit):
        importlib.import_module(words[1].removesuffix(".py")).main(["--help"])
    shown = capsys.readouterr().out
    assert not [word for word in words if word.startswith("--") and word not in shown]

"""A dated folder a run: made once, found again by `--resume` and by evaluation, the same in every process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import evaluate
import evaluate_efficiency
import train
from configs import dated
from configs.schema import Config, load_config
from support.provenance import ROOT
from training import dated_folder
from training.step import TrainingStep

PATTERN = "{time}"


@pytest.fixture
def pattern(tiny_project) -> str:
    """A YAML whose `run.output_dir` has the time."""
    content = yaml.safe_load(tiny_project.config.read_text())
    content["run"]["output_dir"] = str(tiny_project.root / "runs" / PATTERN)
    tiny_project.config.write_text(yaml.safe_dump(content))
    return content["run"]["output_dir"]


def folders(pattern: str) -> list[Path]:
    """What was made, oldest first; nothing else may stand there."""
    made = [Path(dated.fill(pattern, moment)) for moment in reversed(dated.existing(pattern))]
    assert sorted(Path(pattern).parent.iterdir()) == sorted(made)
    return made


def named(monkeypatch: pytest.MonkeyPatch, day: str) -> None:
    moment = {"date": day, "time": f"{day}_12-00-00"}
    monkeypatch.setattr(dated_folder, "this_moment", lambda: moment)


def test_a_run_its_resumption_and_its_evaluation_share_a_folder(tiny_project, pattern, capsys, monkeypatch):
    take = TrainingStep.take

    def stopped(self, window, tokens):
        os.kill(os.getpid(), signal.SIGTERM)
        return take(self, window, tokens)

    arguments = ["--cfg-path", str(tiny_project.config)]
    named(monkeypatch, "2025-01-30")
    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "take", stopped)
        assert train.main(arguments) == 128 + signal.SIGTERM
    (folder,) = folders(pattern)
    assert folder.name == "2025-01-30_12-00-00"
    assert f"--resume {folder}\n" in capsys.readouterr().out

    named(monkeypatch, "2025-01-31")  # it would be another folder now
    assert train.main([*arguments, "--resume"]) == 0
    out = capsys.readouterr().out
    assert f"--resume: {folder}, the newest run's of run.output_dir = {pattern}" in out and "resumed from" in out
    assert folders(pattern) == [folder]
    saved = yaml.safe_load((folder / "last" / "config.yaml").read_text())
    assert saved["run"]["output_dir"] == str(folder)

    assert evaluate.main([*arguments, "--mode", "submission_asr", "--ckpt", str(folder / "best"), "--no-java"]) == 0
    assert (folder / "eval" / "submission_asr" / "submission.csv").is_file()
    assert "the newest such folder" not in capsys.readouterr().out  # the adapter says which
    short = ["--iterations", "1", "--warmup", "0", "--decode-steps", "2", "--clip-seconds", "1"]
    assert evaluate_efficiency.main([*arguments, "--ckpt", str(folder / "best"), *short]) == 0
    assert (folder / "efficiency.json").is_file() and folders(pattern) == [folder]


def with_runs(tmp_path: Path, **values: object) -> Config:
    """Folders of three days; the newest has no checkpoint."""
    for day, checkpoint in (("2025-01-01", True), ("2025-01-02", True), ("2025-01-03", False)):
        folder = tmp_path / day
        folder.mkdir()
        if checkpoint:
            (folder / "checkpoint_000003" / "trainer_state").mkdir(parents=True)
            (folder / "best").symlink_to("checkpoint_000003")
    (tmp_path / "2025-01-01_stage2" / "best").mkdir(parents=True)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"run": {"output_dir": str(tmp_path / "{date}"), "auto_second": True}, **values}))
    return load_config(file)


@pytest.mark.parametrize(
    ("resume", "day"),
    [
        (None, "now"),
        ("auto", "2025-01-02"),
        ("last", "2025-01-02"),
        ("2025-01-01", "2025-01-01"),
        ("2025-01-01/checkpoint_000003", "2025-01-01"),
        ("2025-01-01/best", "2025-01-01"),
        ("2025-01-01_stage2/best", "2025-01-01"),
        ("elsewhere/checkpoint_000003", "now"),
    ],
)
def test_what_training_writes_to(tmp_path: Path, monkeypatch, resume: str | None, day: str) -> None:
    config = with_runs(tmp_path)
    named(monkeypatch, "2025-02-01")
    if resume not in (None, "auto", "last"):
        resume = str(tmp_path / resume)
    moment = dated_folder.moment_to_train(config, resume)
    assert moment["date"] == ("2025-02-01" if day == "now" else day)
    run = dated_folder.with_moment(config, moment).run
    assert run.output_dir == str(tmp_path / moment["date"])


@pytest.mark.parametrize(
    ("ckpt", "day"),
    [("2025-01-01/best", "2025-01-01"), ("2025-01-02/checkpoint_000003", "2025-01-02"), ("", "2025-01-03"),
     ("elsewhere/best", "2025-01-03")],
)  # fmt: skip
def test_what_an_evaluation_writes_to(tmp_path: Path, capsys, ckpt: str, day: str) -> None:
    config = with_runs(tmp_path, model={"ckpt": str(tmp_path / ckpt) if ckpt else None})
    assert dated_folder.moment_to_evaluate(config)["date"] == day
    assert ("the newest such folder" in capsys.readouterr().out) == (day == "2025-01-03")


def test_a_link_to_an_adapter_is_followed(tmp_path: Path) -> None:
    config = with_runs(tmp_path)
    (tmp_path / "chosen").symlink_to(tmp_path / "2025-01-01" / "checkpoint_000003")
    assert dated_folder.moment_to_evaluate(config.with_adapter(str(tmp_path / "chosen")))["date"] == "2025-01-01"


def test_the_first_run_and_evaluation_take_this_moment(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"run: {{output_dir: '{tmp_path}/new/{{date}}'}}")
    named(monkeypatch, "2025-02-01")
    config = load_config(file)
    for moment in (dated_folder.moment_to_train(config, "auto"), dated_folder.moment_to_evaluate(config)):
        assert moment["date"] == "2025-02-01"


@pytest.mark.slow
def test_a_second_stage_is_of_the_same_moment(tiny_project, pattern, capsys):
    content = yaml.safe_load(tiny_project.config.read_text())
    content["run"] |= {"auto_second": True, "iters_per_epoch": 2, "output_dir_stage2": f"{pattern}_two"}
    content["datasets"]["train_stage2_path"] = str(tiny_project.valid)
    tiny_project.config.write_text(yaml.safe_dump(content))
    for arguments in ([], ["--resume"]):
        assert train.main(["--cfg-path", str(tiny_project.config), *arguments]) == 0
        first, second = sorted(Path(pattern).parent.iterdir())
        assert second.name == f"{first.name}_two"


@pytest.mark.slow
def test_processes_agree(tiny_project, pattern):
    """Each process starts at a moment of its own."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["run.batch_size_train=1", "run.optims.max_epoch=1"]
    config = ["--cfg-path", str(tiny_project.config), "--options", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for words in (["train.py", *config], ["train.py", *config, "--resume"], ["evaluate.py", *config, "--no-java"]):
        done = subprocess.run([*launch, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-2000:]
    (folder,) = folders(pattern)
    assert (folder / "eval" / "submission_asr" / "scores.json").is_file()

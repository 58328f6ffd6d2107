"""The command `train.py`: stages, resuming, messages."""

import json
import os
import signal

import pytest
import yaml

import train
from tests import tiny
from training.step import TrainingStep


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    status = train.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_training_ends_with_what_to_do_next(tiny_project, capsys):
    status, out, _ = run(capsys, "--cfg-path", tiny_project.config)
    assert status == 0
    assert "python evaluate.py --cfg-path" in out
    assert str(tiny_project.output / "best") in out
    assert (tiny_project.output / "last" / "adapter.safetensors").is_file()


def test_an_existing_run_is_not_overwritten_but_resumed(tiny_project, capsys, monkeypatch):
    take = TrainingStep.take

    def stopped(self, window, tokens):
        os.kill(os.getpid(), signal.SIGTERM)
        return take(self, window, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "take", stopped)
        status, out, _ = run(capsys, "--cfg-path", tiny_project.config)
    assert status == 128 + signal.SIGTERM
    assert f"continue with: python train.py --cfg-path {tiny_project.config} --resume" in out

    status, _, err = run(capsys, "--cfg-path", tiny_project.config)
    assert status == 1
    assert "--resume" in err

    status, out, _ = run(capsys, "--cfg-path", tiny_project.config, "--resume")
    assert status == 0
    assert "resumed from" in out

    status, out, _ = run(capsys, "--cfg-path", tiny_project.config, "--resume")  # nothing left to do
    assert status == 0
    assert "done: 6 steps" in out


def test_resume_without_a_checkpoint_starts(tiny_project, capsys):
    status, out, _ = run(capsys, "--cfg-path", tiny_project.config, "--resume", "--options", "run.optims.max_epoch=1")
    assert status == 0
    assert "resumed" not in out
    assert "warmup_steps" not in out


def test_a_warm_up_longer_than_the_run_is_said(tiny_project, capsys):
    options = ("run.optims.max_epoch=1", "run.optims.warmup_steps=900", "run.optims.warmup_start_lr=0")
    status, out, _ = run(capsys, "--cfg-path", tiny_project.config, "--options", *options)
    assert status == 0
    assert "warmup_steps, 900, is more than the run's 3 iterations" in out


def test_resume_from_nowhere_is_an_error(tiny_project, capsys, tmp_path):
    status, _, err = run(capsys, "--cfg-path", tiny_project.config, "--resume", tmp_path / "nowhere")
    assert status == 1
    assert "nowhere" in err


def test_second_stage_starts_from_the_first(tmp_path, capsys):
    project = tiny.write_project(tmp_path / "tiny", run={"auto_second": True, "iters_per_epoch": 2})
    stages = project.root / "stages.yaml"
    content = yaml.safe_load(project.config.read_text())
    content["datasets"]["train_stage2_path"] = str(project.valid)
    stages.write_text(yaml.safe_dump(content))
    status, out, _ = run(capsys, "--cfg-path", stages)
    assert status == 0
    assert "stage 2" in out
    second = project.output.with_name(project.output.name + "_stage2")
    saved = yaml.safe_load((second / "last" / "config.yaml").read_text())
    assert saved["model"]["ckpt"] == str((project.output / "best").resolve())
    assert json.loads((second / "log.jsonl").read_text().splitlines()[0])["step"] == 1
    status, out, _ = run(capsys, "--cfg-path", stages, "--resume")  # both stages are done
    assert status == 0


def test_errors_are_one_line(tiny_project, capsys):
    status, _, err = run(capsys, "--cfg-path", tiny_project.config, "--options", "run.sed=1")
    assert status == 1
    assert err.startswith("error:")
    assert "seed" in err
    status, _, err = run(capsys, "--cfg-path", tiny_project.config, "--options", "datasets.train_ann_path=absent.json")
    assert status == 1
    assert "absent.json" in err
    status, _, err = run(capsys, "--cfg-path", tiny_project.config, "--options", "datasets.task_weights.singing=2")
    assert status == 1
    assert err.startswith(f"error: {tiny_project.config}: datasets.task_weights.singing: no clip")
    status, _, err = run(capsys, "--cfg-path", tiny_project.config, "--options", "datasets.augmentation={gain: {q: 1}}")
    assert status == 1
    assert err.startswith(f"error: --options (over {tiny_project.config}): datasets.augmentation.gain.q: unknown")
    blocked = f"run.output_dir={tiny_project.config}/within"
    status, _, err = run(capsys, "--cfg-path", tiny_project.config, "--options", blocked)
    assert status == 1
    assert f"{tiny_project.config} is a file" in err
    status, _, err = run(capsys, "--cfg-path", tiny_project.config, "--options", "model.dtype=float16")
    assert status == 1
    assert "model.dtype=float32" in err
    status, _, err = run(capsys, "--cfg-path", tiny_project.config, "--options", "model.whisper_path=owner/nowhere")
    assert status == 1
    problem = "no such folder here, and the hub cannot be reached"
    assert err.startswith(f"error: {tiny_project.config}: model.whisper_path: ") and problem in err
    assert len(err.splitlines()) == 1

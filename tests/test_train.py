"""The command `train.py`: stages, resuming, messages."""

import errno
import json
import os
import signal

import numpy as np
import pytest
import soundfile
import yaml

import evaluate
import train
from data.audio import load_waveform
from tests import tiny
from tests.locks import left_by
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
    assert f"{tiny_project.output}: no checkpoint to resume from yet, so this run starts from the beginning" in out
    assert "warmup_steps" not in out


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_folder_in_which_another_run_trains_is_left_alone(tiny_project, capsys, monkeypatch, resume):
    left_by(tiny_project.output, host="elsewhere", pid=77)
    monkeypatch.setattr("models.build.build_model", None)  # it must be found before minutes of loading
    status, _, err = run(capsys, "--cfg-path", tiny_project.config, *resume)
    assert status == 1
    (line,) = [line for line in err.splitlines() if line.startswith("error")]
    assert f"{tiny_project.output} is in use by process 77 on elsewhere" in line and "another run.output_dir" in line
    assert [path.name for path in tiny_project.output.iterdir()] == [".lock"]


def test_a_dead_runs_folder_is_taken_over(tiny_project, capsys):
    left_by(tiny_project.output, started="1")
    status, out, _ = run(capsys, "--cfg-path", tiny_project.config)
    assert status == 0 and "has ended without giving it back; taking the folder over" in out
    assert not (tiny_project.output / ".lock").exists()


def test_an_error_leaves_no_folder_that_only_held_the_lock(tiny_project, capsys):
    status, _, err = run(capsys, "--cfg-path", tiny_project.config, "--options", "model.whisper_path=nowhere/at_all")
    assert status == 1 and "nowhere/at_all" in err and not tiny_project.output.exists()


def test_a_file_system_without_links(tiny_project, capsys, monkeypatch, without_java):
    def refuse(*arguments, **options):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "symlink", refuse)
    options = ["--options", "run.checkpoint_every_steps=1", "run.keep_checkpoints=1"]
    assert run(capsys, "--cfg-path", tiny_project.config, *options, "run.optims.max_epoch=1")[0] == 0
    best = tiny_project.output / "best"
    assert best.is_file() and (tiny_project.output / best.read_text().strip() / "adapter.safetensors").is_file()
    assert run(capsys, "--cfg-path", tiny_project.config, "--resume", *options)[0] == 0
    found = {path.name for path in tiny_project.output.glob("checkpoint_*")}
    assert {(tiny_project.output / name).read_text().strip() for name in ("best", "last")} == found
    for ckpt in (best, best / "adapter.safetensors", tiny_project.output / "last", tiny_project.output):
        arguments = ["--cfg-path", str(tiny_project.config), "--mode", "submission_asr", "--ckpt", str(ckpt)]
        assert evaluate.main(arguments) == 0, ckpt
    elsewhere = f"run.output_dir={tiny_project.root / 'other'}"
    resumed = ["--resume", tiny_project.output / "last", "--options", elsewhere]
    assert run(capsys, "--cfg-path", tiny_project.config, *resumed)[0] == 0


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


def test_training_on_parts_equals_training_on_their_files(tmp_path, capsys):
    losses = []
    for kind in ("files", "parts"):
        project = tiny.write_project(tmp_path / kind, run={"optims": {"max_epoch": 1}}, datasets={"bucket_batches": 0})
        entries = json.loads(project.train.read_text())["annotation"]
        if kind == "parts":
            sounds = [load_waveform(project.train.parent / entry["path"]).numpy() for entry in entries]
            starts = np.cumsum([0, *map(len, sounds)]) / tiny.SAMPLE_RATE
            soundfile.write(
                project.train.parent / "long.wav", np.concatenate(sounds), tiny.SAMPLE_RATE, subtype="FLOAT"
            )
            for entry, start, end in zip(entries, starts, starts[1:], strict=False):
                entry |= {"path": "long.wav", "start": float(start), "end": float(end)}
        tiny.write_annotations(project.train, entries)
        status, out, _ = run(capsys, "--cfg-path", project.config, "--dryrun")
        assert status == 0 and ("of them parts of recordings" in out) == (kind == "parts")
        assert run(capsys, "--cfg-path", project.config)[0] == 0
        losses.append(
            [line["loss"] for line in map(json.loads, (project.output / "log.jsonl").open()) if "loss" in line]
        )
    assert losses[0] == losses[1]


def test_nothing_to_train_on_is_an_error(tiny_project, capsys):
    for name in ("train", "valid"):
        options = [f"datasets.{other}_ann_path={tiny_project.root / other}.json" for other in ("train", "valid")]
        for other in ("train", "valid"):
            entries = json.loads(getattr(tiny_project, other).read_text())["annotation"]
            folder = "/nowhere" if other == name else tiny_project.train.parent
            written = [entry | {"path": f"{folder}/{entry['path']}"} for entry in entries]
            tiny.write_annotations(tiny_project.root / f"{other}.json", written)
        for dryrun in ((), ("--dryrun",)):
            status, _, err = run(capsys, "--cfg-path", tiny_project.config, *dryrun, "--options", *options)
            assert status == 1
            assert f"datasets.{name}_ann_path: no file is there for any of the" in err
            assert "the first is /nowhere/" in err and "datasets.prefix" in err
    tiny.write_annotations(tiny_project.train, [entry | {"text": " ", "texts": None} for entry in entries])
    status, _, err = run(capsys, "--cfg-path", tiny_project.config)
    assert status == 1 and "there is nothing to learn" in err


def test_a_run_of_bad_clips_alone_ends_with_an_error(tiny_project, capsys):
    entries = json.loads(tiny_project.train.read_text())["annotation"]
    for entry in entries:
        (tiny_project.train.parent / entry["path"]).write_text("no sound")
    options = ("datasets.max_bad_fraction=1", "datasets.valid_ann_path=null")
    status, _, err = run(capsys, "--cfg-path", tiny_project.config, "--options", *options)
    assert status == 1
    assert f"none of the {len(entries)} clips could be used, so nothing was learned" in err

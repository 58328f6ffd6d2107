"""Whole runs of the training loop: losses, bad clips, files, two processes."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import train
from configs.schema import load_config
from support import folder_lock
from support.folder_lock import FolderInUse
from tests.conftest import ROOT
from tests.locks import left_by
from tests.parts import batch_sampler
from tests.runs import kill_after, losses_of, make_runner


def test_cached_encoder_outputs_do_not_change_the_losses(tiny_project):
    make_runner(tiny_project.config, f"run.output_dir={tiny_project.root / 'plain'}").train()
    cached = f"datasets.cache_encoder_outputs={tiny_project.root / 'cache'}"
    make_runner(tiny_project.config, f"run.output_dir={tiny_project.root / 'cached'}", cached).train()
    plain, with_cache = losses_of(tiny_project.root / "plain"), losses_of(tiny_project.root / "cached")
    assert [loss for _, loss, _ in with_cache] == pytest.approx([loss for _, loss, _ in plain], abs=1e-4)
    with pytest.raises(ValueError, match=r"cache_encoder_outputs.*whisper"):
        make_runner(tiny_project.config, cached, "model.freeze_whisper=false")


def test_bad_clips_are_set_aside_and_stop_the_run_in_the_end(tiny_project):
    entries = json.loads(tiny_project.train.read_text())["annotation"]
    (tiny_project.train.parent / entries[0]["path"]).write_bytes(b"no audio")
    result = make_runner(tiny_project.config, "datasets.max_bad_fraction=0.5").train()
    lines = [json.loads(line) for line in (result.folder / "quarantine.jsonl").read_text().splitlines()]
    assert len(lines) == 1
    assert lines[0]["path"].endswith(entries[0]["path"])
    with pytest.raises(ValueError, match="max_bad_fraction"):
        make_runner(tiny_project.config, f"run.output_dir={tiny_project.root / 'strict'}").train()


def test_a_validation_loss_that_is_not_finite_is_null_in_the_files(tiny_project):
    runner = make_runner(tiny_project.config, "run.iters_per_epoch=1", "run.optims.max_epoch=1")
    runner.validator.scores = lambda stop: {"loss": math.nan, "asr.wer": math.inf}
    result = runner.train()
    assert result.best is None
    texts = [(result.last / "metrics.json").read_text(), *(result.folder / "log.jsonl").read_text().splitlines()]
    metrics, *logged = [json.loads(text, parse_constant=pytest.fail) for text in texts]
    assert (metrics["value"], metrics["scores"]) == (None, {"loss": None, "asr.wer": None})
    assert logged[-1]["valid/loss"] is None


def test_a_run_of_bad_clips_alone_does_not_hang(tiny_project):
    for entry in json.loads(tiny_project.train.read_text())["annotation"]:
        (tiny_project.train.parent / entry["path"]).write_bytes(b"")
    result = make_runner(tiny_project.config, "datasets.max_bad_fraction=1.0").train()
    assert result.step == result.total_steps


@pytest.mark.slow
def test_two_processes_equal_one(tiny_project):
    """Same global batch, dropout off: the same losses; also where a process has nothing to learn from in a step."""
    options = [
        "model.qformer_dropout=0",
        "datasets.max_bad_fraction=1.0",
        "run.accum_grad_iters=2",
        "run.iters_per_epoch=6",
        "run.optims.max_epoch=1",
    ]
    data, _ = train.load_data(load_config(tiny_project.config))
    order = batch_sampler(data.durations(), batch_size=2, seed=1).order(0)[:, 0]
    # Of steps of two batches of two clips: the second process' last batch; then a batch of both processes.
    for position in (3, 4, 5):
        Path(data.annotations[order[position]].path).write_bytes(b"")
    one, two = tiny_project.root / "one", tiny_project.root / "two"
    make_runner(tiny_project.config, *options, "run.batch_size_train=2", f"run.output_dir={one}").train()
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"),
        *("--cfg-path", str(tiny_project.config), "--options", *options),
        *("run.batch_size_train=1", f"run.output_dir={two}"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert "2 processes" in finished.stdout
    expected, got = losses_of(one), losses_of(two)
    assert "deprecated" not in finished.stderr
    assert [step for step, *_ in got] == [step for step, *_ in expected]
    assert [loss for _, loss, _ in got] == pytest.approx([loss for _, loss, _ in expected], abs=1e-4)
    assert [norm for *_, norm in got] == pytest.approx([norm for *_, norm in expected], rel=1e-3)


def test_a_runner_does_not_share_its_folder(tiny_project):
    left_by(tiny_project.output, host="elsewhere")
    with pytest.raises(FolderInUse, match="is in use by process"):
        make_runner(tiny_project.config).train()
    assert [path.name for path in tiny_project.output.iterdir()] == [".lock"]


def test_a_run_whose_folder_was_taken_over_saves_nothing_more(tiny_project, monkeypatch):
    """Its machine was suspended, and another one has taken the folder meanwhile."""
    monkeypatch.setattr(folder_lock, "RECHECK_S", 0.0)
    kill_after(monkeypatch, 2, lambda: left_by(tiny_project.output, host="elsewhere", token="another"))
    with pytest.raises(FolderInUse, match=r"on elsewhere .* has taken this folder over"):
        make_runner(tiny_project.config).train()
    assert not list(tiny_project.output.glob("checkpoint_*")) and (tiny_project.output / ".lock").exists()

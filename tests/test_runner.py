"""The training loop: steps, validation, non-finite steps, bad clips, two processes. Stops are in test_resume.py."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from configs.schema import load_config
from dataset import collate
from support.random_state import preserved_rng, rng_state, set_rng_state
from tests import tiny
from tests.parts import batch_sampler
from tests.runs import log_of, losses_of, make_runner
from training import precision, step
from training.best_checkpoint import criterion, is_better
from training.nonfinite import NonFiniteError, first_nonfinite

ROOT = Path(__file__).resolve().parent.parent


# -- whole runs ------------------------------------------------------------------------------------------------------


def test_precision_of_training(shared_tiny_project):
    config = load_config(shared_tiny_project.config)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert precision.training_model_config(config, cpu) is config.model
    assert precision.training_model_config(config, cuda).dtype == "float32"
    scaled = load_config(shared_tiny_project.config, ["run.amp=true"])
    assert precision.training_model_config(scaled, cuda).dtype == "auto"
    half = load_config(shared_tiny_project.config, ["model.dtype=float16"])
    with pytest.raises(ValueError, match=r"run\.amp"):
        precision.training_model_config(half, cuda)
    with pytest.raises(ValueError, match="on the cpu"):
        precision.training_model_config(half, cpu)


@pytest.mark.parametrize("name", ["asr.werr", "audiocaption.spice", "music_description.cider_d"])
def test_a_metric_that_validation_lacks_is_refused_before_training(shared_tiny_project, name):
    with pytest.raises(ValueError, match="best_metric"):
        make_runner(shared_tiny_project.config, "run.valid_scoring=true", f"run.best_metric={name}")


def test_scores_choose_the_best_checkpoint(tiny_project):
    runner = make_runner(tiny_project.config, "run.valid_scoring=true", "run.valid_max_samples=4")
    result = runner.train()
    assert {"loss", "asr.wer", "audiocaption.cider_d"} <= set(result.scores)
    assert result.best is not None
    assert runner.progress.best["criterion"] == "mean log of asr.wer, audiocaption.cider_d"


def test_cached_encoder_outputs_do_not_change_the_losses(tiny_project):
    make_runner(tiny_project.config, f"run.output_dir={tiny_project.root / 'plain'}").train()
    cached = f"datasets.cache_encoder_outputs={tiny_project.root / 'cache'}"
    make_runner(tiny_project.config, f"run.output_dir={tiny_project.root / 'cached'}", cached).train()
    plain, with_cache = losses_of(tiny_project.root / "plain"), losses_of(tiny_project.root / "cached")
    assert [loss for _, loss, _ in with_cache] == pytest.approx([loss for _, loss, _ in plain], abs=1e-4)
    with pytest.raises(ValueError, match=r"cache_encoder_outputs.*whisper"):
        make_runner(tiny_project.config, cached, "model.freeze_whisper=false")


# -- steps -----------------------------------------------------------------------------------------------------------


def test_split_into_batches_does_not_change_the_gradients(tiny_project):
    """Answers of unequal length, so that a mean of batch means would be another number."""
    options = (
        "run.max_grad_norm=null",
        "run.batch_size_train=4",
        "model.qformer_dropout=0",
        "run.accum_grad_iters=2",
        "datasets.bucket_batches=0",
    )
    runner = make_runner(tiny_project.config, *options)
    first, second = next(runner._windows())
    data = runner.train_data
    keys = [(0, index) for index in (*first.ids, *second.ids)]
    joined = collate([data[key] for key in keys], runner.model.text)
    tokens = joined.text_batch.target_tokens
    assert tokens == first.text_batch.target_tokens + second.text_batch.target_tokens
    gradients = []
    for window in ([first, second], [joined]):
        loss, _ = runner.training_step._accumulate(window, tokens)
        gradients.append([parameter.grad.clone() for parameter in runner.model.adapter_parameters()])
        runner.optimizer.zero_grad(set_to_none=True)
        assert loss > 0
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)


def test_nonfinite_steps_are_skipped_counted_and_then_named(tiny_project):
    options = ("run.max_nonfinite_steps=3", "run.iters_per_epoch=20", "run.optims.max_epoch=1")
    runner = make_runner(tiny_project.config, *options)
    before = [parameter.detach().clone() for parameter in runner.model.adapter_parameters()]
    broken = runner.model.connector.qformer
    broken.register_forward_hook(lambda module, inputs, output: output * math.nan)
    with pytest.raises(NonFiniteError, match=r"3 steps in a row.*the output of connector\.qformer") as caught:
        runner.train()
    assert "run.max_nonfinite_steps" in str(caught.value)
    after = list(runner.model.adapter_parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_single_nonfinite_step_is_passed_over(tiny_project):
    runner = make_runner(tiny_project.config)
    calls = []

    def once(module, inputs, output):
        calls.append(None)
        return output * math.nan if len(calls) == 2 else output

    runner.model.connector.qformer.register_forward_hook(once)
    runner.train()
    lines = [line for line in log_of(tiny_project.output) if "loss" in line]
    assert [line["skipped"] for line in lines] == [0, 1, 1, 1, 1, 1]
    assert lines[1]["loss"] is None
    assert all(math.isfinite(line["loss"]) for line in lines if line["step"] != 2)


def test_first_nonfinite_finds_weights_outputs_and_gradients():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    inputs = torch.ones(3, 2)
    assert first_nonfinite(model, lambda: model(inputs).sum()) is None
    assert "output of 0" in first_nonfinite(model, lambda: model(inputs * math.inf).sum())
    assert "loss itself" in first_nonfinite(model, lambda: model(inputs).sum() * math.nan)
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.zero_()
    assert "gradient" in first_nonfinite(model, lambda: model(inputs).sqrt().sum())
    with torch.no_grad():
        model[1].bias.fill_(math.nan)
    assert "weights of 1.bias" in first_nonfinite(model, lambda: model(inputs).sum())


def test_bad_clips_are_set_aside_and_stop_the_run_in_the_end(tiny_project):
    entries = json.loads(tiny_project.train.read_text())["annotation"]
    (tiny_project.train.parent / entries[0]["path"]).write_bytes(b"no audio")
    result = make_runner(tiny_project.config, "datasets.max_bad_fraction=0.5").train()
    lines = [json.loads(line) for line in (result.folder / "quarantine.jsonl").read_text().splitlines()]
    assert len(lines) == 1
    assert lines[0]["path"].endswith(entries[0]["path"])
    with pytest.raises(ValueError, match="max_bad_fraction"):
        make_runner(tiny_project.config, f"run.output_dir={tiny_project.root / 'strict'}").train()


def test_bad_validation_clips_are_named_once_and_not_counted(tiny_project, capsys):
    entries = json.loads(tiny_project.valid.read_text())["annotation"]
    (tiny_project.valid.parent / entries[1]["path"]).write_bytes(b"no audio")
    options = ("run.iters_per_epoch=1", "run.optims.max_epoch=2", "datasets.max_bad_fraction=0")
    folder = make_runner(tiny_project.config, *options).train().folder
    assert [line["valid/bad_clips"] for line in log_of(folder) if "valid/loss" in line] == [1, 1]
    assert all(math.isfinite(line["valid/loss"]) for line in log_of(folder) if "valid/loss" in line)
    (line,) = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert (line["index"], line["split"]) == (1, "validation")
    assert line["path"].endswith(entries[1]["path"])
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count("1 of 5 clips cannot be read") == 1
    make_runner(tiny_project.config, *options, "run.optims.max_epoch=3", resume=folder / "last").train()
    assert len((folder / "quarantine.jsonl").read_text().splitlines()) == 1


def test_a_best_metric_without_a_figure_is_said_and_the_checkpoint_saved(tiny_project, capsys):
    entries = json.loads(tiny_project.valid.read_text())["annotation"]
    tiny.write_annotations(tiny_project.valid, [{**entry, "text": " ", "texts": [" "]} for entry in entries])
    options = ("run.iters_per_epoch=1", "run.optims.max_epoch=1", "run.valid_scoring=true", "run.best_metric=asr.wer")
    result = make_runner(tiny_project.config, *options).train()
    assert (result.step, result.best) == (1, None)
    metrics = json.loads((result.last / "metrics.json").read_text())
    assert (metrics["criterion"], metrics["value"], metrics["best_so_far"]) == ("asr.wer", None, False)
    printed = capsys.readouterr()
    assert "run.best_metric = asr.wer (3 of 3 clips have no reference)" in printed.out + printed.err


def test_a_validation_loss_that_is_not_finite_is_null_in_the_files(tiny_project):
    runner = make_runner(tiny_project.config, "run.iters_per_epoch=1", "run.optims.max_epoch=1")
    runner.validator.scores = lambda stop: {"loss": math.nan, "asr.wer": math.inf}
    result = runner.train()
    assert result.best is None
    texts = [(result.last / "metrics.json").read_text(), *(result.folder / "log.jsonl").read_text().splitlines()]
    metrics, *logged = [json.loads(text, parse_constant=pytest.fail) for text in texts]
    assert (metrics["value"], metrics["scores"]) == (None, {"loss": None, "asr.wer": None})
    assert logged[-1]["valid/loss"] is None


def test_text_is_scored_without_autocast(tiny_project, monkeypatch):
    """As evaluate.py does, whatever precision trains."""
    runner = make_runner(tiny_project.config, "run.valid_scoring=true", "run.valid_max_samples=1")
    monkeypatch.setattr(runner.accelerator, "autocast", lambda: torch.autocast("cpu", torch.bfloat16))
    decode, used = type(runner.model.text).decode, []

    def decoded(self, ids):
        used.append(torch.is_autocast_enabled("cpu"))
        return decode(self, ids)

    monkeypatch.setattr(type(runner.model.text), "decode", decoded)
    runner.validator.scores()
    assert used == [False]


def test_cuda_that_is_not_there_trains_on_the_cpu(tiny_project, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    accelerator = precision.make_accelerator(load_config(tiny_project.config, ["run.device=cuda"]))
    assert accelerator.device.type == "cpu"
    assert "run.device is cuda" in caplog.text


def test_a_run_of_bad_clips_alone_does_not_hang(tiny_project):
    for entry in json.loads(tiny_project.train.read_text())["annotation"]:
        (tiny_project.train.parent / entry["path"]).write_bytes(b"")
    result = make_runner(tiny_project.config, "datasets.max_bad_fraction=1.0").train()
    assert result.step == result.total_steps


# -- two processes ---------------------------------------------------------------------------------------------------


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


# -- small parts -----------------------------------------------------------------------------------------------------


def test_criterion():
    loss_only = {"loss": 2.0}
    assert criterion(loss_only) == ("loss", -2.0)
    one_task = {"loss": 2.0, "asr.wer": 0.25, "asr.substitutions": 3.0}
    assert criterion(one_task) == ("asr.wer", -0.25)
    assert criterion(one_task, "loss") == ("loss", -2.0)
    assert criterion({"loss": 2.0, "asr.wer": None}, "asr.wer") == ("asr.wer", None)

    def both(wer, cider):
        return criterion({"loss": 1.0, "asr.wer": wer, "audiocaption.cider_d": cider})[1]

    assert both(0.1, 1.0) > both(0.2, 1.0)
    assert both(0.1, 1.0) > both(0.1, 0.8)
    assert both(0.05, 1.0) > both(0.1, 1.5)  # halving the errors counts more than half as much again
    assert math.isfinite(both(0.0, 0.0))


def test_is_better():
    best, scores = {"criterion": "asr.wer", "value": -0.2, "scores": {"loss": 1.0}}, {"loss": 2.0}
    assert is_better("asr.wer", -0.1, scores, None)
    assert is_better("asr.wer", -0.1, scores, best)
    assert not is_better("asr.wer", -0.2, scores, best)
    assert is_better("asr.wer", -0.2, {"loss": 0.5}, best)
    assert not is_better("asr.wer", math.nan, scores, None)
    assert not is_better("asr.wer", None, scores, None)
    assert is_better("loss", -3.0, scores, best)


def test_random_generators_are_put_back():
    import random

    import numpy

    def draw():
        return torch.rand(1).item(), numpy.random.rand(), random.random()

    state = rng_state()
    expected = draw()
    set_rng_state(state)
    with preserved_rng():
        assert draw() == expected
    assert draw() == expected


def test_wandb_that_is_not_installed_is_a_clear_error(tiny_project, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        make_runner(tiny_project.config, "wandb.mode=offline").train()


def test_process_count_is_checked(tiny_project, monkeypatch):
    class Alone:
        num_processes = 1

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(step, "Accelerator", lambda **_: Alone())
    with pytest.raises(ValueError, match="asked for 2 processes, but 1"):
        precision.make_accelerator(load_config(tiny_project.config))

"""The training loop: exact resume, signals, whole checkpoints, non-finite steps, bad clips, two processes."""

import errno
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
import training_step
from configs.schema import load_config
from dataset import GlobalBatchSampler, collate
from models import build_model, load_model
from models.checkpoint import save_adapter
from nonfinite import NonFiniteError, first_nonfinite
from run_folder import (
    Progress,
    RunFolder,
    RunFolderError,
    TrainerState,
    find_resume,
    preserved_rng,
    rng_state,
    set_rng_state,
)
from runner import Runner
from tests import tiny
from training_step import TrainingStep
from validation import criterion, is_better

ROOT = Path(__file__).resolve().parent.parent


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it and tidy up."""


def make_runner(config_path: Path, *options: str, resume: Path | None = None) -> Runner:
    config = load_config(config_path, list(options))
    train_data, valid_data = train.load_data(config)
    torch.manual_seed(config.run.seed)
    model = build_model(config.model, device="cpu")
    return Runner(config, model, train_data, valid_data, resume=resume)


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses_of(folder: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in log_of(folder) if "loss" in line]


def kill_after(monkeypatch: pytest.MonkeyPatch, step: int, action) -> None:
    """Call `action` when the step after `step` is about to be taken."""
    take = TrainingStep.take

    def taken(self, window, tokens):
        taken.count += 1
        if taken.count == step + 1:
            action()
        return take(self, window, tokens)

    taken.count = 0
    monkeypatch.setattr(TrainingStep, "take", taken)


def die() -> None:
    raise Killed


# -- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lively_project(tmp_path_factory) -> tiny.TinyProject:
    """A project in which everything random is on: dropout, augmentation, several prompts, length buckets."""
    return tiny.write_project(
        tmp_path_factory.mktemp("lively"),
        model={"lora_dropout": 0.3},
        datasets={"augmentation": {"gain": {"p": 0.5}, "gaussian_noise": {"p": 0.5}}, "bucket_batches": 2},
        run={"accum_grad_iters": 2, "batch_size_train": 2, "iters_per_epoch": 5, "checkpoint_every_steps": 2},
    )


@pytest.fixture(scope="module")
def uninterrupted(lively_project, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    make_runner(lively_project.config, f"run.output_dir={folder}").train()
    return folder


def test_a_killed_run_goes_on_exactly(lively_project, uninterrupted, tmp_path, monkeypatch):
    """Killed while workers load ahead, resumed without them, held against a run that never had any."""
    folder = tmp_path / "run"
    option = f"run.output_dir={folder}"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 5, die)  # 3 steps an epoch: the newest checkpoint, of step 4, lies within the second one
        make_runner(lively_project.config, option, "run.num_workers=2").train()
    assert RunFolder(folder).last().name == "checkpoint_000004"
    assert len(losses_of(folder)) == 5

    resumed = make_runner(lively_project.config, option, resume=find_resume("auto", RunFolder(folder)))
    assert resumed.progress.step == 4
    result = resumed.train()
    assert (result.step, result.stopped_by) == (6, None)
    assert losses_of(folder) == losses_of(uninterrupted)  # bit for bit
    whole, again = (load_model(path / "last").state_dict() for path in (uninterrupted, folder))
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 2), (signal.SIGINT, 3)])
def test_a_signal_saves_and_the_run_goes_on_exactly(lively_project, uninterrupted, tmp_path, monkeypatch, number, step):
    """Mid-epoch, and in an epoch's last step: its validation is then left, and done after resuming."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_after(patch, step - 1, lambda: os.kill(os.getpid(), number))
        result = make_runner(lively_project.config, f"run.output_dir={folder}").train()
    assert result.stopped_by == number
    assert result.step == step
    assert result.last == folder / f"checkpoint_{result.step:06d}"
    make_runner(lively_project.config, f"run.output_dir={folder}", resume=result.last).train()
    assert losses_of(folder) == losses_of(uninterrupted)
    validations = [[line for line in log_of(path) if "valid/loss" in line] for path in (folder, uninterrupted)]
    assert validations[0] == validations[1]


def test_checkpoint_folder_and_pointers(lively_project, uninterrupted):
    names = {path.name for path in (uninterrupted / "last").iterdir()}
    assert {"adapter.safetensors", "config.yaml", "metrics.json", "trainer_state"} <= names
    assert json.loads((uninterrupted / "best" / "metrics.json").read_text())["criterion"] == "loss"
    assert (uninterrupted / "loss.png").read_bytes().startswith(b"\x89PNG")
    validations = [line for line in log_of(uninterrupted) if "valid/loss" in line]
    assert [line["step"] for line in validations] == [3, 6]
    assert len(RunFolder(uninterrupted).checkpoints()) <= 3  # two newest and the best
    assert {"lr", "grad_norm", "samples_per_s", "skipped"} <= set(log_of(uninterrupted)[0])


def test_resume_refuses_another_run(lively_project, uninterrupted, tmp_path):
    with pytest.raises(RunFolderError, match=r"seed: 1 -> 2"):
        make_runner(lively_project.config, "run.seed=2", resume=uninterrupted / "last")


def test_an_adapter_alone_cannot_be_resumed(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(RunFolderError, match=r"model\.ckpt"):
        TrainerState.read(tmp_path / "checkpoint")


def test_disk_full_leaves_the_previous_checkpoint(lively_project, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    write = TrainerState.write

    def full(self, target):
        if self.progress.step > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, target)

    with monkeypatch.context() as patch, pytest.raises(RunFolderError, match=r"checkpoint_000002 is whole.*--resume"):
        patch.setattr(TrainerState, "write", full)
        make_runner(lively_project.config, f"run.output_dir={folder}").train()
    assert [path.name for path in RunFolder(folder).checkpoints()] == ["checkpoint_000002"]
    assert make_runner(lively_project.config, f"run.output_dir={folder}", resume=folder / "last").progress.step == 2


def test_a_file_system_that_is_really_full(tmp_path):
    """The libraries report it as errors of their own."""
    tensors = {"weight": torch.zeros(100_000)}
    model = torch.nn.Module()
    model.connector = torch.nn.Linear(300, 300)
    states = TrainerState(Progress(), {}, None, []), TrainerState(Progress(), tensors, None, [])
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(OSError, match="adapter"):
            save_adapter(model, tmp_path / "checkpoint")
        states[0].write(tmp_path)
        with pytest.raises(OSError, match="optimizer"):
            states[1].write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "checkpoint").exists()


def test_a_damaged_trainer_state_is_named(lively_project, uninterrupted, tmp_path):
    copy = tmp_path / "checkpoint_000006"
    shutil.copytree(uninterrupted / "last", copy)
    with open(copy / "trainer_state" / "optimizer.pt", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(RunFolderError, match="is damaged"):
        TrainerState.read(copy)


def test_a_stop_right_after_a_checkpoint_leaves_its_scores(lively_project, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    finish = Runner._finish_epoch

    def finish_and_stop(self):
        finished = finish(self)
        os.kill(os.getpid(), signal.SIGTERM)
        return finished

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "_finish_epoch", finish_and_stop)
        assert make_runner(lively_project.config, f"run.output_dir={folder}").train().step == 3
    assert "loss" in json.loads((folder / "best" / "metrics.json").read_text())["scores"]


def test_precision_of_training(lively_project):
    config = load_config(lively_project.config)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert training_step.training_model_config(config, cpu) is config.model
    assert training_step.training_model_config(config, cuda).dtype == "float32"
    scaled = load_config(lively_project.config, ["run.amp=true"])
    assert training_step.training_model_config(scaled, cuda).dtype == "auto"
    with pytest.raises(ValueError, match=r"run\.amp"):
        training_step.training_model_config(load_config(lively_project.config, ["model.dtype=float16"]), cuda)


@pytest.mark.parametrize("name", ["asr.werr", "audiocaption.spice", "music_description.cider_d"])
def test_a_metric_that_validation_lacks_is_refused_before_training(lively_project, name):
    with pytest.raises(ValueError, match="best_metric"):
        make_runner(lively_project.config, "run.valid_scoring=true", f"run.best_metric={name}")


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


def test_text_is_scored_without_autocast(tiny_project, monkeypatch):
    """As evaluate.py does, whatever precision trains."""
    runner = make_runner(tiny_project.config, "run.valid_scoring=true", "run.valid_max_samples=1")
    monkeypatch.setattr(runner.accelerator, "autocast", lambda: torch.autocast("cpu", torch.bfloat16))
    generate, used = type(runner.model).generate, []

    def generated(self, *arguments, **options):
        used.append(torch.is_autocast_enabled("cpu"))
        return generate(self, *arguments, **options)

    monkeypatch.setattr(type(runner.model), "generate", generated)
    runner.validator.scores()
    assert used == [False]


def test_cuda_that_is_not_there_trains_on_the_cpu(tiny_project, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    accelerator = training_step.make_accelerator(load_config(tiny_project.config, ["run.device=cuda"]))
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
    order = GlobalBatchSampler(data.durations(), batch_size=2, seed=1).order(0)[:, 0]
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


def test_debris_is_no_checkpoint_and_is_swept(tmp_path):
    folder = RunFolder(tmp_path)
    for name in ("checkpoint_000002", "checkpoint_000010", ".checkpoint_000011.tmp"):
        (tmp_path / name / "trainer_state").mkdir(parents=True)
    (tmp_path / "checkpoint_000012").mkdir()  # without a trainer state
    assert [path.name for path in folder.checkpoints()] == ["checkpoint_000002", "checkpoint_000010"]
    folder.point("last", tmp_path / "checkpoint_000002")  # a kill fell between save and pointer
    assert find_resume("auto", folder).name == "checkpoint_000010"
    folder.sweep()
    assert not (tmp_path / ".checkpoint_000011.tmp").exists()
    folder.point("best", tmp_path / "checkpoint_000002")
    folder.prune(1)
    assert [path.name for path in folder.checkpoints()] == ["checkpoint_000002", "checkpoint_000010"]


def test_log_is_cut_after_the_resumed_step(tmp_path):
    folder = RunFolder(tmp_path)
    folder.log_path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    folder.cut_log(2)
    assert folder.log_path.read_text() == '{"step": 1}\n{"step": 2}\n'


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
    monkeypatch.setattr(training_step, "Accelerator", lambda **_: Alone())
    with pytest.raises(ValueError, match="asked for 2 processes, but 1"):
        training_step.make_accelerator(load_config(tiny_project.config))

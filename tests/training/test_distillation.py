"""Distillation: the losses, their gradients, teachers that do not fit, and complete runs."""

import functools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import train
from configs.schema import load_config
from configs.sections import DistillationConfig
from dataset import collate
from models import build_model
from models.checkpoint.adapter_folder import save_adapter
from tests import tiny
from training.distillation import Distiller, build_distiller, describe_plan, divergence, frozen, hidden_distance
from training.step import TrainingStep

PROMPT = "<Speech><SpeechHere></Speech> What is it?"
CLIPS = torch.randn(3, 24_000, generator=torch.Generator().manual_seed(4)) * 0.1
LENGTHS = torch.tensor([24_000, 9_000, 16_000])
TEXTS = ["a fish", "one two three four", "short beeps"]
ALL = DistillationConfig(labels=1, logits=1, hidden=1, qformer=1)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project whose YAML has a teacher: the same parts, another adapter."""
    project = tiny.write_project(tmp_path_factory.mktemp("distilled"))
    config = load_config(project.config)
    save_adapter(stirred(config.model), project.root / "teacher", config=config)
    content = yaml.safe_load(project.config.read_text())
    teacher = {**content["model"], "ckpt": str(project.root / "teacher")}
    content["distillation"] = {"teacher": teacher, "hidden": 1.0}
    content["run"]["checkpoint_every_steps"] = 1
    project.config.write_text(yaml.safe_dump(content))
    return project


@pytest.fixture(scope="module")
def config(project):
    return load_config(project.config)


def stirred(config, seed=8, **changes):
    """A model whose adapter differs from a fresh one, LoRA included."""
    torch.manual_seed(seed)
    model = build_model(replace(config, **changes))
    with torch.no_grad():
        for parameter in model.adapter_parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def batch_of(model, rows=slice(None)):
    texts, lengths = TEXTS[rows], LENGTHS[rows]
    batch = collate([])
    return replace(
        batch,
        waveforms=CLIPS[rows][:, : int(lengths.max())],
        lengths=lengths,
        prompts=[PROMPT] * len(texts),
        references=texts,
        text_batch=model.text.batch([PROMPT] * len(texts), texts),
    )


def losses_of(distiller, rows=slice(None)):
    batch = batch_of(distiller.student, rows)
    return distiller.losses(distiller.student, batch, batch.waveforms, batch.lengths)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(config):
    model = stirred(config.model)
    distiller = Distiller(model, stirred(config.model), replace(ALL, labels=0))
    losses = losses_of(distiller)
    assert distiller.terms == ("logits", "hidden", "qformer")
    assert losses.loss_sum.item() == pytest.approx(0, abs=1e-5)
    other = losses_of(Distiller(model, stirred(config.model, seed=9), replace(ALL, labels=0)))
    assert all(value > 0.01 for value in other.parts.values())


def test_the_loss_is_the_weighted_sum_and_labels_are_the_plain_loss(config):
    model = stirred(config.model)
    weighted = DistillationConfig(labels=0.5, logits=2.0, hidden=0.25, qformer=3.0)
    losses = losses_of(Distiller(model, stirred(config.model, seed=9), weighted))
    expected = sum(getattr(weighted, term) * value for term, value in losses.parts.items())
    assert losses.loss_sum.item() == pytest.approx(expected.item(), rel=1e-6)
    plain = model(CLIPS, LENGTHS, [PROMPT] * 3, TEXTS).loss_sum
    assert losses.parts["labels"].item() == pytest.approx(plain.item(), rel=1e-5)


def test_only_the_student_gets_gradients(config):
    model, teacher = stirred(config.model), stirred(config.model, seed=9)
    distiller = Distiller(model, teacher, replace(ALL, labels=0))
    model.train()
    losses_of(distiller).loss_sum.backward()
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    parts = (teacher.connector, teacher.llm, *teacher.encoders.encoders.values())  # the last are the student's too
    assert not any(module.training for part in parts for module in part.modules())
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert any("lora_" in name for name in touched)
    assert "connector.qformer.query_tokens" in touched
    assert set(touched) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("shared", [True, False])
def test_neighbours_and_padding_change_nothing(config, shared):
    """The terms of a batch are the sums of its clips' own."""
    distiller = Distiller(stirred(config.model), stirred(config.model, seed=9), ALL)
    assert distiller.shares_encoders
    if not shared:
        distiller.shares_encoders = False
    together = losses_of(distiller).parts
    alone = [losses_of(distiller, slice(row, row + 1)).parts for row in range(3)]
    for term, value in together.items():
        assert value.item() == pytest.approx(sum(part[term].item() for part in alone), rel=1e-4), term


def test_a_few_steps_bring_the_student_nearer(config):
    model = stirred(config.model)
    distiller = Distiller(model, stirred(config.model, seed=9), replace(ALL, labels=0))
    optimizer = torch.optim.Adam(model.adapter_parameters(), lr=3e-3)
    before = losses_of(distiller).parts
    for _ in range(12):
        losses_of(distiller).loss_sum.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = losses_of(distiller).parts
    assert all(after[term] < 0.7 * before[term] for term in before)


def test_temperature_and_vocabularies_padded_to_another_size():
    teacher = torch.randn(4, 10)
    student = teacher + torch.randn(4, 10)
    wider = torch.cat([student, torch.full((4, 3), 50.0)], dim=1)
    assert divergence(wider, teacher, 2.0).item() == pytest.approx(divergence(student, teacher, 2.0).item(), rel=1e-5)
    assert divergence(teacher + 5, teacher, 2.0).item() == pytest.approx(0, abs=1e-4)
    expected = 9 * torch.nn.functional.kl_div((student / 3).log_softmax(-1), (teacher / 3).softmax(-1), reduction="sum")
    assert divergence(student, teacher, 3.0).item() == pytest.approx(expected.item(), rel=1e-4)
    assert hidden_distance(3 * teacher + 1, teacher).item() == pytest.approx(0, abs=1e-4)


def test_encoders_of_their_own(config, project, tmp_path):
    """A teacher with another Whisper, whose outputs are cached separately from the student's."""
    whisper = tiny.write_whisper(tmp_path / "whisper", seed=5, width=64)
    teacher = stirred(config.model, seed=9, whisper_path=str(whisper))
    distiller = Distiller(stirred(config.model), teacher, ALL, cache_folder=str(tmp_path / "cache"))
    assert not distiller.shares_encoders
    first, again = losses_of(distiller).parts, losses_of(distiller).parts
    assert (tmp_path / "cache" / teacher.encoders.fingerprint).is_dir()
    for term, value in first.items():
        assert value.item() == pytest.approx(again[term].item(), rel=1e-5)


def test_a_teacher_that_does_not_fit_is_refused(config, project, tmp_path):
    model = stirred(config.model)
    narrow = stirred(config.model, qformer_hidden_size=16, second_per_window=0.5, second_stride=0.5)
    with pytest.raises(ValueError, match=r"qformer_hidden_size 32, the teacher 16[\s\S]*second_per_window") as caught:
        Distiller(model, narrow, ALL)
    assert "distillation.qformer to 0" in str(caught.value)
    Distiller(model, narrow, replace(ALL, qformer=0))

    wide = stirred(config.model, llama_path=str(tiny.write_llm(tmp_path / "wide", width=64)))
    with pytest.raises(ValueError, match=r"distillation.hidden: .* are 32 wide, the teacher's 64"):
        Distiller(model, wide, ALL)
    Distiller(model, wide, replace(ALL, hidden=0))

    other_end = stirred(config.model, end_sym="three")
    with pytest.raises(ValueError, match=r"end symbol is '</s>', the teacher's 'three'"):
        Distiller(model, other_end, ALL)
    teacher = stirred(config.model)
    teacher.text.tokenizer.add_tokens(["<extra>"])
    with pytest.raises(ValueError, match=r"logits and hidden: the student's tokenizer .* 1 of the teacher's"):
        Distiller(model, teacher, ALL)
    Distiller(model, teacher, replace(ALL, logits=0, hidden=0))


def test_windows_that_differ_are_noticed(config):
    teacher = stirred(config.model, window="full")
    distiller = Distiller(stirred(config.model), teacher, ALL)
    with pytest.raises(ValueError, match=r"the student cuts the batch in \d+ windows, the teacher in \d+"):
        losses_of(distiller)


def test_building(config, project):
    student = stirred(config.model)
    assert build_distiller(replace(config, distillation=DistillationConfig()), student) is None
    distiller = build_distiller(config, student)
    assert distiller.shares_encoders
    assert distiller.teacher.encoders is student.encoders
    assert "teacher" in distiller.describe()
    assert all(getattr(frozen(config.model), key) for key in ("freeze_beats", "freeze_speech_QFormer"))
    for changes, words in (({"ckpt": None}, "ckpt is not set"), ({"ckpt": "nowhere"}, "distillation.teacher: nowhere")):
        teacher = replace(config.distillation.teacher, **changes)
        with pytest.raises(ValueError, match=words):
            build_distiller(replace(config, distillation=replace(config.distillation, teacher=teacher)), student)


# -- whole runs ------------------------------------------------------------------------------------------------------


def run(*arguments):
    return train.main([str(argument) for argument in arguments])


def log_of(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    timings = ("seconds", "samples_per_s")
    return [{k: v for k, v in line.items() if k not in timings} for line in lines if "loss" in line]


@pytest.mark.slow
def test_two_processes_train_by_one_term_alone(project, tmp_path):
    """The loss then does not reach the language model, for whose gradients the processes wait."""
    options = ["distillation.labels=0", "distillation.logits=0", "distillation.hidden=0", "run.optims.max_epoch=1"]
    options.append("model.qformer_dropout=0")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"),
        *("--cfg-path", str(project.config), "--options", *options),
        *("run.batch_size_train=2", f"run.output_dir={tmp_path / 'two'}"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(train.__file__).parent
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    assert run("--cfg-path", project.config, "--options", *options, f"run.output_dir={tmp_path / 'one'}") == 0
    two, one = log_of(tmp_path / "two"), log_of(tmp_path / "one")
    assert [line["loss_qformer"] for line in two] == pytest.approx([line["loss_qformer"] for line in one], rel=1e-4)


def test_a_stopped_run_goes_on_exactly(project, tmp_path, monkeypatch):
    options = ["--cfg-path", project.config, "--options", "model.lora_dropout=0.3"]
    assert run(*options, f"run.output_dir={tmp_path / 'whole'}") == 0
    whole = log_of(tmp_path / "whole")
    assert all({"loss_labels", "loss_logits", "loss_hidden", "loss_qformer"} <= line.keys() for line in whole)
    assert whole[-1]["loss_qformer"] < whole[0]["loss_qformer"]

    take = TrainingStep.take

    def stopped(self, window, tokens):
        os.kill(os.getpid(), signal.SIGTERM)
        return take(self, window, tokens)

    stopped_options = [*options, f"run.output_dir={tmp_path / 'parts'}"]
    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "take", functools.wraps(take)(stopped))
        assert run(*stopped_options) == 128 + signal.SIGTERM
    assert run(*stopped_options, "--resume") == 0
    assert log_of(tmp_path / "parts") == whole


def test_the_dry_run_shows_the_teacher(project, capsys):
    assert run("--cfg-path", project.config, "--dryrun") == 0
    printed = capsys.readouterr().out
    assert "distillation: labels 0.7, logits 0.3, hidden 1, qformer 1 (temperature 3)" in printed
    assert "the student's own" in printed
    assert "in addition to the student:" in printed


def test_the_dry_run_needs_no_weights(project, capsys):
    options = ["--cfg-path", project.config, "--dryrun", "--options"]
    assert run(*options, "distillation.teacher.whisper_path=openai/whisper-tiny") == 0
    printed = capsys.readouterr().out
    assert "distillation.teacher.whisper_path = openai/whisper-tiny" in printed
    assert "distillation: labels 0.7, logits 0.3, hidden 1, qformer 1 (temperature 3)" in printed
    assert "in addition to the student: " in printed
    assert "the student's own" not in printed


def test_the_recipe_fits():
    config = load_config(Path(__file__).resolve().parents[2] / "configs" / "nlp07" / "distillation.yaml")
    assert "qformer 1 (temperature 3)" in describe_plan(config, torch.device("cuda"))
    wider = replace(config, distillation=replace(config.distillation, hidden=1.0))
    with pytest.raises(ValueError, match="are 2048 wide, the teacher's 3072"):
        describe_plan(wider, torch.device("cuda"))


def test_the_command_line_names_what_is_missing(project, tmp_path, capsys):
    options = ["--cfg-path", project.config, "--dryrun", "--options"]
    nowhere = "distillation.teacher.whisper_path=tests/nowhere"
    assert run(*options[:2], "--options", f"run.output_dir={tmp_path}", nowhere) == 1
    assert "distillation.teacher.whisper_path: 'tests/nowhere' does not exist" in capsys.readouterr().err
    assert run(*options, "distillation.teacher.ckpt=") == 1
    assert "distillation.teacher.ckpt is not set" in capsys.readouterr().err

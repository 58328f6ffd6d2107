"""The alignment stage and the alignment loss, in whole runs: stages after each other, resuming, processes, errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train
from configs.schema import load_config
from dataset import collate
from models import build_model, load_model
from models.alignment.pieces import Pieces, PiecesError
from models.checkpoint.adapter_folder import load_adapter, read_adapter, write_adapter
from models.checkpoint.adapter_tensors import ALIGNMENT_IDS, CheckpointError
from models.salmonn import SALMONN
from support.command_line import UserError
from tests import tiny
from tests.evaluations import annotation
from tests.runs import log_of, losses_of, make_runner
from training.alignment import require_spelled
from training.step import TrainingStep

ROOT = Path(train.__file__).parent
SHORT = {"second_per_window": 0.16, "second_stride": 0.08, "context_layers": 1, "alignment_min_count": 1}
ALIGN, CTC = "run.stage=align", "model.ctc_weight=0.3"
NO_DROPOUT = ("model.qformer_dropout=0", "model.window_jitter=false")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> tiny.TinyProject:
    """Short windows, and all randomness switched on."""
    return tiny.write_project(
        tmp_path_factory.mktemp("aligning"),
        model={**SHORT, "lora_dropout": 0.3, "window_jitter": True},
        datasets={"augmentation": {"gain": {"p": 0.5}}, "bucket_batches": 2},
        run={"accum_grad_iters": 2, "batch_size_train": 2, "iters_per_epoch": 4, "checkpoint_every_steps": 1},
    )


def run(project: tiny.TinyProject, folder: Path, *options: str, flags: tuple[str, ...] = ()) -> int:
    arguments = ["--cfg-path", str(project.config), *flags, "--options", f"run.output_dir={folder}", *options]
    return train.main(arguments)


@pytest.fixture(scope="module")
def aligned(project, tmp_path_factory) -> Path:
    """The folder of an alignment stage."""
    folder = tmp_path_factory.mktemp("aligned") / "run"
    assert run(project, folder, ALIGN) == 0
    return folder


@pytest.fixture(scope="module")
def together(project, aligned, tmp_path_factory) -> Path:
    """The folder of a stage 1 after it, with both losses."""
    folder = tmp_path_factory.mktemp("together") / "run"
    assert run(project, folder, CTC, f"model.ckpt={aligned}") == 0
    return folder


def alignment_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in read_adapter(folder).items() if name.startswith("alignment.")}


def test_an_adapter_of_the_alignment_stage_has_no_lora(aligned):
    names = set(read_adapter(aligned))
    assert {"alignment.ids", "alignment.blank", "alignment.scale"} <= names
    assert any(name.startswith("connector.context.layers.0.") for name in names)
    assert not [name for name in names if "lora_" in name or name.startswith(("encoders.", "llm."))]
    lines = [line for line in log_of(aligned) if "loss" in line]
    assert lines[-1]["loss"] < lines[0]["loss"]
    for line in lines:
        assert line["loss"] == pytest.approx(line["loss_ctc"] + 0.2 * line["loss_distance"], rel=1e-5)


def test_stage_1_goes_on_from_it_with_both_losses(project, aligned, together):
    for line in (line for line in log_of(together) if "loss" in line):
        of_alignment = line["loss_ctc"] + 0.2 * line["loss_distance"]
        assert line["loss"] == pytest.approx(line["loss_answers"] + 0.3 * of_alignment, rel=1e-5)
    before, after = alignment_of(aligned), alignment_of(together)
    assert torch.equal(before["alignment.ids"], after["alignment.ids"])
    assert not torch.equal(before["alignment.blank"], after["alignment.blank"])
    assert not torch.equal(before["alignment.scale"], after["alignment.scale"])
    model = load_model(together)
    assert torch.equal(model.alignment.blank, after["alignment.blank"])
    assert type(model) is SALMONN and model.alignment.blank.requires_grad


def test_without_a_weight_the_head_is_kept_as_it_is(project, aligned, tmp_path):
    assert run(project, tmp_path / "run", f"model.ckpt={aligned}", "run.optims.max_epoch=1") == 0
    before, after = alignment_of(aligned), alignment_of(tmp_path / "run")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    model = load_model(tmp_path / "run")
    assert not any(parameter.requires_grad for parameter in model.alignment.parameters())
    assert "loss_ctc" not in log_of(tmp_path / "run")[0]


@pytest.mark.parametrize("stage", [ALIGN, CTC])
def test_a_stopped_run_goes_on_exactly(project, aligned, together, tmp_path, monkeypatch, stage):
    whole = aligned if stage == ALIGN else together
    options = [stage] if stage == ALIGN else [stage, f"model.ckpt={aligned}"]
    take, steps = TrainingStep.take, []

    def stopped(self, window, tokens):
        steps.append(tokens)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(self, window, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "take", stopped)
        assert run(project, tmp_path / "run", *options) == 128 + signal.SIGTERM
    assert len(steps) == 3
    assert run(project, tmp_path / "run", *options, flags=("--resume",)) == 0
    assert losses_of(tmp_path / "run") == losses_of(whole)  # bit for bit
    expected, found = read_adapter(whole / "last"), read_adapter(tmp_path / "run" / "last")
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_a_resumed_run_keeps_its_pieces(project, aligned, tmp_path, capsys):
    """A setting that would choose others has no effect, and the optimiser's head is the model's."""
    options = (f"run.output_dir={tmp_path}", ALIGN, "model.alignment_min_count=3", "run.optims.max_epoch=3")
    runner = make_runner(project.config, *options, resume=aligned / "last")
    assert "model.alignment_min_count: 1 -> 3" in capsys.readouterr().out
    assert torch.equal(runner.model.alignment.ids, alignment_of(aligned)["alignment.ids"])
    held = {id(parameter) for group in runner.optimizer.param_groups for parameter in group["params"]}
    assert {id(runner.model.alignment.blank), id(runner.model.alignment.scale)} <= held


def test_an_alignment_stage_after_another_chooses_its_own_pieces(project, aligned, tmp_path, monkeypatch):
    seen = {}

    def first_step(self, window, tokens):
        seen["blank"] = self.model.alignment.blank.detach().clone()
        os.kill(os.getpid(), signal.SIGTERM)
        return take(self, window, tokens)

    take = TrainingStep.take
    monkeypatch.setattr(TrainingStep, "take", first_step)
    options = [ALIGN, f"model.ckpt={aligned}", "model.alignment_min_count=3"]
    assert run(project, tmp_path / "run", *options) == 128 + signal.SIGTERM
    before, after = alignment_of(aligned), alignment_of(tmp_path / "run")
    assert len(after[ALIGNMENT_IDS]) < len(before[ALIGNMENT_IDS])
    assert torch.equal(seen["blank"], before["alignment.blank"])


def test_another_stage_cannot_be_resumed(project, aligned, tmp_path, capsys):
    assert run(project, tmp_path, "run.stage=train", flags=("--resume", str(aligned / "last"))) == 1
    assert "stage: align -> train" in capsys.readouterr().err


@pytest.mark.parametrize("stage", [ALIGN, CTC])
def test_the_split_into_batches_changes_nothing(project, aligned, stage):
    """With clips of unequal length, and, next to the cross-entropy, clips without a transcript."""
    options = (stage, f"model.ckpt={aligned}", "run.batch_size_train=4", "model.lora_dropout=0", *NO_DROPOUT)
    runner = make_runner(project.config, *options, "run.max_grad_norm=null", "datasets.bucket_batches=0")
    first, second = next(runner._windows())
    joined = collate([runner.train_data[0, index] for index in (*first.ids, *second.ids)], runner.model.text)
    results, gradients = [], []
    for window in ([first, second], [joined]):
        tokens = sum(batch.text_batch.target_tokens for batch in window)
        results.append((tokens, *runner.training_step._accumulate(window, tokens)))
        gradients.append([parameter.grad.clone() for parameter in runner.model.adapter_parameters()])
        runner.optimizer.zero_grad(set_to_none=True)
    assert results[0][0] == results[1][0]
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-5)
    assert results[0][2] == pytest.approx(results[1][2], rel=1e-5)
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [ALIGN, CTC])
def test_two_processes_equal_one(tmp_path, stage):
    """Also where a process has no clip in a step, and where its only clip has no transcript."""
    project = tiny.write_project(tmp_path / "tiny", model=SHORT)
    options = [stage, *NO_DROPOUT, "datasets.max_bad_fraction=1.0", "run.iters_per_epoch=4", "run.optims.max_epoch=1"]
    runner = make_runner(project.config, *options, "run.batch_size_train=2", f"run.output_dir={tmp_path / 'order'}")
    first_batches = [next(iter(runner.loader)).ids]
    Path(runner.train_data.annotations[first_batches[0][1]].path).write_bytes(b"")
    make_runner(project.config, *options, "run.batch_size_train=2", f"run.output_dir={tmp_path / 'one'}").train()
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"),
        *("--cfg-path", str(project.config), "--options", *options),
        *("run.batch_size_train=1", f"run.output_dir={tmp_path / 'two'}"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    expected, got = losses_of(tmp_path / "one"), losses_of(tmp_path / "two")
    assert len(got) == 4 and [line["bad_clips"] for line in log_of(tmp_path / "two") if "loss" in line][-1] == 1
    assert [loss for _, loss, _ in got] == pytest.approx([loss for _, loss, _ in expected], abs=1e-4)
    assert [norm for *_, norm in got] == pytest.approx([norm for *_, norm in expected], rel=1e-3)
    if stage == CTC:
        parts = [[line["loss_ctc"] for line in log_of(tmp_path / name) if "loss" in line] for name in ("one", "two")]
        assert parts[1] == pytest.approx(parts[0], abs=1e-4)


def test_batches_without_a_transcript(project, tmp_path):
    """Every trained parameter still has a gradient, a zero, which other processes wait for."""
    runner = make_runner(project.config, CTC, f"run.output_dir={tmp_path}")
    data = runner.train_data
    sounds = [index for index, task in enumerate(data.tasks) if task != "asr"][:2]
    batch = collate([data[0, index] for index in sounds], runner.model.text)
    _, parts = runner.training_step._accumulate([batch], batch.text_batch.target_tokens)
    assert parts["ctc"] == 0 and parts["answers"] > 0
    assert not [name for name, each in runner.model.named_parameters() if each.requires_grad and each.grad is None]
    assert not runner.model.alignment.blank.grad.any()


# -- the adapter -----------------------------------------------------------------------------------------------------


def test_pieces_of_another_language_model_are_refused(project, together, tmp_path):
    tensors = read_adapter(together)
    foreign = {**tensors, ALIGNMENT_IDS: tensors[ALIGNMENT_IDS] + 300}
    write_adapter(foreign, tmp_path / "foreign", config=load_config(together / "best" / "config.yaml"))
    config = load_config(project.config, [f"model.ckpt={tmp_path / 'foreign'}"])
    with pytest.raises(PiecesError, match="aligned to another one"):
        build_model(config.model)
    model = load_model(together)
    before = model.alignment
    with pytest.raises(PiecesError):
        load_adapter(model, tmp_path / "foreign")
    assert model.alignment is before


@pytest.mark.parametrize("stage", ["align", "train"])
def test_a_load_that_fails_leaves_the_head(project, aligned, together, tmp_path, stage):
    folder = aligned if stage == "align" else together
    tensors = read_adapter(folder)
    other = {**tensors, ALIGNMENT_IDS: tensors[ALIGNMENT_IDS][:-1], "connector.to_llm.weight": torch.zeros(3, 3)}
    write_adapter(other, tmp_path / "other")
    model = load_model(folder)
    before, pieces = model.alignment, getattr(model.text, "pieces", None)
    with pytest.raises(CheckpointError, match=r"misshapen.*to_llm"):
        load_adapter(model, tmp_path / "other")
    assert model.alignment is before and getattr(model.text, "pieces", None) is pieces
    assert (pieces is before.pieces) == (stage == "align")
    fresh = build_model(load_config(project.config, ["model.ckpt="]).model)
    with pytest.raises(CheckpointError):
        load_adapter(fresh, tmp_path / "other")
    assert fresh.alignment is None


def test_an_optimisers_head_is_not_replaced_by_the_same(together):
    model = load_model(together)
    before = model.alignment
    load_adapter(model, together)
    assert model.alignment is before


def test_a_fresh_projection_begins_among_the_embeddings(project, aligned, tmp_path):
    """One that was loaded stays as it is."""
    options = (ALIGN, f"run.output_dir={tmp_path}", "datasets.valid_ann_path=")
    model = make_runner(project.config, *options).model.eval()
    waveforms = torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0)) * 0.1
    with torch.no_grad():
        tokens, _ = model.encode_audio(waveforms, torch.tensor([16_000, 16_000]))
    middle = model.alignment.table.mean(dim=0)
    spread = (tokens - middle).square().sum(dim=-1).mean() / model.alignment.variance
    assert 0.3 < spread < 3
    weights = read_adapter(aligned)
    for option in (f"model.ckpt={aligned}", f"model.speech_llama_proj_model={aligned}"):
        kept = make_runner(project.config, *options, option).model.connector.to_llm
        assert torch.equal(kept.weight, weights["connector.to_llm.weight"]), option
        assert torch.equal(kept.bias, weights["connector.to_llm.bias"])


# -- what a user reads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [((ALIGN,), "run.stage: align needs transcripts"), ((CTC,), "model.ctc_weight is above 0, but no")],
)
def test_data_without_transcripts(project, tmp_path, capsys, options, words):
    data = (f"datasets.train_ann_path={project.test_aac}", "datasets.valid_ann_path=")
    assert run(project, tmp_path / "run", *options, *data) == 1
    message = capsys.readouterr().err
    assert words in message and "asr_ and a language" in message


def test_clips_that_are_no_transcripts_are_left_out_of_the_alignment_stage(project, tmp_path, capsys):
    assert run(project, tmp_path / "run", ALIGN, flags=("--dryrun",)) == 0
    said = capsys.readouterr().out
    assert "4 of 12 clips of datasets.train_ann_path are no transcripts (audiocaption); left out" in said
    assert "2 of 5 clips of datasets.valid_ann_path" in said
    assert "alignment: " in said and "audio tokens a piece" in said and "loads no language model" in said
    table, *_ = [line for line in said.splitlines() if line.startswith("llm ")]
    assert int(table.split()[1].replace(",", "")) < 400 * 32 + 100


def test_transcripts_longer_than_their_clips_allow(project, tmp_path, capsys):
    """Windows of a third of a second, and a transcript of bytes."""
    coarse = ("model.second_per_window=0.6", "model.second_stride=0.6", "model.alignment_min_count=3")
    assert run(project, tmp_path / "run", ALIGN, *coarse, flags=("--dryrun",)) == 0
    said = capsys.readouterr().out
    assert "transcripts have more pieces than their clips have audio tokens; they teach the alignment nothing" in said
    assert "lower model.second_stride" in said and "train.json#" in said
    coarser = ("model.window_level_Qformer=false", "model.alignment_min_count=99")
    assert run(project, tmp_path / "run", ALIGN, *coarser, flags=("--dryrun",)) == 1
    assert "8 of 8 transcripts have more pieces" in capsys.readouterr().err


def test_a_transcript_that_cannot_be_spelled_is_named():
    pieces = Pieces([1, 2], {1: b" fi", 2: b"sh"})
    model = SimpleNamespace(alignment=SimpleNamespace(pieces=pieces))
    clips = [annotation("a.wav", "fish"), annotation("b.wav", "a cat", "audiocaption")]
    require_spelled(model, clips)
    with pytest.raises(PiecesError, match=r"c\.wav: alignment pieces: 'cat' cannot be spelled"):
        require_spelled(model, [*clips, annotation("c.wav", "fish cat", "asr_en")])


@pytest.mark.parametrize("stage", [ALIGN, CTC])
def test_a_teacher_teaches_no_alignment(project, aligned, tmp_path, capsys, stage):
    described = load_config(project.config).to_dict()["model"] | {"ckpt": str(aligned)}
    teacher = f"distillation.teacher={json.dumps(described)}"
    assert run(project, tmp_path / "run", stage, teacher) == 1
    message = capsys.readouterr().err
    assert "training with a teacher has no alignment loss" in message and "distillation.teacher to null" in message


def test_the_public_codes_rules(project, tmp_path, capsys):
    """What depends on the batch is no model of this stage; encoders as in the public code are."""
    assert run(project, tmp_path / "exact", ALIGN, "model.legacy=exact") == 1
    assert "model.legacy is exact: run.stage: align" in capsys.readouterr().err
    (tmp_path / "salmonn.pth").write_bytes(b"")
    assert run(project, tmp_path / "released", ALIGN, f"model.ckpt={tmp_path / 'salmonn.pth'}") == 1
    assert "run.stage: align starts from adapter folders" in capsys.readouterr().err
    options = ("model.legacy=weights", "run.optims.max_epoch=1", "model.window_jitter=false")
    assert run(project, tmp_path / "weights", ALIGN, *options) == 0


def test_an_adapter_without_a_head(shared_tiny_project):
    model = build_model(load_config(shared_tiny_project.config).model)
    with pytest.raises(UserError, match="this adapter has no alignment"):
        model.ctc_texts(torch.zeros(1, 16_000), torch.tensor([16_000]))

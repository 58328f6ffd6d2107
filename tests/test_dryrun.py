"""`--dryrun`: sizes, the memory plan and the first batch, with or without weights and data."""

from __future__ import annotations

import json

import pytest
from accelerate.state import AcceleratorState

import dryrun
import train
from configs.architectures import find_architecture
from configs.schema import load_config
from support import provenance

SMALL = ["model.llama_path=Qwen/Qwen2.5-0.5B-Instruct", "model.whisper_path=openai/whisper-tiny"]


def test_the_published_figure_is_found_by_the_folder():
    def row(path):
        return dryrun.published_for(load_config(provenance.ROOT / "configs" / path))

    assert row("salmonn_3b/stage1.yaml")["name"] == "SALMONN-3B"
    assert row("cv16/stage2.yaml")["name"] == "cv16"
    assert row("cv16/qwen.yaml")["name"] == "cv16: Qwen2.5-0.5B"  # a variant with a figure of its own
    assert row("cv16/deepseek.yaml") is None  # in NF4; its figure is that of 16 bits
    assert row("cv16/without_beats.yaml") is None  # theirs is the baseline without BEATs
    assert row("demo/stage1.yaml") is None


def dry_run(capsys, *arguments):
    status = train.main([str(argument) for argument in (*arguments, "--dryrun")])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_an_evaluation_file_is_planned_for_inference_alone(capsys, tmp_path):
    path = provenance.ROOT / "configs" / "nlp07" / "evaluate.yaml"
    facts = find_architecture("Qwen/Qwen2.5-0.5B-Instruct").config | {"num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(facts))  # a few layers of it are as good here
    options = [*SMALL[1:], f"model.llama_path={tmp_path}", "model.ced_path=mispeech/ced-tiny", "model.dtype=float16"]
    status, out, _ = dry_run(capsys, "--cfg-path", path, "--options", *options)
    assert status == 0
    assert "planned for inference alone" in out and "expected peak" in out and "AdamW" not in out


def test_the_command_plans_without_weights_or_data(capsys):
    path = provenance.ROOT / "configs" / "salmonn_3b" / "stage1.yaml"
    status, out, _ = dry_run(capsys, "--cfg-path", path, "--options", *SMALL, "model.quantization=nf4")
    assert status == 0
    for expected in ("8,208,384", "494,032,768", "nf4", "expected peak", "keys and values", "AdamW"):
        assert expected in out
    assert "weights not found" in out and "model.llama_path = Qwen/Qwen2.5-0.5B-Instruct" in out
    assert "data not found" in out and "datasets.train_ann_path = stage1_train.json" in out
    assert "no figure is published for these networks" in out  # they are not the folder's


RECIPES = sorted((provenance.ROOT / "configs").glob("*/*.yaml"))


@pytest.fixture
def fresh_accelerator():
    """Precision is kept for the process' life, and recipes differ in it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_can_be_preceded_by_an_alignment(fresh_accelerator, capsys, path):
    """The same parts, without a language model's layers; data and weights are not there."""
    options = ["run.stage=align", "model.legacy=off", "distillation.teacher=", "model.ckpt="]
    short = ["model.context_layers=2", "model.second_per_window=0.16", "model.second_stride=0.08"]
    status, out, err = dry_run(capsys, "--cfg-path", path, "--options", *options, *short)
    assert status == 0, err
    assert "expected peak" in out
    if load_config(path).datasets.train_ann_path:
        assert "the alignment stage loads no language model" in out and "AdamW" not in out


def test_an_alignment_is_planned_without_weights(capsys):
    """With context layers: their parameters count, those of the language model's layers do not."""
    path = provenance.ROOT / "configs" / "salmonn_3b" / "stage1.yaml"
    options = [*SMALL, "run.stage=align", "model.qformer_layers=1", "model.qformer_hidden_size=384"]
    found = []
    for layers in (0, 2):
        status, out, err = dry_run(capsys, "--cfg-path", path, "--options", *options, f"model.context_layers={layers}")
        assert status == 0, err
        rows = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith(("connector ", "llm "))}
        found.append(int(rows["connector"][1].replace(",", "")))
        assert int(rows["llm"][1].replace(",", "")) == 151_936 * 896 + 896
        assert "lora " not in out.split("memory for inference")[0]
        assert "weights not found" in out and "alignment stage loads no language model" in out
    width = 384
    layer = 13 * width**2 + 32 * width  # attention 4, convolution 1 (and its kernel of 15), feed-forward 8; three norms
    assert found[1] - found[0] == 2 * layer + 2 * width


def test_the_command_counts_clips_without_weights(tiny_project, capsys):
    options = ["--options", "model.whisper_path=openai/whisper-tiny"]
    status, out, _ = dry_run(capsys, "--cfg-path", tiny_project.config, *options)
    assert status == 0
    assert "training:" in out and "clips" in out
    assert "first batch" not in out


def test_the_command_shows_weights_where_only_data_is_missing(tiny_project, capsys):
    options = ["--options", "datasets.train_ann_path=nowhere.json"]
    status, out, _ = dry_run(capsys, "--cfg-path", tiny_project.config, *options)
    assert status == 0
    assert "data not found" in out and "nowhere.json" in out
    assert "weights not found" not in out


def test_the_command_fails_where_no_plan_can_be_made(tiny_project, capsys):
    status, _, err = dry_run(capsys, "--cfg-path", tiny_project.config, "--options", "model.llama_path=org/unknown-1b")
    assert status == 1
    assert err.startswith("error:") and "model.llama_path" in err and "meta-llama/Llama-3.2-1B-Instruct" in err


def test_dryrun_reports_and_writes_nothing(tiny_project, capsys):
    status, out, _ = dry_run(capsys, "--cfg-path", tiny_project.config)
    assert status == 0
    for expected in (
        "whisper",
        "beats",
        "connector",
        "lora",
        "trainable",
        "AdamW",
        "[B, T]",
        "ASSISTANT:",
        "target tokens",
    ):
        assert expected in out
    assert not tiny_project.output.exists()


def test_augmentation_is_listed_in_its_order(tiny_project):
    spec = "datasets.augmentation={AddGaussianNoise: {p: 0.3}, gain: {p: 0.2}, Shift: {use: false}}"
    assert dryrun._augmentation(load_config(tiny_project.config, [spec])).splitlines() == [
        "augmentation:",
        "  gain: p 0.2, min_db -6.0, max_db 6.0",
        "  amplitude_noise: p 0.3, min_amplitude 0.001, max_amplitude 0.015",
    ]
    assert dryrun._augmentation(load_config(tiny_project.config)) == "augmentation: none"


def test_augmentation_is_checked_where_there_are_no_weights(capsys):
    wrong = "datasets.augmentation={AddGausianNoise: {p: 0.3}}"
    assert train.main(["--cfg-path", "configs/cv16/stage1.yaml", "--dryrun", "--options", wrong]) == 1
    assert "AddGausianNoise: unknown; did you mean 'AddGaussianNoise'?" in capsys.readouterr().err


def test_positions_are_compared_with_the_clips_not_with_the_planned_one(tiny_project, capsys):
    file = tiny_project.llm / "config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    for positions, status in ((64, 0), (24, 1)):
        file.write_text(json.dumps(settings | {"max_position_embeddings": positions}), encoding="utf-8")
        found, _, error = dry_run(capsys, "--cfg-path", tiny_project.config)
        assert found == status
    assert "clips need more than the language model's 24 positions" in error and "train.json#" in error

"""A tiny model through tools/quantize.py: the folder, the report, and errors."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from configs.schema import load_config
from models import build_model
from models.quantization.gptq import GPTQLinear, GPTQSettings
from tests import tiny
from tools import quantize, rounding
from tools.calibration import CalibrationSequence, _groups, _record, quantize_layers

SMALL = ["--samples", "4", "--text-samples", "2", "--text-length", "24", "--held-out", "2", "--score-samples", "2"]
OPTIONS = ["generate.num_beams=1", "generate.max_new_tokens=6", "run.num_workers=0"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """cv-03's language model in small: Gemma 2, with tied embeddings and layers of two kinds."""
    return tiny.write_project(tmp_path_factory.mktemp("project"), family="gemma2")


@pytest.fixture(scope="module")
def made(project, tmp_path_factory):
    """LoRA merged and unmerged, and other choices for comparison."""
    out = tmp_path_factory.mktemp("made") / "gptq"
    status = quantize.main(
        [
            *("--cfg-path", str(project.config), "--out", str(out), "--group-size", "32", "--lora", "both", *SMALL),
            *("--compare", "nf4", "int8-encoders", "model.whisper_layers=1,model.beats_layers=1", "torchao_int4"),
            *("--options", *OPTIONS),
        ]
    )
    assert status == 0
    return out


def test_the_folder_runs_as_the_configuration_names_it(project, made):
    options = [f"model.llama_path={made}", "model.quantization=gptq", "model.allow_slow_kernels=true"]
    config = load_config(project.config, [*OPTIONS, *options]).model
    model = build_model(config)
    layers = [module for module in model.modules() if isinstance(module, GPTQLinear)]
    assert len(layers) == 14 and model.llm.kernel.startswith("gptq: ")
    clip = 0.1 * torch.randn(1, 16_000)
    (text,) = model.generate(clip, torch.tensor([16_000]), ["<Speech><SpeechHere></Speech> Say."], max_new_tokens=4)
    assert isinstance(text, str)
    model.train()
    model(clip, torch.tensor([16_000]), ["<Speech><SpeechHere></Speech> Say."], ["one two"]).loss_sum.backward()
    assert all(parameter.grad is not None for parameter in model.llm.lora_parameters())


def test_merged_lora_needs_no_lora(project, made):
    merged = made.with_name(f"{made.name}-merged")
    options = [f"model.llama_path={merged}", "model.quantization=gptq", "model.allow_slow_kernels=true"]
    config = load_config(project.config, [*options, "model.lora=false", f"model.ckpt={merged / 'adapter'}"]).model
    assert not list(build_model(config).llm.lora_parameters())


def test_the_report_holds_every_choice(made):
    report = json.loads((made / "report.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == [
        "unquantised",
        "gptq, LoRA beside",
        "gptq, LoRA merged",
        "nf4",
        "int8-encoders",
        "model.whisper_layers=1,model.beats_layers=1",
    ]
    assert rows["unquantised"]["flips"] is None and rows["unquantised"]["changed"] is None
    assert all(0 <= row["flips"] <= 1 for name, row in rows.items() if name != "unquantised")
    assert rows["gptq, LoRA beside"]["llm_mib"] < rows["unquantised"]["llm_mib"]
    assert rows["int8-encoders"]["total_mib"] < rows["unquantised"]["total_mib"]
    assert rows["nf4"]["scores"]
    for folder in report["folders"]:
        assert folder["read_back"] < rounding.EQUAL
        assert [row["layer"] for row in folder["layers"]] == [0, 1]
        errors = [linear["error"] for row in folder["layers"] for linear in row["linears"]]
        nearest = [linear["nearest"] for row in folder["layers"] for linear in row["linears"]]
        assert len(errors) == 14 and sum(errors) < sum(nearest)


def test_the_folder_is_one_of_autogptq(project, made):
    stored = json.loads((made / "config.json").read_text())["quantization_config"]
    assert stored["quant_method"] == "gptq" and stored["checkpoint_format"] == "gptq" and stored["bits"] == 4
    assert "dataset" not in stored and "tokenizer" not in stored
    assert json.loads((made / "quantize_config.json").read_text()) == stored
    source = load_config(project.config).model.llama_path
    assert (made / "tokenizer.json").read_bytes() == (Path(source) / "tokenizer.json").read_bytes()


def test_linear_layers_with_one_input_are_rounded_together(project):
    model = build_model(load_config(project.config).model)
    embeds = model.llm.embed(torch.arange(5, 17)[None])
    layers = model.llm.model.get_decoder().layers
    with torch.no_grad():
        hidden, calls = _record(model.llm, layers, [CalibrationSequence(embeds, "text")])
        groups = _groups(layers[0], hidden[0], calls[0][0])
    names = [[name.split(".")[1] for name, _ in group] for group in groups]
    assert [sorted(group) for group in names] == [
        ["k_proj", "q_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]


def test_what_cannot_be_done_is_said(project, made, tmp_path, capsys):
    arguments = ["--cfg-path", str(project.config), "--out", str(tmp_path / "out"), *SMALL]
    assert quantize.main([*arguments, "--group-size", "128", "--options", *OPTIONS]) == 2
    assert "--group-size 128 does not divide the 32 inputs of" in capsys.readouterr().err
    assert quantize.main([*arguments, "--options", f"model.llama_path={made}"]) == 2
    assert "is quantised already" in capsys.readouterr().err
    assert quantize.main([*arguments, "--options", "datasets.train_ann_path="]) == 2
    assert "datasets.train_ann_path: not given" in capsys.readouterr().err
    for wrong, said in {
        ("--compare", "nf5"): "--compare nf5: expected nf4, int8",
        ("--compare", "model.nope=1"): "no such key",
        ("--text", str(tmp_path / "absent.txt")): "absent.txt: no such file",
        ("--out", str(project.llm)): "is the folder of the model itself",
        ("--out", str(made)): "holds a model already; give another, or --overwrite",
        ("--out", str(project.config / "out")): "is a file",
    }.items():
        assert quantize.main([*arguments, *wrong]) == 2
        said_so = capsys.readouterr()
        assert said in said_so.err and not said_so.out  # before any work
    for wrong in (("--samples", "-1"), ("--damp", "-1"), ("--damp", "nan"), ("--text-length", "1")):
        with pytest.raises(SystemExit):
            quantize.main([*arguments, *wrong])
        assert f"{wrong[0]}: {wrong[1]}; expected" in capsys.readouterr().err
    model = build_model(dataclasses.replace(load_config(project.config).model, lora=False))
    with pytest.raises(ValueError, match="there are none"):
        quantize_layers(model.llm, [], GPTQSettings(group_size=32))

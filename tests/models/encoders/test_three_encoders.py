"""Whisper, WavLM and AST together: either fusion, and a second stage that starts from a first with Whisper alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train
from configs.schema import load_config
from configs.sections import ModelConfig
from models import build_model, load_model
from models.checkpoint.adapter_folder import save_adapter
from tests import tiny

ADDED = {"wavlm": "wavlm base", "ast": "ast"}
PROMPTS = ["<Speech><SpeechHere></Speech> What is said?", "<Speech><SpeechHere></Speech> Describe the sound."]
LENGTHS = torch.tensor([31_111, 9_000])
FUSIONS = pytest.mark.parametrize("fusion", ["concat", "project"])


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyProject:
    folder = tmp_path_factory.mktemp("three")
    paths = {f"{key}_path": str(tiny.write_hf_encoder(folder / key, name)) for key, name in ADDED.items()}
    run = {"optims": {"max_epoch": 1}, "iters_per_epoch": 2, "batch_size_train": 2}
    return tiny.write_project(folder, model={"beats_path": None, **paths}, run=run)


@pytest.fixture(scope="module")
def three(project: tiny.TinyProject) -> ModelConfig:
    return load_config(project.config).model


def _waveforms() -> torch.Tensor:
    return 0.1 * torch.randn(2, int(LENGTHS.max()), generator=torch.Generator().manual_seed(3))


def _alone(config: ModelConfig) -> ModelConfig:
    return replace(config, **{f"{key}_path": None for key in ADDED})


@FUSIONS
@torch.no_grad()
def test_padding_is_neutral(three: ModelConfig, fusion: str) -> None:
    model = build_model(replace(three, fusion=fusion))
    assert list(model.encoders.encoders) == ["whisper", "wavlm", "ast"]
    waveforms = _waveforms()
    tokens, mask = model.encode_audio(waveforms, LENGTHS)
    for row, samples in enumerate(LENGTHS.tolist()):
        alone, _ = model.encode_audio(waveforms[row : row + 1, :samples], LENGTHS[[row]])
        count = int(mask[row].sum())
        assert alone.shape[1] == count == model.connector.token_count(model.encoders.frame_count(samples))
        torch.testing.assert_close(tokens[row, :count], alone[0], atol=1e-5, rtol=0)


@FUSIONS
def test_a_second_stage_starts_where_the_first_ended(
    three: ModelConfig, fusion: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    three = replace(three, fusion=fusion)
    torch.manual_seed(5)
    first = build_model(_alone(three))
    folder = save_adapter(first, tmp_path / "first")
    second = build_model(replace(three, ckpt=str(folder)))
    assert "wavlm, ast: new to this adapter, without effect until trained" in caplog.text
    waveforms = _waveforms()
    with torch.no_grad():
        tokens, expected = second.encode_audio(waveforms, LENGTHS)[0], first.encode_audio(waveforms, LENGTHS)[0]
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)

    second.train()(waveforms, LENGTHS, PROMPTS, ["one two", "a low hum"]).loss.backward()
    if fusion == "project":
        weights = [second.connector.projections[name].weight for name in ADDED]
    else:
        key = second.connector.qformer.layers[0].cross_attention.key.weight
        weights = [key]
        assert not key[:, first.encoders.dims[0] :].any()
    assert all(weight.grad[weight == 0].any() for weight in weights)
    assert not any(parameter.requires_grad for parameter in second.encoders.parameters())


def test_stages_run_one_after_the_other(project: tiny.TinyProject, capsys: pytest.CaptureFixture) -> None:
    common = ["--cfg-path", str(project.config), "--options", "model.fusion=project", "datasets.valid_ann_path=null"]
    folders = [f"{project.output}/stage{stage}" for stage in (1, 2)]
    assert train.main([*common, "model.wavlm_path=", "model.ast_path=", f"run.output_dir={folders[0]}"]) == 0
    assert train.main([*common, f"model.ckpt={folders[0]}", f"run.output_dir={folders[1]}"]) == 0
    capsys.readouterr()
    model = load_model(folders[1], device="cpu")
    assert list(model.encoders.encoders) == ["whisper", "wavlm", "ast"]
    assert all(model.connector.projections[name].weight.any() for name in ADDED)
    assert len(model.generate(_waveforms(), LENGTHS, PROMPTS, num_beams=1, max_new_tokens=2)) == 2


def test_a_trained_encoder_travels_with_the_adapter(three: ModelConfig, tmp_path: Path) -> None:
    config = replace(three, freeze_ast=False)
    model = build_model(config)
    with torch.no_grad():
        model.encoders.encoders["ast"].network.layernorm.bias += 1.0
    folder = save_adapter(model, tmp_path / "adapter")
    again = build_model(replace(config, ckpt=str(folder)))
    bias = model.encoders.encoders["ast"].network.layernorm.bias
    assert torch.equal(again.encoders.encoders["ast"].network.layernorm.bias, bias)

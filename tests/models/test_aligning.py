"""The model of the alignment stage: every encoder and language model family, its interface, and its adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from configs.schema import load_config
from configs.sections import ModelConfig
from models import build_model, load_model
from models.aligning import AlignmentModel
from models.alignment.pieces import Pieces
from models.checkpoint.adapter_folder import save_adapter
from support.command_line import UserError
from tests import tiny
from tests.clips import PROMPTS, alone, mixed_clips
from tests.evaluations import outputs, run

SENTENCES = ["one two three", "red fish blue fish", "zero"]
ENCODERS = ("whisper", "beats", "ced", *tiny.HF_ENCODERS)


def aim(model, min_count: int = 1):
    """Put a head on the model, somewhat off its start, so that paths have pieces in them."""
    pieces = Pieces.from_texts(model.text.tokenizer, SENTENCES, min_count)
    alignment = model.align_to(torch.tensor(pieces.ids))
    with torch.no_grad():
        alignment.blank.add_(3 * alignment.table.std())
        model.connector.to_llm.weight.mul_(2)
    return model


def encoder_options(folder: Path, name: str) -> dict[str, str]:
    if name == "whisper":
        return {"whisper_path": str(tiny.write_whisper(folder / "whisper"))}
    if name == "beats":
        return {"beats_path": str(tiny.write_beats(folder / "beats.pt"))}
    if name == "ced":
        return {"ced_path": str(tiny.write_ced(folder / "ced.pt"))}
    written = str(tiny.write_hf_encoder(folder / "encoder", name))
    return {f"{name.split()[0].removesuffix('-bert')}_path": written}


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> Path:
    return tiny.write_llm(tmp_path_factory.mktemp("aligned llm") / "llm")


def settings(llm: Path, **changes) -> ModelConfig:
    sizes = {"qformer_hidden_size": 32, "qformer_num_heads": 2, "qformer_layers": 1, "context_layers": 1}
    windows = {"second_per_window": 0.16, "second_stride": 0.08}
    return ModelConfig(llama_path=str(llm), **sizes, **windows, end_sym="</s>", **changes)


def check_it_learns(model: AlignmentModel) -> None:
    """A loss with a gradient for all that trains, a text for each clip, and a lower loss after some steps."""
    waveforms, lengths = mixed_clips()
    waveforms, lengths = waveforms[-3:], lengths[-3:]
    aim(model)
    trained = list(model.adapter_parameters())
    optimizer = torch.optim.Adam(trained, lr=3e-3)
    losses = []
    for _ in range(4):
        output = model(waveforms, lengths, texts=SENTENCES)
        output.loss.backward()
        losses.append(output.loss.item())
        assert not [True for parameter in trained if parameter.grad is None]
        optimizer.step()
        optimizer.zero_grad()
    assert all(map(torch.isfinite, map(torch.tensor, losses))) and losses[-1] < losses[0]
    assert output.target_tokens == sum(len(model.alignment.pieces.spell(text)) for text in SENTENCES)
    assert all(isinstance(text, str) for text in model.generate(waveforms, lengths, PROMPTS[:3]))


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder(llm, tmp_path, name):
    torch.manual_seed(0)
    model = build_model(settings(llm, **encoder_options(tmp_path, name)), aligning=True)
    assert len(model.encoders.encoders) == 1
    check_it_learns(model)


@pytest.mark.parametrize("family", tiny.LLM_FAMILIES)
def test_every_language_model(tmp_path, family):
    torch.manual_seed(0)
    folder = tiny.write_llm(tmp_path / "llm", family=family, bos=not family.startswith("qwen"))
    model = build_model(settings(folder, **encoder_options(tmp_path, "whisper")), aligning=True)
    assert model.llm.is_table
    check_it_learns(model)


@pytest.fixture(scope="module")
def aligner(config):
    torch.manual_seed(4)
    short = replace(config, second_per_window=0.16, second_stride=0.08, context_layers=1, ctc_weight=0.3)
    return aim(build_model(short, aligning=True))


def test_texts_are_those_of_the_best_paths_however_they_are_asked_for(aligner):
    waveforms, lengths = mixed_clips()
    texts = aligner.generate(waveforms, lengths, PROMPTS)
    assert len(set(texts)) > 1
    assert texts == aligner.ctc_texts(waveforms, lengths)
    details = aligner.generate(waveforms, lengths, PROMPTS, return_details=True)
    for found, text in zip(details, texts, strict=True):
        assert found.text == text and found.stop_reason == "end"
        assert aligner.text.tokenizer.decode(found.tokens).strip() == text
    for row, text in enumerate(texts):
        clip, length = alone(waveforms, lengths, row)
        assert aligner.generate(clip, length, PROMPTS[row : row + 1]) == [text]
        assert "".join(aligner.stream(clip[0], PROMPTS[row])) == text
    batches = [(waveforms[:5], lengths[:5], PROMPTS[:5]), (waveforms[5:], lengths[5:], PROMPTS[5:])]
    each = dict(aligner.generate_each(batches, at_once=2))
    assert [each[row].text for row in range(len(texts))] == texts


def test_batch_and_padding_change_no_loss(aligner):
    waveforms, lengths = mixed_clips()
    texts = ["one", "zero", "red", "two", "one two", "blue fish", "zero zero", "one two three"]
    with torch.no_grad():
        together = aligner(waveforms, lengths, texts=texts).loss_sum
        apart = sum(
            aligner(*alone(waveforms, lengths, row), texts=[text]).loss_sum.item() for row, text in enumerate(texts)
        )
    assert together.item() == pytest.approx(apart, rel=1e-4)
    with pytest.raises(ValueError, match="texts"):
        aligner(waveforms, lengths)


def test_the_head_of_a_full_adapter_is_read_without_its_language_model(aligner, config, tmp_path):
    """And an aligned adapter begins a full model, whose LoRA is fresh; both give the alignment's texts."""
    waveforms, lengths = mixed_clips()
    texts = aligner.ctc_texts(waveforms, lengths)
    first = save_adapter(aligner, tmp_path / "aligned")
    full = build_model(replace(aligner.config, ckpt=str(first)))
    assert full.ctc_texts(waveforms, lengths) == texts
    with torch.no_grad():
        for parameter in full.llm.lora_parameters():
            parameter.normal_(0, 0.1)
    second = save_adapter(full, tmp_path / "full")
    again = build_model(replace(aligner.config, ckpt=str(second)), aligning=True)
    assert again.generate(waveforms, lengths, PROMPTS) == texts
    assert not list(again.llm.lora_parameters())


def test_training_without_pieces_is_an_error(config):
    model = build_model(config, aligning=True)
    waveforms, lengths = mixed_clips()
    with pytest.raises(UserError, match="has no pieces yet"):
        model(waveforms, lengths, texts=["one"] * 8)
    with pytest.raises(UserError, match="has no alignment"):
        model.generate(waveforms, lengths, PROMPTS)


def test_evaluation_gives_its_texts_and_their_wer(project, tmp_path, capsys):
    """Of the alignment stage's adapter, and of a full one that is asked for its alignment's path."""
    options = ["run.stage=align", "model.ctc_weight=0.3"]
    config = load_config(project.config, options)
    torch.manual_seed(4)
    model = aim(build_model(config.model, aligning=True))
    aligned = save_adapter(model, tmp_path / "aligned", config=config)
    full = build_model(replace(config.model, ckpt=str(aligned)))
    plain = load_config(project.config, ["model.ctc_weight=0.3"])
    stage1 = save_adapter(full, tmp_path / "stage1", config=plain)
    found = []
    for folder in (aligned, stage1):
        arguments = ["--mode", "submission_asr", "--ckpt", str(folder), "--options", *options]
        assert run(project, *arguments, f"run.output_dir={tmp_path / folder.name / 'out'}") == 0
        _, lines, scores = outputs(replace(project, output=tmp_path / folder.name / "out"), "submission_asr")
        found.append([line["hypothesis"] for line in lines])
        assert scores["scores"]["wer"] is not None and scores["failed"] == 0
    assert found[0] == found[1] and any(found[0])
    loaded = load_model(aligned)
    assert type(loaded) is AlignmentModel
    assert type(load_model(stage1)) is not AlignmentModel

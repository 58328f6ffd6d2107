"""The reference model computes what the program computes under the public code's rules; only the way differs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks.reference_model import ReferenceModel
from benchmarks.weights import write_weights
from configs.schema import load_config
from models import build_model

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "<Speech><SpeechHere></Speech> Write down what is said."


@pytest.mark.parametrize("system", ["salmonn_3b", "nlp07"])
def test_tokens_and_loss_are_those_of_legacy_weights(system: str, tmp_path: Path) -> None:
    config = load_config(ROOT / f"configs/{system}/evaluate.yaml").model
    config = dataclasses.replace(config, dtype="float32", legacy="weights", lora_dropout=0.0)
    written = write_weights(config, tmp_path, small=True)
    ours, reference = build_model(written), ReferenceModel(written)
    waveform = 0.1 * torch.randn(24_000, generator=torch.Generator().manual_seed(1))
    (answer,) = ours.generate(
        waveform[None], torch.tensor([24_000]), [PROMPT], num_beams=1, max_new_tokens=8, return_details=True
    )
    stages: list[str] = []
    ids = reference.generate(
        [waveform],
        [PROMPT],
        on_stage=stages.append,
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=sorted(ours.text.eos_ids),
    )
    assert ids[0].tolist() == answer.tokens
    assert stages == ["features", "encode", *["token"] * ids.shape[1]]
    expected = ours(waveform[None], torch.tensor([24_000]), [PROMPT], ["w9 w8 w7"]).loss
    loss = reference([waveform], [PROMPT], ["w9 w8 w7"])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    trained = {name for name, parameter in reference.named_parameters() if parameter.grad is not None}
    assert any("lora_B" in name for name in trained) and "speech_query_tokens" in trained


def test_what_it_cannot_run_is_said(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs/nlp07/evaluate.yaml").model
    with pytest.raises(ValueError, match="no quantisation 'int8'"):
        ReferenceModel(dataclasses.replace(config, quantization="int8"))

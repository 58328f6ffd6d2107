"""Whisper with its own decoder: real text from real weights, and an error where it cannot write any."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from configs.known_weights import cached_weights
from data.annotations import load_annotations
from data.audio import load_waveform
from evaluation.whisper_alone import WhisperAlone
from metrics import wer
from support.command_line import UserError
from tests import tiny

REAL = "openai/whisper-tiny.en"
CLIPS = Path(__file__).resolve().parents[2] / "assets" / "clips" / "annotation.json"


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = tiny.write_whisper(tmp_path / "whisper")
    with pytest.raises(UserError, match="has no tokenizer that belongs to this Whisper"):
        WhisperAlone.load(str(folder))


def test_no_model_is_refused() -> None:
    with pytest.raises(UserError, match="nowhere/at/all"):
        WhisperAlone.load("nowhere/at/all")


@pytest.mark.slow
@pytest.mark.skipif(cached_weights(REAL) is None, reason="needs python -m tools.weights tiny")
def test_real_weights_write_what_is_said() -> None:
    clips = [clip for clip in load_annotations(CLIPS) if clip.task == "asr"][:3]
    waveforms, references = [load_waveform(clip.path) for clip in clips], [clip.text for clip in clips]
    whisper = WhisperAlone.load(REAL)
    assert wer(references, [whisper.text(waveform) for waveform in waveforms]).wer < 0.15
    assert wer(references[:1], [whisper.text(waveforms[0], beams=2)]).wer < 0.15
    joined = torch.cat(waveforms * 2)  # longer than one window
    assert wer([" ".join(references * 2)], [whisper.text(joined)]).wer < 0.2
    several = [waveforms[0], joined, waveforms[1]]
    assert whisper.texts(several) == [whisper.text(waveform) for waveform in several]

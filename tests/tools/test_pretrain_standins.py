"""The shipped stand-ins: real formats, small, and not pretrained on the demo's test data."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from data.demo.language import WORDS
from data.demo.speech import Voice
from models.encoders.beats import BEATs
from models.encoders.whisper import WhisperEncoder
from models.language.text import load_tokenizer
from tools.pretrain_standins import LIMIT_BYTES, main
from tools.standins import beats, llm, whisper
from tools.standins.clips import assert_training_only, draw_pretraining_clip
from tools.standins.timed_speech import TimedSynthesiser
from tools.standins.tokenizer import build_tokenizer
from tools.standins.training import learning_rate, length_batches

STANDINS = Path(__file__).parents[2] / "assets/standins"


def test_the_shipped_files_are_small():
    assert sum(path.stat().st_size for path in STANDINS.rglob("*") if path.is_file()) <= LIMIT_BYTES


def test_the_shipped_encoders_load_and_hear():
    waveform, lengths = torch.randn(1, 16_000) * 0.1, torch.tensor([16_000])
    encoders = (WhisperEncoder.from_pretrained(STANDINS / "whisper"), BEATs.from_checkpoint(STANDINS / "beats.pt"))
    for encoder in encoders:
        with torch.no_grad():
            frames, frame_lengths = encoder(waveform, lengths)
        assert frames.shape == (1, int(frame_lengths), encoder.dim)
        assert frames.isfinite().all()


def test_the_shipped_tokenizer_has_one_piece_a_word_and_is_the_documented_one():
    tokenizer = load_tokenizer(str(STANDINS / "llm"))
    assert all(len(tokenizer.encode(word, add_special_tokens=False)) == 1 for word in WORDS)
    assert tokenizer.get_vocab() == build_tokenizer(Path(__file__).parents[2] / "prompts").get_vocab()
    text = "The sound of an airplane flying, then Zoë says: ok!"
    assert tokenizer.decode(tokenizer.encode(text.replace("ë", "e"), add_special_tokens=False)) == text.replace(
        "ë", "e"
    )


def test_the_shipped_llm_repeats_words_that_it_is_shown():
    tokenizer = load_tokenizer(str(STANDINS / "llm"))
    model = AutoModelForCausalLM.from_pretrained(STANDINS / "llm", dtype=torch.float32).eval()
    text = "seven green lemon walks oscar"
    ids = [
        tokenizer.bos_token_id,
        *tokenizer.encode("USER: <Speech>", add_special_tokens=False),
        *tokenizer.encode(text, add_special_tokens=False),
        *tokenizer.encode("</Speech> Write down what is said.\nASSISTANT:", add_special_tokens=False),
    ]
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert tokenizer.decode(ids[-6:], skip_special_tokens=True).strip() == text


@pytest.mark.parametrize("speech", [0.0, 1.0])
def test_pretraining_draws_training_items_only(speech):
    for number in range(150):
        assert_training_only(draw_pretraining_clip(number, speech=speech, seed=0))


def test_words_are_timed_in_order():
    pytest.importorskip("espeakng_loader")
    voice = Voice(accent="en-us", speaker="f1", gender="female", rate_wpm=150, pitch=50, pitch_range=50, word_gap=0)
    synthesiser = TimedSynthesiser()
    spoken = synthesiser.say("the small dog runs in the garden", voice)
    assert [word for word, *_ in synthesiser.words] == ["the", "small", "dog", "runs", "in", "the", "garden"]
    edges = [edge for _, start, end in synthesiser.words for edge in (start, end)]
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(edges))
    assert edges[-1] == pytest.approx(spoken.waveform.size / spoken.rate_hz, abs=0.05)


def test_nf4_rounding_is_that_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(64, 128)
    packed, state = functional.quantize_4bit(
        weight, blocksize=llm.NF4_BLOCK, quant_type="nf4", compress_statistics=False
    )
    torch.testing.assert_close(llm.nf4_rounded(weight), functional.dequantize_4bit(packed, state), atol=1e-5, rtol=0)


def test_augmented_spectra_stay_finite_and_in_range():
    generator = torch.Generator().manual_seed(0)
    mel = torch.rand(80, 120) * 2 - 1
    fbank = torch.rand(120, 128) - 0.5
    for _ in range(50):
        assert whisper.augment(mel, generator).isfinite().all()
        assert beats.augment(fbank, generator).isfinite().all()


def test_batches_hold_every_clip_once_and_like_lengths_together():
    lengths = np.random.default_rng(0).integers(10, 400, 256).tolist()
    batches = length_batches(lengths, 16, torch.Generator().manual_seed(0))
    epoch = [next(batches) for _ in range(16)]
    assert sorted(index for batch in epoch for index in batch) == list(range(256))
    assert np.mean([np.ptp([lengths[i] for i in batch]) for batch in epoch]) < 60


def test_the_learning_rate_rises_and_falls():
    rates = [learning_rate(step, 100, 1.0, 10) for step in range(1, 101)]
    assert rates[9] == 1.0
    assert rates == rates[:10] + sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.01)


@pytest.mark.slow
def test_every_part_runs_from_nothing(tmp_path):
    pytest.importorskip("espeakng_loader", reason="pretraining needs espeak-ng")
    status = main(["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--scale", "0.001"])
    assert status == 0
    assert (tmp_path / "out/whisper/model.safetensors").exists()
    assert BEATs.from_checkpoint(tmp_path / "out/beats.pt").dim == beats.BEATsRecipe().width

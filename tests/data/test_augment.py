"""data/augment.py: pure functions of waveform and generator; strict about their settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.augment import AUGMENTATIONS, Augment

TONE = torch.sin(torch.arange(16_000) * 0.17) * 0.25
SETTINGS = {"crop": {"min_s": 0.3, "max_s": 0.9}}
"""For a tone of a second, where the defaults are for longer clips."""


def apply(spec: dict, seed: int = 0, waveform: torch.Tensor = TONE) -> torch.Tensor:
    return Augment.from_config(spec)(waveform, np.random.default_rng(seed))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_is_pure_and_leaves_its_input(name: str) -> None:
    before = TONE.clone()
    first, again, other = (apply({name: {"p": 1, **SETTINGS.get(name, {})}}, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)
    assert torch.equal(TONE, before)
    assert first.dtype == torch.float32 and first.abs().max() <= 1
    assert torch.equal(apply({name: {"p": 0}}), TONE)


def test_noise_has_the_snr_asked_for() -> None:
    noise = apply({"gaussian_noise": {"p": 1, "min_snr_db": 20, "max_snr_db": 20}}) - TONE
    snr_db = 10 * torch.log10(TONE.square().mean() / noise.square().mean())
    assert snr_db == pytest.approx(20, abs=0.2)
    silence = torch.zeros(100)
    assert torch.equal(apply({"gaussian_noise": {"p": 1}}, waveform=silence), silence)


def test_gain_has_the_level_asked_for_and_never_clips() -> None:
    softer = apply({"gain": {"p": 1, "min_db": -6, "max_db": -6}})
    assert torch.allclose(softer, TONE * 10 ** (-6 / 20))
    louder = apply({"gain": {"p": 1, "min_db": 30, "max_db": 30}})
    assert torch.allclose(louder, TONE / TONE.abs().max(), atol=1e-6)


def test_speed_changes_length_and_pitch() -> None:
    faster = apply({"speed": {"p": 1, "min_factor": 1.25, "max_factor": 1.25}})
    assert len(faster) == pytest.approx(16_000 / 1.25, abs=2)
    expected = torch.sin(torch.arange(len(faster)) * 0.17 * 1.25) * 0.25
    assert (faster - expected)[1000:-1000].abs().max() < 1e-3


def test_shift_keeps_every_sample() -> None:
    shifted = apply({"time_shift": {"p": 1, "max_shift_s": 0.3}})
    silence = len(shifted) - len(TONE)
    assert 0 < silence <= 4800
    assert torch.equal(shifted[silence:], TONE) and not shifted[:silence].any()


def test_crop_takes_a_part_that_sounds() -> None:
    click = torch.zeros(16_000)
    click[2_000:3_000] = TONE[:1_000]
    for seed in range(20):
        part = apply({"crop": {"p": 1, "min_s": 0.5, "max_s": 0.5}}, seed, click)
        assert len(part) == 8_000 and part.any()
    assert torch.equal(apply({"crop": {"p": 1, "min_s": 1, "max_s": 2}}), TONE), "what is shorter stays whole"


def test_an_augmentation_may_be_kept_to_some_tasks() -> None:
    augment = Augment.from_config({"crop": {"p": 1, "min_s": 0.5, "max_s": 0.5, "tasks": ["audiocaption"]}})
    assert len(augment(TONE, np.random.default_rng(0), "audiocaption")) == 8_000
    assert torch.equal(augment(TONE, np.random.default_rng(0), "asr"), TONE)
    assert augment.tasks == {"audiocaption"}


def test_amplitude_of_noise() -> None:
    spec = {"AddGaussianNoise": {"p": 1, "min_amplitude": 0.01, "max_amplitude": 0.01}}
    for waveform in (TONE, torch.zeros(16_000)):
        assert (apply(spec, waveform=waveform) - waveform).std() == pytest.approx(0.01, rel=0.05)
    drawn = [float((apply({"AddGaussianNoise": {"p": 1}}, seed) - TONE).std()) for seed in range(30)]
    assert 0.001 <= min(drawn) < 0.005 < 0.01 < max(drawn) <= 0.0155


def pitch(waveform: torch.Tensor) -> float:
    """Radians a sample of the strongest tone."""
    spectrum = torch.fft.rfft(waveform * torch.hann_window(len(waveform))).abs()
    return float(spectrum.argmax()) * 2 * torch.pi / len(waveform)


@pytest.mark.parametrize("rate", [0.8, 1.0, 1.25])
def test_stretching_keeps_the_pitch(rate: float) -> None:
    slower = apply({"TimeStretch": {"p": 1, "min_rate": rate, "max_rate": rate}})
    assert len(slower) == round(16_000 / rate)
    assert pitch(slower) == pytest.approx(0.17, abs=0.002)
    assert slower[2000:-2000].std() == pytest.approx(float(TONE.std()), rel=0.1)


@pytest.mark.parametrize("semitones", [-4, 2, 7])
def test_shifting_the_pitch_keeps_the_length(semitones: float) -> None:
    shifted = apply({"PitchShift": {"p": 1, "min_semitones": semitones, "max_semitones": semitones}})
    assert len(shifted) == len(TONE)
    assert pitch(shifted) == pytest.approx(0.17 * 2 ** (semitones / 12), rel=0.01)
    assert shifted[2000:-2000].std() == pytest.approx(float(TONE.std()), rel=0.1)


def test_clips_too_short_to_stretch_stay() -> None:
    for size in (1, 100, 512):
        assert torch.equal(apply({"TimeStretch": {"p": 1}}, waveform=TONE[:size]), TONE[:size])


def test_probability() -> None:
    augment = Augment.from_config({"gain": {"p": 0.3}})
    rng = np.random.default_rng(0)
    changed = sum(not torch.equal(augment(TONE[:50], rng), TONE[:50]) for _ in range(1000))
    assert 250 < changed < 350


def test_order_in_the_file_does_not_matter() -> None:
    spec = {"gaussian_noise": {"p": 1}, "speed": {"p": 1}}
    assert torch.equal(apply(spec), apply(dict(reversed(spec.items()))))


def test_nothing_to_do() -> None:
    assert Augment.from_config(None) is None and Augment.from_config({}) is None


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"gausian_noise": {}}, r"datasets\.augmentation\.gausian_noise: unknown; did you mean 'gaussian_noise'"),
        ({"gain": {"mn_db": 1}}, r"datasets\.augmentation\.gain\.mn_db: unknown; did you mean 'min_db'"),
        ({"gain": {"p": 1.5}}, r"gain: p is 1\.5; expected a probability"),
        ({"gain": {"p": "often"}}, r"gain\.p: found 'often'; expected a number"),
        ({"gain": {"p": True}}, r"gain\.p: found True"),
        ({"gain": {"min_db": 3, "max_db": 1}}, r"min_db is 3, above max_db = 1"),
        ({"gain": 0.5}, r"gain: found 0\.5; expected settings"),
        ({"speed": {"min_factor": 0.0}}, "expected 0.5 to 2"),
        ({"time_shift": {"max_shift_s": -1}}, "expected at least 0"),
        ({"crop": {"min_s": 0}}, "expected more than 0"),
        ({"crop": {"tasks": "asr"}}, r"crop\.tasks: found 'asr'; expected a list of tasks"),
    ],
)
def test_mistakes_are_named(spec: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augment.from_config(spec)

"""What `datasets.augmentation` may say, by our names and by audiomentations'."""

from __future__ import annotations

import pytest

from configs import augmentation
from configs.augmentation import AmplitudeNoise, Crop, Gain, GaussianNoise, PitchShift, TimeStretch


@pytest.mark.parametrize(
    ("spec", "steps"),
    [
        ({"AddGaussianNoise": {"use": True, "p": 0.3}}, [AmplitudeNoise(p=0.3)]),
        ({"AddGaussianNoise": None}, [AmplitudeNoise(p=0.5, min_amplitude=0.001, max_amplitude=0.015)]),
        (
            {"AddGaussianNoise": {"min_amplitude": 0.01, "max_amplitude": 0.02}},
            [AmplitudeNoise(min_amplitude=0.01, max_amplitude=0.02)],
        ),
        ({"gaussian_noise": {"min_amplitude": 0.001}}, [AmplitudeNoise(min_amplitude=0.001)]),
        ({"gaussian_noise": {"p": 0.2}}, [GaussianNoise(p=0.2)]),
        ({"AddGaussianSNR": {}}, [GaussianNoise(min_snr_db=5, max_snr_db=40)]),
        ({"AddGaussianSNR": {"min_snr_in_db": 1, "max_snr_in_db": 2}}, [GaussianNoise(min_snr_db=1, max_snr_db=2)]),
        ({"Gain": {"use": True}}, [Gain(min_db=-12, max_db=12)]),
        ({"Gain": {"min_gain_db": -3, "max_gain_in_db": 3}}, [Gain(min_db=-3, max_db=3)]),
        ({"TimeStretch": {"p": 1}}, [TimeStretch(p=1)]),
        ({"PitchShift": {"min_semitones": -1, "max_semitones": 1}}, [PitchShift(min_semitones=-1, max_semitones=1)]),
        ({"Gain": {"use": False, "p": 7}, "RoomSimulator": {"use": False}, "gain": {"use": False}}, []),
        ({"Gain": {}, "crop": {}, "AddGaussianNoise": {}}, [Crop(), Gain(min_db=-12, max_db=12), AmplitudeNoise()]),
    ],
)
def test_both_spellings(spec: dict, steps: list) -> None:
    reading = augmentation.read(spec)
    assert reading.steps == steps
    assert not reading.problems


@pytest.mark.parametrize(
    ("spec", "key", "words"),
    [
        ({"AddGausianNoise": {}}, "AddGausianNoise", "did you mean 'AddGaussianNoise'"),
        ({"addgaussiannoise": {"use": True}}, "addgaussiannoise", "did you mean 'AddGaussianNoise'"),
        ({"RoomSimulator": {"use": True}}, "RoomSimulator", "unknown"),
        ({"Gain": {"use": "yes"}}, "Gain.use", "expected true or false"),
        ({"Gain": {"p": 1.5}}, "Gain", "p is 1.5; expected a probability"),
        ({"Gain": {"p": "often"}}, "Gain.p", "expected a number"),
        ({"Gain": {"min_gain": 3}}, "Gain.min_gain", "did you mean 'min_gain_db'"),
        ({"AddGaussianNoise": {"min_amplitude": 0.5}}, "AddGaussianNoise", "above max_amplitude"),
        ({"AddGaussianNoise": {"min_amplitude": -1}}, "AddGaussianNoise", "expected 0 to 1"),
        ({"AddGaussianNoise": {"min_snr_db": 3}}, "AddGaussianNoise.min_snr_db", "unknown"),
        ({"gaussian_noise": {"min_amplitude": 0, "min_snr_db": 3}}, "gaussian_noise.min_snr_db", "unknown"),
        ({"TimeStretch": {"min_rate": 0.1}}, "TimeStretch", "min_rate is 0.1; expected 0.5 to 2"),
        ({"PitchShift": {"max_semitones": 40}}, "PitchShift", "expected -12"),
        ({"Gain": 3}, "Gain", "expected settings"),
        ({3: {}}, "3", "unknown"),
    ],
)
def test_mistakes_are_named(spec: dict, key: str, words: str) -> None:
    ((place, text),) = augmentation.read(spec).problems
    assert place == f"datasets.augmentation.{key}"
    assert words in text


def test_a_setting_without_effect_is_said() -> None:
    reading = augmentation.read({"TimeStretch": {"leave_length_unchanged": True}})
    assert reading.steps == [TimeStretch()]
    assert "leave_length_unchanged: ignored, because the length follows the rate" in reading.notes[0]

"""Damage that libsndfile does not report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.audio import AudioError, load_waveform

SAMPLE_RATE = 16_000
OGG = {"ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS")}
LARGE = {"rf64": "RF64", "w64": "W64", "au": "AU", "caf": "CAF"}


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.3, 0.3, round(seconds * SAMPLE_RATE)).astype(np.float32)


def write_ogg(folder: Path, suffix: str) -> tuple[Path, bytes]:
    path = folder / f"clip.{suffix}"
    container, codec = OGG[suffix]
    soundfile.write(path, noise(12), SAMPLE_RATE, format=container, subtype=codec)
    return path, path.read_bytes()


def refused(path: Path, match: str, **options: float) -> None:
    with pytest.raises(AudioError, match=match):
        load_waveform(path, **options)


@pytest.mark.parametrize("suffix", OGG)
def test_an_ogg_damaged_in_its_middle(tmp_path: Path, suffix: str) -> None:
    path, data = write_ogg(tmp_path, suffix)
    assert len(load_waveform(path)) == 12 * SAMPLE_RATE
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes(40) + data[middle + 40 :])
    refused(path, "damaged: the Ogg page at byte \\d+ does not fit its checksum")
    refused(path, "damaged", max_audio_s=11.5)
    path.write_bytes(data[:middle] + data[middle + 40 :])
    refused(path, "damaged")


@pytest.mark.parametrize("suffix", OGG)
def test_an_ogg_without_one_of_its_pages(tmp_path: Path, suffix: str) -> None:
    path, data = write_ogg(tmp_path, suffix)
    pages = [at for at in range(len(data)) if data.startswith(b"OggS\0", at)]
    path.write_bytes(data[: pages[3]] + data[pages[4] :])
    refused(path, "damaged: page 3 of its Ogg stream is missing")


def test_a_tag_after_the_end_of_an_ogg_does_no_harm(tmp_path: Path) -> None:
    path, data = write_ogg(tmp_path, "ogg")
    path.write_bytes(data + b"TAG" + bytes(125))
    assert len(load_waveform(path)) == 12 * SAMPLE_RATE


@pytest.mark.parametrize("suffix", LARGE)
@pytest.mark.parametrize("kept", [0.99, 0.5])
def test_truncated_in_rarer_containers(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, noise(1), SAMPLE_RATE, format=LARGE[suffix], subtype="PCM_16")
    assert len(load_waveform(path)) == SAMPLE_RATE
    data = path.read_bytes()
    path.write_bytes(data[: round(len(data) * kept)])
    refused(path, "truncated|not audio")


def test_a_folder_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(AudioError) as caught:
        load_waveform(tmp_path)
    assert str(caught.value) == f"{tmp_path}: is a folder; expected an audio file"

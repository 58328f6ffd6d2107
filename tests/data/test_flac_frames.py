"""flac whose header leaves the length open or says less, and flac files one behind the other, with both decoders."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

import data.audio
from data.audio import AudioError, load_waveform, probe_duration_s
from tests.encoded import APE, ID3V1, ID3V2, LYRICS, NOISE, TONE, encoded

TOTAL_AT = 21  # five bytes, the total in their low 36 bits


@pytest.fixture(params=["miniaudio", "libsndfile"], autouse=True)
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "libsndfile":
        monkeypatch.setattr(data.audio, "miniaudio", None)
    elif data.audio.miniaudio is None:
        pytest.skip("miniaudio is not installed")


def with_total(flac: bytes, total: int) -> bytes:
    field = int.from_bytes(flac[TOTAL_AT : TOTAL_AT + 5], "big") >> 36 << 36 | total
    return flac[:TOTAL_AT] + field.to_bytes(5, "big") + flac[TOTAL_AT + 5 :]


SOUNDS = {
    "tone": (TONE, 16_000, "PCM_16"),
    "noise": (np.tile(NOISE, 20), 16_000, "PCM_24"),
    "one short frame": (NOISE[:100], 16_000, "PCM_16"),
    "stereo": (np.stack([NOISE, NOISE], axis=1), 44_100, "PCM_16"),
    "8 bits": (np.tile(NOISE, 3), 48_000, "PCM_S8"),
    "a rate in the frames": (NOISE, 12_345, "PCM_16"),
}


@pytest.fixture(params=SOUNDS)
def flac(request: pytest.FixtureRequest) -> bytes:
    samples, rate_hz, subtype = SOUNDS[request.param]
    return encoded(samples, rate_hz, format="FLAC", subtype=subtype)


def test_another_number_of_samples(flac: bytes, caplog: pytest.LogCaptureFixture) -> None:
    count = int.from_bytes(flac[TOTAL_AT : TOTAL_AT + 5], "big") % (1 << 36)
    whole = load_waveform(flac)
    for total in (0, count // 2, 50):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert torch.equal(load_waveform(with_total(flac, total)), whole)
        assert len(caplog.records) == bool(total)
        assert probe_duration_s(with_total(flac, total)) == probe_duration_s(flac)
    with pytest.raises(AudioError, match=r"truncated: its header says|decoding failed"):
        load_waveform(with_total(flac, 2 * count))


@pytest.mark.parametrize("behind", [ID3V1, APE, LYRICS, bytes(700)])
def test_what_stands_behind_and_before(flac: bytes, behind: bytes, caplog: pytest.LogCaptureFixture) -> None:
    whole = load_waveform(flac)
    for changed in (flac + behind, with_total(flac, 0) + behind, ID3V2 + flac, ID3V2 + with_total(flac, 0) + behind):
        assert torch.equal(load_waveform(changed), whole)
    assert not caplog.records


def test_files_one_behind_the_other(flac: bytes, caplog: pytest.LogCaptureFixture) -> None:
    whole = load_waveform(flac)
    for files in ([flac, flac], [flac] * 3, [with_total(flac, 0)] * 2, [flac + ID3V1, ID3V2 + flac]):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert torch.equal(load_waveform(b"".join(files)), whole.repeat(len(files)))
        assert len(caplog.records) == 1 and "a second recording begins at byte" in caplog.text
    for padding in (b"\0", b"\0\0", b"\0\0\0"):  # the second one at any place
        assert torch.equal(load_waveform(flac + padding + flac), whole.repeat(2))


@pytest.mark.parametrize("total", [None, 0, 4000])
def test_what_is_cut_off_is_refused(total: int | None) -> None:
    whole = encoded(np.tile(NOISE, 3), format="FLAC")
    whole = whole if total is None else with_total(whole, total)
    for cut in (whole[:-200], whole[: len(whole) * 2 // 3]):
        with pytest.raises(AudioError, match=r"truncated|decoding failed"):
            load_waveform(cut)

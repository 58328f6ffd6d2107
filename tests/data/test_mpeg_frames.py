"""mp3: tags that count less, none, or of another file; files one behind the other."""

from __future__ import annotations

import logging
import struct

import numpy as np
import pytest
import torch

from data.audio import AudioError, load_waveform, probe_duration_s
from data.mpeg_frames import mpeg_frame
from tests.encoded import APE, ID3V1, ID3V2, LYRICS, NOISE, TONE, encoded, with_number

QUIET_THEN_LOUD = np.concatenate([np.tile(TONE, 8) * 0.001, np.tile(NOISE, 4)])  # the first frames say nothing
UNTAGGED = 4 * 1152  # most samples of an encoder's delay and padding, which stay where no tag counts them
LOUDEST_JUNK = b"\xff\xe0" * 300


def mp3(mode: str, channels: int = 1, rate_hz: int = 16_000, samples: np.ndarray = QUIET_THEN_LOUD) -> bytes:
    if channels == 2:
        samples = np.stack([samples, samples / 2], axis=1)
    return encoded(samples, rate_hz, format="MP3", bitrate_mode=mode, compression_level=0.5)


def frames(data: bytes) -> list[bytes]:
    found = []
    while data:
        length = mpeg_frame(data[:4]).bytes
        found.append(data[:length])
        data = data[length:]
    return found


def tag_at(data: bytes) -> int:
    return next(at for at in (data.find(b"Xing"), data.find(b"Info")) if 0 < at < 64)


def with_vbri(data: bytes, count: int) -> bytes:
    first = frames(data)[0]
    tag = struct.pack(">4sHHHII", b"VBRI", 1, 0, 0, len(data), count)
    return (first[:4].ljust(36, b"\0") + tag).ljust(len(first), b"\0") + data[len(first) :]


MODES = pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE", "AVERAGE"])
FORMS = pytest.mark.parametrize(("channels", "rate_hz"), [(1, 16_000), (2, 44_100), (1, 8_000)])


@MODES
@FORMS
def test_a_count_of_too_few_frames(mode: str, channels: int, rate_hz: int, caplog: pytest.LogCaptureFixture) -> None:
    whole = mp3(mode, channels, rate_hz)
    at = tag_at(whole) + 8
    count = struct.unpack_from(">I", whole, at)[0]
    for fewer in (count // 2, 2, 0):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert torch.equal(load_waveform(with_number(whole, at, fewer, ">I")), load_waveform(whole))
        assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
            f"its header counts {fewer} frames, it holds {count}; all of them are used"
        ]


@MODES
@FORMS
def test_files_one_behind_the_other(mode: str, channels: int, rate_hz: int, caplog: pytest.LogCaptureFixture) -> None:
    one = mp3(mode, channels, rate_hz)
    whole = load_waveform(one)
    for count, data in ((2, one * 2), (3, one * 3), (2, one + ID3V1 + one), (2, ID3V2 + one + ID3V2 + one)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert torch.equal(load_waveform(data), whole.repeat(count))
        assert len(caplog.records) == 1 and f"{count} recordings follow one another" in caplog.text
        assert probe_duration_s(data) == pytest.approx(count * len(whole) / 16_000, abs=1e-3)


def test_files_of_other_forms_one_behind_the_other() -> None:
    one, other = mp3("VARIABLE", 1, 16_000), mp3("CONSTANT", 2, 44_100)
    alone = torch.cat([load_waveform(one), load_waveform(other)])
    assert torch.equal(load_waveform(one + other), alone)
    untagged = b"".join(frames(one)[1:]) + b"".join(frames(other)[1:])
    assert len(load_waveform(untagged)) == pytest.approx(len(alone), abs=2 * UNTAGGED)


@MODES
@FORMS
def test_without_a_tag(mode: str, channels: int, rate_hz: int) -> None:
    whole = mp3(mode, channels, rate_hz)
    untagged, seconds = b"".join(frames(whole)[1:]), len(QUIET_THEN_LOUD) / rate_hz
    for count, data in (
        (1, untagged), (1, untagged + APE), (1, untagged + LYRICS), (1, untagged + bytes(3000)), (1, ID3V2 + untagged),
        (2, untagged * 2), (2, untagged + ID3V1 + untagged),
        (1, with_vbri(whole, len(frames(whole)) - 1)), (1, with_vbri(whole, len(frames(whole)) // 2)),
    ):  # fmt: skip
        assert len(load_waveform(data)) / 16_000 == pytest.approx(count * seconds, abs=count * UNTAGGED / rate_hz)


@MODES
@pytest.mark.parametrize("behind", [ID3V1, APE, LYRICS, bytes(3000), LOUDEST_JUNK, b"text " * 300])
def test_what_stands_behind_the_frames(mode: str, behind: bytes, caplog: pytest.LogCaptureFixture) -> None:
    whole = mp3(mode)
    assert torch.equal(load_waveform(whole + behind), load_waveform(whole))
    assert not caplog.records


@MODES
def test_what_is_cut_off_is_refused(mode: str) -> None:
    whole = mp3(mode, 2, 44_100)
    for cut in (whole[:-400], whole[: len(whole) // 2], b"".join(frames(whole)[1:])[:-40], whole + whole[:-400]):
        with pytest.raises(AudioError, match="truncated"):
            load_waveform(cut)

"""Ogg streams that follow one another, that have no mark of their end, and that say nothing of their length."""

from __future__ import annotations

import logging
import struct

import numpy as np
import pytest
import torch

from data.audio import AudioError, load_waveform, probe_duration_s
from data.ogg_pages import LAST_PAGE, checksum, opus_samples
from tests.encoded import ID3V1, NOISE, SECONDS, TONE, encoded

SUBTYPES = ("VORBIS", "OPUS")
LONG = np.tile(NOISE, 20)


def ogg(samples: np.ndarray = NOISE, subtype: str = "VORBIS", rate_hz: int = 16_000) -> bytes:
    return encoded(samples, rate_hz, format="OGG", subtype=subtype)


def unmarked(data: bytes) -> bytes:
    """Without the flag of the last page."""
    at = data.rindex(b"OggS")
    page = bytearray(data[at:])
    page[5] &= ~LAST_PAGE
    page[22:26] = checksum(bytes(page))
    return data[:at] + bytes(page)


def page(number: int, packets: list[bytes], position: int, flags: int = 0) -> bytes:
    segments = b"".join(b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets)
    header = struct.pack("<4sBBqIIIB", b"OggS", 0, flags, position, 77, number, 0, len(segments)) + segments
    whole = header + b"".join(packets)
    return whole[:22] + checksum(whole) + whole[26:]


def ogg_flac(samples: np.ndarray, total: int | None = None) -> bytes:
    """A flac file's frames in Ogg pages, with another total in the header."""
    native = encoded(samples, format="FLAC")
    info = bytearray(native[8:42])
    if total is not None:
        field = int.from_bytes(info[13:18], "big") >> 36 << 36
        info[13:18] = (field | total).to_bytes(5, "big")
    first = b"\x7fFLAC\1\0\0\1fLaC\0\0\0\x22" + bytes(info)
    comment = b"\x84\0\0\x08" + bytes(8)
    at = 4
    while True:
        last, length = native[at] & 0x80, int.from_bytes(native[at + 1 : at + 4], "big")
        at += 4 + length
        if last:
            break
    starts = [at]
    while (following := native.find(b"\xff\xf8", starts[-1] + 2)) >= 0:
        starts.append(following)
    frames = [native[a:b] for a, b in zip(starts, [*starts[1:], len(native)], strict=True)]
    pages = [page(0, [first], 0, 2), page(1, [comment], 0)]
    for index, frame in enumerate(frames):
        end = min(len(samples), 4096 * (index + 1))
        pages.append(page(2 + index, [frame], end, LAST_PAGE * (index == len(frames) - 1)))
    return b"".join(pages)


@pytest.mark.parametrize("subtype", SUBTYPES)
def test_streams_that_follow_one_another(subtype: str, caplog: pytest.LogCaptureFixture) -> None:
    one = ogg(subtype=subtype)
    whole = load_waveform(one)
    for count, data in ((2, one * 2), (3, one * 3), (2, one + bytes(300) + one), (2, one + unmarked(one))):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert torch.equal(load_waveform(data), whole.repeat(count))
        assert len(caplog.records) == 1 and f"{count} recordings follow one another" in caplog.text
        assert probe_duration_s(data) == pytest.approx(count * SECONDS, abs=1e-3)
    other_rate = ogg(np.tile(NOISE, 3), subtype, 48_000)
    assert len(load_waveform(one + other_rate)) == pytest.approx(2 * len(NOISE), abs=2)
    assert len(load_waveform(ogg(subtype="VORBIS") + ogg(subtype="OPUS"))) == pytest.approx(2 * len(NOISE), abs=2)


@pytest.mark.parametrize("subtype", SUBTYPES)
@pytest.mark.parametrize("samples", [TONE, NOISE, LONG], ids=["tone", "noise", "long"])
def test_no_mark_of_the_end(subtype: str, samples: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    whole = ogg(samples, subtype)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(load_waveform(unmarked(whole)), load_waveform(whole))
        assert torch.equal(load_waveform(unmarked(whole) + ID3V1), load_waveform(whole))
    # An Opus stream that ends inside a packet has ended; of Vorbis that cannot be seen.
    assert ("not marked as the end" in caplog.text) == (subtype == "VORBIS")


def test_opus_that_ends_with_a_packet_may_have_been_cut(caplog: pytest.LogCaptureFixture) -> None:
    data = ogg(LONG, "OPUS")
    with caplog.at_level(logging.WARNING):
        waveform = load_waveform(data[: data.rindex(b"OggS")])
    assert 8 * 16_000 < len(waveform) < len(LONG)
    assert "its last page is not marked as the end of the recording, which may have been cut there" in caplog.text


def test_a_stream_that_was_cut_after_a_full_page_is_refused() -> None:
    data = ogg(LONG)
    for _ in range(2):
        data = data[: data.rindex(b"OggS")]
        with pytest.raises(AudioError, match="truncated: its last page is not marked"):
            load_waveform(data)


@pytest.mark.parametrize("subtype", SUBTYPES)
def test_what_stands_behind_the_end_and_what_is_cut_off(subtype: str) -> None:
    whole = ogg(subtype=subtype)
    for behind in (ID3V1, bytes(3000), b"\n"):
        assert torch.equal(load_waveform(whole + behind), load_waveform(whole))
    for cut in (whole[:-100], whole + whole[:-100], whole + whole[: len(whole) // 2]):
        with pytest.raises(AudioError, match="truncated"):
            load_waveform(cut)


@pytest.mark.parametrize("total", [None, 0, 4000, len(NOISE) * 10 - 1])
def test_ogg_flac_of_another_length(total: int | None, caplog: pytest.LogCaptureFixture) -> None:
    samples = np.tile(NOISE, 10)
    with caplog.at_level(logging.WARNING):
        waveform = load_waveform(ogg_flac(samples, total))
    assert torch.equal(waveform, load_waveform(encoded(samples, format="FLAC")))
    assert len(caplog.records) == bool(total)


def test_chained_ogg_flac() -> None:
    assert len(load_waveform(ogg_flac(NOISE) + ogg_flac(NOISE, 0))) == 2 * len(NOISE)


@pytest.mark.parametrize(
    ("packet", "samples"),
    [
        (b"\x00", 480),
        (b"\x09", 2 * 960),
        (b"\x60", 480),
        (b"\x80", 120),
        (b"\xfb\x03", 3 * 960),
        (b"\x1b\x02", 2 * 2880),
    ],
)
def test_samples_of_an_opus_packet(packet: bytes, samples: int) -> None:
    assert opus_samples(packet) == samples

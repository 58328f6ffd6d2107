"""wav, Wave64, AIFF, CAF and AU whose lengths are wrong, unknown or missing: all of the sound, once, with a remark."""

from __future__ import annotations

import logging
import struct

import numpy as np
import pytest
import torch

from data.audio import AudioError, load_waveform, probe_duration_s
from tests.encoded import APE, ID3V1, ID3V2, LYRICS, NOISE, SAMPLE_RATE, SECONDS, TONE, encoded, with_number

PCM = ("PCM_16", "PCM_U8", "PCM_24", "FLOAT", "DOUBLE", "ULAW")
COMPRESSED = ("IMA_ADPCM", "MS_ADPCM", "GSM610")
DS64_BYTES, DS64_SAMPLES = 36, 28  # of the chunk; place of the samples' length in a file
LIST = b"LIST" + struct.pack("<I", 4) + b"INFO"


def remarks_of(data: bytes, whole: bytes, caplog: pytest.LogCaptureFixture, joined: int = 1) -> list[str]:
    """Loads a changed file, which must hold what the whole one does, so many times; what was said."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        waveform = load_waveform(data)
    assert torch.equal(waveform, load_waveform(whole).repeat(joined))
    assert probe_duration_s(data) == pytest.approx(joined * probe_duration_s(whole))
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("subtype", PCM + COMPRESSED)
@pytest.mark.parametrize("length", ["a quarter", 0, 0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wav_of_another_length(subtype: str, length: str | int, caplog: pytest.LogCaptureFixture) -> None:
    whole = encoded(subtype=subtype)
    at = whole.index(b"data") + 4
    if length == "a quarter":
        length = struct.unpack_from("<I", whole, at)[0] // 4
        length -= length % 256  # a block of ADPCM
    said = remarks_of(with_number(whole, at, length), whole, caplog)
    if length < 0x7FFFF000:
        gives = f"{length} bytes of samples" if length else "no length"
        assert len(said) == 1 and f"its header gives {gives}, the file holds" in said[0]
    else:
        assert said == []  # the usual mark for a stream


@pytest.mark.parametrize("header", [b"RF64", b"BW64"])
@pytest.mark.parametrize("length", [None, 4000, 0, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF])
def test_a_large_wav_of_another_length(header: bytes, length: int | None, caplog: pytest.LogCaptureFixture) -> None:
    whole = encoded(format="RF64")
    changed = header + (whole if length is None else with_number(whole, DS64_SAMPLES, length, "<Q"))[4:]
    said = remarks_of(changed, whole, caplog)
    assert len(said) == (length in (4000, 0))


def test_a_large_wav_without_its_chunk_of_lengths(caplog: pytest.LogCaptureFixture) -> None:
    whole = encoded(format="RF64")
    assert remarks_of(whole[:12] + whole[12 + DS64_BYTES :], whole, caplog) == []


@pytest.mark.parametrize("length", [24 + 4000, 24, 0, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF])
def test_a_wave64_of_another_length(length: int, caplog: pytest.LogCaptureFixture) -> None:
    whole = encoded(format="W64")
    remarks_of(with_number(whole, whole.index(b"data") + 16, length, "<Q"), whole, caplog)


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT", "ULAW"])
@pytest.mark.parametrize("length", [4000, 0, 8, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("fields", ["samples", "count", "both"])
def test_an_aiff_of_another_length(
    subtype: str, length: int, fields: str, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    changed = whole = encoded(format="AIFF", subtype=subtype)
    if fields != "count":
        changed = with_number(changed, whole.index(b"SSND") + 4, length, ">I")
    if fields != "samples":
        changed = with_number(changed, whole.index(b"COMM") + 10, length // 2 if length < 9999 else length, ">I")
    remarks_of(changed, whole, caplog)


@pytest.mark.parametrize("length", [4004, 4, 0, 0xFFFFFFFFFFFFFFFF])
def test_a_caf_of_another_length(length: int, caplog: pytest.LogCaptureFixture) -> None:
    whole = encoded(format="CAF")
    remarks_of(with_number(whole, whole.index(b"data") + 4, length, ">Q"), whole, caplog)


@pytest.mark.parametrize("subtype", ["PCM_16", "ULAW"])
@pytest.mark.parametrize("length", [4000, 0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_an_au_of_another_length(subtype: str, length: int, caplog: pytest.LogCaptureFixture) -> None:
    whole = encoded(format="AU", subtype=subtype)
    said = remarks_of(with_number(whole, 8, length, ">I"), whole, caplog)
    assert len(said) == (length in (4000, 0))


BEHIND = {
    "ID3v1": ID3V1,
    "ID3v2": ID3V2,
    "APE": APE,
    "lyrics": LYRICS,
    "zeros": bytes(3000),
    "a byte": b"\0",
    "text": b"recorded on a sunny day\r\n" * 40,
}


@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64", "W64", "AIFF", "CAF", "AU"])
@pytest.mark.parametrize("behind", BEHIND)
def test_what_is_no_sound_is_not_taken_for_it(
    container: str, behind: str, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    whole = encoded(format=container)
    caplog.clear()
    waveform = load_waveform(whole + BEHIND[behind])
    assert not caplog.records
    assert 0 <= len(waveform) - len(TONE) <= 128  # Wave64's decoder reads up to the end


@pytest.mark.parametrize(
    "chunks",
    [
        LIST,
        b"id3 " + struct.pack("<I", 10) + ID3V2[:10],
        b"wxyz" + struct.pack("<I", 400) + bytes(range(200)) * 2 + LIST,
        b"LIST" + struct.pack("<I", 9999) + bytes(range(256)) * 2,  # cut off itself
    ],
    ids=["LIST", "id3", "unknown", "cut"],
)
@pytest.mark.parametrize("samples", [len(TONE), len(TONE) - 1])
def test_chunks_behind_the_samples(chunks: bytes, samples: int, caplog: pytest.LogCaptureFixture) -> None:
    whole = encoded(TONE[:samples], subtype="PCM_U8")
    for padding in (b"\0", b"") if samples % 2 else (b"",):  # some programs forget the padding
        assert remarks_of(whole[: 44 + samples] + padding + chunks, whole, caplog) == []


@pytest.mark.parametrize("container", ["WAV", "RF64", "W64", "AIFF", "CAF", "AU"])
def test_two_files_in_one(container: str, caplog: pytest.LogCaptureFixture) -> None:
    whole = encoded(format=container)
    said = remarks_of(whole + whole, whole, caplog, joined=2)
    assert len(said) == 1 and "a second recording begins at byte" in said[0]
    assert len(remarks_of(whole * 3, whole, caplog, joined=3)) == 1


@pytest.mark.parametrize(
    "second", [encoded(format="FLAC"), LIST + encoded(), encoded(NOISE, format="AIFF"), encoded(TONE, 8_000)]
)
def test_a_wav_with_another_file_behind_it(second: bytes) -> None:
    assert len(load_waveform(encoded() + second)) in (2 * len(TONE), 3 * len(TONE))


def test_max_audio_s_in_a_later_file() -> None:
    whole = load_waveform(encoded())
    assert torch.equal(load_waveform(encoded() * 3, max_audio_s=0.75), whole.repeat(2)[:12_000])
    assert torch.equal(load_waveform(encoded() * 3, max_audio_s=0.25), whole[:4000])


def test_silence_of_no_length_and_no_samples() -> None:
    silence = encoded(np.zeros_like(TONE))
    assert len(load_waveform(with_number(silence, 40, 0))) == SECONDS * SAMPLE_RATE
    for empty in (encoded(TONE[:0]), encoded(TONE[:0]) + LIST, encoded(TONE[:0], format="AIFF")):
        with pytest.raises(AudioError, match="0 samples"):
            load_waveform(empty)


@pytest.mark.parametrize("container", ["WAV", "W64", "AIFF", "CAF", "AU"])
def test_what_is_cut_off_is_refused_still(container: str) -> None:
    for data in (encoded(format=container)[:-1000], encoded(format=container) + encoded(format=container)[:-1000]):
        with pytest.raises(AudioError, match="truncated: the header promises"):
            load_waveform(data)


@pytest.mark.parametrize("rate_hz", [0, 1, 7, 999, 768_001, 4_000_000_000])
def test_a_rate_that_no_recording_has(rate_hz: int) -> None:
    data = with_number(encoded(), 24, rate_hz)
    for read in (load_waveform, probe_duration_s):
        with pytest.raises(AudioError, match=f"its header gives a rate of {rate_hz} Hz; expected 1000 to 768000 Hz"):
            read(data)


@pytest.mark.parametrize("names", [(b"LIST",), (b"LIST", b"bext"), (b"JUNK", b"LIST", b"cue ")])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_a_chunk_of_odd_length_without_its_padding(names: tuple[bytes, ...], subtype: str, caplog) -> None:
    whole = encoded(subtype=subtype)
    at = whole.index(b"data")
    before = b"".join(name + struct.pack("<I", 7) + b"INFOabc" for name in names)
    assert not remarks_of(whole[:at] + before + whole[at:], whole, caplog)
    with pytest.raises(AudioError, match="truncated"):
        load_waveform((whole[:at] + before + whole[at:])[:-500])

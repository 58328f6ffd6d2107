"""Encoded sounds in memory, and headers of them that say something else, for tests of reading audio files."""

from __future__ import annotations

import io
import struct

import numpy as np
import soundfile

SAMPLE_RATE = 16_000
SECONDS = 0.5
TONE = (0.4 * np.sin(2 * np.pi * 440 * np.arange(round(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE)).astype(np.float32)
NOISE = np.random.default_rng(1).uniform(-0.3, 0.3, len(TONE)).astype(np.float32)
ID3V1 = b"TAG" + b"a" * 125
APE = b"".join(
    (
        b"APETAGEX" + struct.pack("<IIII", 2000, 332, 1, 0xA0000000) + bytes(8),
        bytes(300),
        b"APETAGEX" + struct.pack("<IIII", 2000, 332, 1, 0x80000000) + bytes(8),
    )
)
LYRICS = b"LYRICSBEGIN" + b"IND0000200" + b"x" * 400 + b"000421LYRICS200" + ID3V1
ID3V2 = b"ID3\4\0\0\0\0\x10\0" + bytes(range(256)) * 8


def encoded(samples: np.ndarray = TONE, rate_hz: int = SAMPLE_RATE, **options: object) -> bytes:
    """A file as libsndfile writes it: `format`, `subtype` …, by default a wav of 16 bits."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, **({"format": "WAV"} | options))
    return buffer.getvalue()


def with_number(data: bytes, at: int, value: int, form: str = "<I") -> bytes:
    """The file with another number at a place."""
    changed = bytearray(data)
    struct.pack_into(form, changed, at, value)
    return bytes(changed)

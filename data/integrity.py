"""Does an audio file hold what its header promises?

Decoders forgive: libsndfile shortens a cut wav or ogg without a word, and reads a third of a variable-rate mp3 that
carries no length. Training on such a clip pairs a whole text with half of its audio. The checks here read headers and
the last page only, never the samples, so they cost microseconds.

Sources: RIFF/WAVE (Microsoft, 1991), AIFF 1.3, Ogg (RFC 3533), ISO 11172-3 frame headers, the Xing/LAME tag.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

HEAD_BYTES = 4096
OGG_PAGE_MAX_BYTES = 27 + 255 + 255 * 255
STREAMED_SIZE = 0x7FFFF000
"""wav sizes from here up are what sox (0x7FFFF…) and ffmpeg (0xFFFFFFFF) write to a pipe: the length is unknown."""

MPEG1_KBPS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
MPEG2_KBPS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
MPEG1_RATES_HZ = (44_100, 48_000, 32_000)
XING_FRAMES, XING_BYTES = 1, 2


def find_damage(file: BinaryIO, decoder_frames: int | None = None) -> str | None:
    """One sentence on what is cut off or missing, `None` where everything promised is there.

    `file` is open for reading in binary; `decoder_frames` is the length that the decoder reports, for containers
    (mp3) whose decoder may believe less than the file holds. Unknown containers pass: their decoder is the judge.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if head[:4] == b"RIFF":
        return _check_chunks(file, size, "<", b"data")
    if head[:4] == b"RIFX":
        return _check_chunks(file, size, ">", b"data")
    if head[:4] == b"FORM":
        return _check_chunks(file, size, ">", b"SSND")
    if head[:4] == b"OggS":
        return _check_ogg(file, size)
    if head[:3] == b"ID3" or _mpeg_frame(head[:4]) is not None:
        return _check_mp3(file, size, decoder_frames)
    return None


def _check_chunks(file: BinaryIO, size: int, endian: str, wanted: bytes) -> str | None:
    """RIFF and AIFF: a list of (name, length, payload) chunks, payloads padded to an even length."""
    position = 12
    while position + 8 <= size:
        file.seek(position)
        name, length = struct.unpack(f"{endian}4sI", file.read(8))
        position += 8
        if name == wanted:
            if length >= STREAMED_SIZE or length <= size - position:
                return None
            return f"truncated: the header promises {length} bytes of samples, {size - position} are there"
        position += length + length % 2
    return f"truncated: it ends before its samples ('{wanted.decode()}' chunk)"


def _check_ogg(file: BinaryIO, size: int) -> str | None:
    """Ogg (Vorbis, Opus, FLAC): the last page must be whole and flagged as the end of its stream."""
    file.seek(max(0, size - OGG_PAGE_MAX_BYTES))
    tail = file.read()
    start = tail.rfind(b"OggS\0")
    if start < 0:
        return "truncated: no page in its last 64 KiB"
    page = tail[start:]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return "truncated inside the header of its last page"
    promised = 27 + page[26] + sum(page[27 : 27 + page[26]])
    if len(page) < promised:
        return f"truncated: its last page promises {promised} bytes, {len(page)} are there"
    if not page[5] & 0x04:
        return "truncated: its last page is not marked as the end of the stream"
    return None


def _mpeg_frame(header: bytes) -> tuple[int, int] | None:
    """(bytes, samples per channel) of the layer III frame that starts with these four bytes; None: not a frame."""
    if len(header) < 4:
        return None
    word = int.from_bytes(header[:4], "big")
    version, layer = word >> 19 & 3, word >> 17 & 3
    rate_index, sample_rate_index = word >> 12 & 15, word >> 10 & 3
    if word >> 21 != 0x7FF or version == 1 or layer != 1 or rate_index in (0, 15) or sample_rate_index == 3:
        return None
    mpeg1 = version == 3
    bits_per_s = 1000 * (MPEG1_KBPS if mpeg1 else MPEG2_KBPS)[rate_index]
    rate_hz = MPEG1_RATES_HZ[sample_rate_index] // {3: 1, 2: 2, 0: 4}[version]
    samples = 1152 if mpeg1 else 576
    return samples // 8 * bits_per_s // rate_hz + (word >> 9 & 1), samples


def _check_mp3(file: BinaryIO, size: int, decoder_frames: int | None) -> str | None:
    """mp3: by the Xing/Info tag's byte count, else by walking the frame headers."""
    file.seek(0)
    data = file.read(10)
    start = 0
    if data[:3] == b"ID3":
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
    file.seek(start)
    first = file.read(HEAD_BYTES)
    frame = _mpeg_frame(first[:4])
    if frame is None:
        return None  # junk before the first frame: the decoder looks for it, and is the judge
    tag = next((at for at in (first.find(b"Xing", 0, 64), first.find(b"Info", 0, 64)) if at > 0), None)
    if tag is not None and len(first) >= tag + 16:
        flags, _, byte_count = struct.unpack(">III", first[tag + 4 : tag + 16])
        if flags & XING_FRAMES and flags & XING_BYTES:
            if start + byte_count > size:
                return f"truncated: its header promises {byte_count} bytes, {size - start} are there"
            return None
    return _walk_mp3(file, start, size, decoder_frames)


def _walk_mp3(file: BinaryIO, start: int, size: int, decoder_frames: int | None) -> str | None:
    file.seek(start)
    data = file.read()
    position = samples = 0
    while (frame := _mpeg_frame(data[position : position + 4])) is not None:
        length, frame_samples = frame
        if position + length > len(data):
            return f"truncated: its last frame promises {length} bytes, {len(data) - position} are there"
        position += length
        samples += frame_samples
    if decoder_frames is not None and samples - decoder_frames > 2 * 1152:
        return (
            f"a variable-rate mp3 without a length header: the decoder sees {decoder_frames} of its {samples} samples"
        )
    return None

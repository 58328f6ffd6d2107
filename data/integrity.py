"""Does an audio file contain what its header says?

Decoders are tolerant: libsndfile silently shortens a cut wav or a damaged ogg, and reads a third of a variable-rate mp3
without a length header. Training on such a clip pairs a whole text with half of its audio. The checks here read
headers and checksums, never the samples, so they cost microseconds.

Sources: RIFF/WAVE (Microsoft, 1991), RF64 (EBU Tech 3306), Wave64 (Sony), AU (Sun), Core Audio Format (Apple), AIFF
1.3, Ogg (RFC 3533), ISO 11172-3 frame headers, the Xing/LAME tag.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import BinaryIO, NamedTuple

HEAD_BYTES = 4096
OGG_HEADER_BYTES = 27
OGG_LAST_PAGE = 0x04  # flag of the page that ends its stream
STREAMED_SIZE = 0x7FFFF000
"""wav sizes from here up are what sox (0x7FFFF…) and ffmpeg (0xFFFFFFFF) write to a pipe: the length is unknown."""

UNKNOWN_SIZE_32, UNKNOWN_SIZE_64 = 0xFFFFFFFF, 1 << 62  # 64-bit sizes from the latter up mean the same
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

MPEG1_KBPS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
MPEG2_KBPS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
MPEG1_RATES_HZ = (44_100, 48_000, 32_000)
XING_FRAMES, XING_BYTES = 1, 2


class Chunks(NamedTuple):
    """A container that is a list of (name, length, payload)."""

    start: int
    header: str
    """Name and length, as `struct` writes them."""
    samples: bytes
    """The name of the chunk that holds the samples."""
    align: int = 2
    """Chunks begin at multiples of this many bytes."""
    with_header: bool = False
    """Whether the length counts the header too."""


W64 = [
    name + bytes.fromhex(rest)
    for name, rest in ((b"riff", "2e91cf11a5d628db04c10000"), (b"data", "f3acd3118cd100c04f8edb8a"))
]
CHUNKS = {
    b"RIFF": Chunks(12, "<4sI", b"data"),
    b"RIFX": Chunks(12, ">4sI", b"data"),
    b"RF64": Chunks(12, "<4sI", b"data"),
    W64[0]: Chunks(40, "<16sQ", W64[1], align=8, with_header=True),
    b"caff": Chunks(8, ">4sQ", b"data", align=1),
    b"FORM": Chunks(12, ">4sI", b"SSND"),
}
"""How a file begins -> its chunks."""


def find_damage(file: BinaryIO, decoder_frames: int | None = None) -> str | None:
    """What is cut off or missing, in one sentence; None if the file is complete.

    `file` is open for reading in binary; `decoder_frames` is the length that the decoder reports, for containers
    (mp3) whose decoder may believe less than the file holds. Unknown containers pass: their decoder is the judge.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(HEAD_BYTES)
    for beginning, layout in CHUNKS.items():
        if head.startswith(beginning):
            return _check_chunks(file, size, layout)
    if head[:4] == b".snd":
        return _check_au(head, size)
    if head[:4] == b"OggS":
        return _check_ogg(file, size)
    if head[:3] == b"ID3" or _mpeg_frame(head[:4]) is not None:
        return _check_mp3(file, size, decoder_frames)
    return None


def _check_chunks(file: BinaryIO, size: int, layout: Chunks) -> str | None:
    header = struct.Struct(layout.header)
    position, large = layout.start, None
    while position + header.size <= size:
        file.seek(position)
        name, length = header.unpack(file.read(header.size))
        position += header.size
        length -= header.size * layout.with_header
        if name == layout.samples:
            if layout.header.endswith("I") and length >= STREAMED_SIZE:
                return None if large is None else _shortfall(large, size - position)
            return _shortfall(length, size - position)
        if name == b"ds64":  # RF64, wav past 4 GiB: the samples' length is here
            large = int.from_bytes(file.read(16)[8:], "little")
        position += max(0, length) + -length % layout.align
    return f"truncated: it ends before its samples ('{layout.samples[:4].decode()}' chunk)"


def _check_au(head: bytes, size: int) -> str | None:
    """Sun AU: one header with the samples' place and length."""
    start, promised = struct.unpack(">II", head[4:12].ljust(8, b"\0"))
    return None if promised == UNKNOWN_SIZE_32 else _shortfall(promised, size - start)


def _shortfall(promised: int, present: int) -> str | None:
    if promised <= present or promised >= UNKNOWN_SIZE_64:
        return None
    return f"truncated: the header promises {promised} bytes of samples, {max(0, present)} are there"


def _check_ogg(file: BinaryIO, size: int) -> str | None:
    """Ogg (Vorbis, Opus, FLAC): every page whole, in order and true to its checksum, the last one flagged as the end.

    A decoder passes over a page that is missing or damaged, and the clip becomes shorter by it.
    """
    file.seek(0)
    data = file.read(size)
    position, flags = 0, 0
    following: dict[bytes, int] = {}  # stream -> number of its next page
    while position < size:
        header = data[position : position + OGG_HEADER_BYTES]
        if header[:5] != b"OggS\0"[: len(header)]:
            if flags & OGG_LAST_PAGE:
                return None  # a tag after the end
            return f"damaged: there is no Ogg page at byte {position}"
        segments = data[position + OGG_HEADER_BYTES : position + OGG_HEADER_BYTES + (header[26:27] or b"\0")[0]]
        if len(header) < OGG_HEADER_BYTES or len(segments) < header[26]:
            return "truncated inside the header of its last page"
        promised = OGG_HEADER_BYTES + len(segments) + sum(segments)
        page = data[position : position + promised]
        if len(page) < promised:
            return f"truncated: its last page promises {promised} bytes, {len(page)} are there"
        if _ogg_checksum(page) != page[22:26]:
            return f"damaged: the Ogg page at byte {position} does not fit its checksum"
        stream, number = page[14:18], int.from_bytes(page[18:22], "little")
        if following.get(stream, number) != number:
            return f"damaged: page {following[stream]} of its Ogg stream is missing"
        following[stream] = number + 1
        position, flags = position + promised, page[5]
    return None if flags & OGG_LAST_PAGE else "truncated: its last page is not marked as the end of the stream"


def _ogg_checksum(page: bytes) -> bytes:
    """The page's checksum as its header has it, computed with zeros in its place.

    It is zlib's CRC-32 with the bits of every byte, and of the result, in reverse, and without zlib's inversions.
    """
    zeroed = page[:22] + bytes(4) + page[26:]
    crc = zlib.crc32(zeroed.translate(REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2).to_bytes(4, "little")


def _mpeg_frame(header: bytes) -> tuple[int, int] | None:
    """(bytes, samples per channel) of the layer III frame that starts with these four bytes; None: no frame."""
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

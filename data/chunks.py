"""Containers with one place for the samples and their length: wav (RIFF, RIFX, RF64, BW64), Wave64, AIFF, CAF, AU.

A program that is stopped while it records, or that writes into a pipe, leaves a length that is 0, a mark for "unknown",
or that of an earlier moment; the samples continue after it. Samples may be followed by chunks, a tag or padding.

Sources: RIFF/WAVE (Microsoft, 1991), RF64 (EBU Tech 3306), BW64 (ITU-R BS.2088), Wave64 (Sony), AU (Sun), Core Audio
Format (Apple), AIFF 1.3.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import BinaryIO, NamedTuple

from data.findings import LONGEST_PADDING, WHOLE, Decoded, Finding, is_sound, is_tag

STREAMED_SIZE = 0x7FFFF000
"""32-bit sizes from here up are what sox (0x7FFFF…) and ffmpeg (0xFFFFFFFF) write to a pipe: the length is unknown."""
UNKNOWN_SIZE_64 = 1 << 62
"""64-bit sizes from here up mean the same."""
LARGEST_RIFF = 0xFFFFFFFF


class Chunks(NamedTuple):
    """A container that is a list of (name, length, payload)."""

    start: int
    header: struct.Struct
    """Name and length."""
    samples: bytes
    """The name of the chunk that holds the samples."""
    align: int = 2
    """Chunks begin at multiples of this many bytes."""
    with_header: bool = False
    """Whether the length counts the header too."""
    unknown: int = STREAMED_SIZE
    """Lengths from here up are marks, not lengths."""


W64_DATA = b"data" + bytes.fromhex("f3acd3118cd100c04f8edb8a")
FORMS = (b"WAVE", b"AIFF", b"AIFC")
RIFF = Chunks(12, struct.Struct("<4sI"), b"data")
CHUNKS = {
    b"RIFF": RIFF,
    b"RIFX": Chunks(12, struct.Struct(">4sI"), b"data"),
    b"RF64": RIFF,
    b"BW64": RIFF,
    b"riff": Chunks(40, struct.Struct("<16sQ"), W64_DATA, align=8, with_header=True, unknown=UNKNOWN_SIZE_64),
    b"caff": Chunks(8, struct.Struct(">4sQ"), b"data", align=1, unknown=UNKNOWN_SIZE_64),
    b"FORM": Chunks(12, struct.Struct(">4sI"), b"SSND"),
}
"""How a file begins -> its chunks."""
OTHER_FILES = (b"fLaC\0\0\0\x22", b"OggS\0\2", b".snd\0\0\0")
CHUNK_INTRODUCTION = {b"FORM": 8, b"caff": 4}
"""Bytes of the samples' chunk before the first sample."""
KNOWN_AFTER_SAMPLES = {
    b"LIST", b"id3 ", b"ID3 ", b"fact", b"bext", b"cue ", b"smpl", b"inst", b"iXML", b"axml",
    b"chna", b"JUNK", b"PAD ", b"afsp", b"PEAK", b"_PMX", b"ANNO", b"NAME", b"AUTH", b"APPL",
    b"COMT", b"MARK", b"info", b"strg",
}  # fmt: skip
"""Chunks that may be cut off themselves: no samples are missing then."""


class Samples(NamedTuple):
    """Where the samples are and how many bytes their header promises."""

    length_at: int
    """Place of the header of their chunk."""
    start: int
    promised: int
    ds64: int | None = None
    """Place of the chunk with the lengths of a wav past 4 GiB."""
    comm: int | None = None
    """Place of AIFF's chunk that counts the samples."""


def beginning_of(head: bytes) -> bytes | None:
    """The key in `CHUNKS` of a file that begins so."""
    beginning = head[:4]
    if beginning not in CHUNKS:
        return None
    if beginning == b"riff":
        return beginning if head[24:28] == b"wave" else None
    return beginning if head[8:12] in FORMS or beginning == b"caff" else None


def begins_file(head: bytes) -> bool:
    """Whether another audio file begins so."""
    return beginning_of(head) is not None or head.startswith(OTHER_FILES)


def check_chunks(file: BinaryIO, head: bytes, size: int, decoded: Decoded | None) -> Finding:
    """A file that is a list of chunks, and begins with `head`."""
    beginning = head[:4]
    layout = CHUNKS[beginning]
    samples = _find_samples(file, head, size, layout)
    padded = _padded(file, size, layout) if samples is None else None
    if padded is not None:
        return Finding(pieces=(padded,))
    if samples is None:
        return Finding(damage=f"truncated: it ends before its samples ('{layout.samples[:4].decode()}' chunk)")
    unknown = layout.unknown if samples.ds64 is None else UNKNOWN_SIZE_64
    if samples.promised >= unknown:
        end = _without_tag(file, samples.start, size)
    elif samples.promised > size - samples.start:
        return _shortfall(samples.promised, size - samples.start)
    else:
        end, second = _after(file, samples.start + samples.promised, size, layout, silence=samples.promised == 0)
        if second is not None:
            return two_files(file, second)
    present = end - samples.start
    if _is_read_whole(beginning, samples, present, decoded):
        return WHOLE
    return _put_right(file, beginning, samples, present, decoded)


def _is_read_whole(beginning: bytes, samples: Samples, present: int, decoded: Decoded | None) -> bool:
    """Whether the decoder sees the samples that are present, and nothing else."""
    if decoded is None:  # it could not open the file: for its lengths?
        return samples.promised == present and beginning != b"BW64"
    if decoded.frame_bytes is None:
        return present <= samples.promised and (decoded.frames > 0 or present == 0)
    read = decoded.frames * decoded.frame_bytes + CHUNK_INTRODUCTION.get(beginning, 0)
    return -decoded.frame_bytes < read - present <= LONGEST_PADDING


def check_au(file: BinaryIO, head: bytes, size: int, decoded: Decoded | None) -> Finding:
    """Sun AU: one header with the samples' place and length; no chunks follow the samples."""
    start, promised = struct.unpack(">II", head[4:12].ljust(8, b"\0"))
    if promised >= STREAMED_SIZE:
        end = _without_tag(file, start, size)
    elif promised > size - start:
        return _shortfall(promised, size - start)
    else:
        end = start + promised
        file.seek(end)
        extra = file.read()
        if begins_file(extra[:40]):
            return two_files(file, end)
        end = _without_tag(file, start, size) if is_sound(extra, silence=promised == 0) else end
    present = end - start
    if _is_read_whole(b".snd", Samples(0, start, promised), present, decoded):
        return WHOLE
    data = bytearray(_all(file)[:end])
    struct.pack_into(">I", data, 8, present)
    return Finding(pieces=(bytes(data),), note=_counts(promised, present))


def stated_rate_hz(head: bytes) -> int | None:
    """The rate in the header of a wav; None where it has none, or the file is no wav."""
    at = head.find(b"fmt ")
    if beginning_of(head) is None or at < 0 or len(head) < at + 16:
        return None
    return int.from_bytes(head[at + 12 : at + 16], "big" if head[:4] == b"RIFX" else "little")


def two_files(file: BinaryIO, second: int) -> Finding:
    """The file, divided at the place where another one begins."""
    data = _all(file)
    note = f"a second recording begins at byte {second}; both are used, one after the other"
    return Finding(pieces=(data[:second], data[second:]), note=note)


def _find_samples(file: BinaryIO, head: bytes, size: int, layout: Chunks) -> Samples | None:
    header = layout.header
    position, ds64, comm, large = layout.start, None, None, None
    while position + header.size <= size:
        payload = position + header.size
        raw = head[position:payload]
        if len(raw) < header.size:
            file.seek(position)
            raw = file.read(header.size)
        name, length = header.unpack(raw)
        length -= header.size * layout.with_header
        if name == layout.samples:
            if large is not None and length >= STREAMED_SIZE:
                length = UNKNOWN_SIZE_64 if large == LARGEST_RIFF else large
            return Samples(position, payload, max(0, length), ds64, comm)
        if name == b"ds64":
            ds64, large = position, int.from_bytes(head[payload + 8 : payload + 16], "little")
        elif name == b"COMM":
            comm = position
        position = payload + max(0, length) + -length % layout.align
    return None


def _padded(file: BinaryIO, size: int, layout: Chunks) -> bytes | None:
    """The file with the byte after each chunk of odd length that some programs forget; None where none is missing."""
    header, position, at = layout.header, layout.start, []
    while layout.align == 2 and position + header.size <= size:
        file.seek(position)
        name, length = header.unpack(file.read(header.size))
        if name == layout.samples:
            break
        end = position + header.size + length
        position = end + length % 2
        if length % 2 and not _is_chunk(file, position, size, header) and _is_chunk(file, end, size, header):
            at.append(end)
            position = end
    if not at:
        return None
    data, places = _all(file), [0, *at, size]
    return b"\0".join(data[start:stop] for start, stop in pairwise(places))


def _after(file: BinaryIO, end: int, size: int, layout: Chunks, silence: bool) -> tuple[int, int | None]:
    """What follows the promised samples: (where the samples end in truth, where a second file begins).

    Zeros are padding, unless `silence` says that no samples are promised at all.
    """
    if end >= size:
        return end, None
    header = layout.header
    position = end + -end % layout.align
    file.seek(end)
    if layout.align > 1 and position != end and not _is_chunk(file, position, size, header):
        position = end  # some programs forget to pad
    first = True
    while position + header.size <= size:
        file.seek(position)
        if begins_file(file.read(40)):
            return end, position
        if not _is_chunk(file, position, size, header):
            break
        file.seek(position)
        length = header.unpack(file.read(header.size))[1] - header.size * layout.with_header
        position += header.size + max(0, length) + -length % layout.align
        first = False
    if not first:
        return end, None
    file.seek(end)
    extra = file.read()
    return (_without_tag(file, end, size) if is_sound(extra, silence) else end), None


def _is_chunk(file: BinaryIO, position: int, size: int, header: struct.Struct) -> bool:
    file.seek(position)
    raw = file.read(header.size)
    if len(raw) < header.size:
        return False
    name, length = header.unpack(raw)
    if name[:4] in KNOWN_AFTER_SAMPLES:
        return True
    return all(0x20 <= byte < 0x7F for byte in name[:4]) and length <= size - position


def _without_tag(file: BinaryIO, start: int, size: int) -> int:
    """Where samples end that reach to the file's end, or to the ID3v1 tag there."""
    if size - start >= 128:
        file.seek(size - 128)
        if is_tag(file.read(128)):
            return size - 128
    return size


def _shortfall(promised: int, present: int) -> Finding:
    return Finding(damage=f"truncated: the header promises {promised} bytes of samples, {max(0, present)} are there")


def _counts(promised: int, present: int, unknown: int = STREAMED_SIZE) -> str | None:
    """What to say of two lengths; nothing where the header says by a mark that it does not know."""
    if promised == present or promised >= unknown:
        return None
    said = f"{promised} bytes of samples" if promised else "no length"
    return f"its header gives {said}, the file holds {present} bytes; all of them are used"


def _put_right(file: BinaryIO, beginning: bytes, samples: Samples, present: int, decoded: Decoded | None) -> Finding:
    """The file with the lengths that it has."""
    data = bytearray(_all(file))
    if decoded is not None and decoded.frames * (decoded.frame_bytes or 0) > present:  # what follows is no sound
        del data[samples.start + present :]
    if beginning in (b"RF64", b"BW64") and samples.ds64 is not None:
        data[:4] = b"RF64"
        struct.pack_into("<QQ", data, samples.ds64 + 8, len(data) - 8, present)
        struct.pack_into("<I", data, samples.length_at + 4, LARGEST_RIFF)
    else:
        if beginning in (b"RF64", b"BW64"):
            data[:4] = b"RIFF"
        layout = CHUNKS[beginning]
        own = layout.header.size * layout.with_header
        layout.header.pack_into(data, samples.length_at, layout.samples, present + own)
        if beginning != b"caff":  # it has no length of the whole
            whole = len(data) if layout.with_header else min(len(data) - 8, LARGEST_RIFF)
            layout.header.pack_into(data, 0, bytes(data[: len(layout.samples)]), whole)
    if samples.comm is not None and decoded is not None and decoded.frame_bytes:
        frames = (present - CHUNK_INTRODUCTION[beginning]) // decoded.frame_bytes
        struct.pack_into(">I", data, samples.comm + 10, frames)
    note = _counts(samples.promised, present, CHUNKS[beginning].unknown)
    return Finding(pieces=(bytes(data),), note=note)


def _all(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()

"""mp3: what the frames add up to, against the count in the first of them.

Decoders trust the Xing or Info tag in the first frame, which may belong to one of several joined files; without it
(VBRI's place is taken, but not read by libsndfile) they estimate from the first frames' bit rate.

Sources: ISO 11172-3 and 13818-3 frame headers, the Xing/LAME tag, the VBRI tag (Fraunhofer).
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import NamedTuple

from data.findings import ID3V1_BYTES, WHOLE, Finding, id3v2_bytes

MPEG1_KBPS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
MPEG2_KBPS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
MPEG1_RATES_HZ = (44_100, 48_000, 32_000)
XING_FRAMES, XING_BYTES = 1, 2  # flags: which fields the tag has
VBRI = b"VBRI"
TAG_NAMES = (b"Xing", b"Info", VBRI)
TAG_OFFSETS = (36, 21, 13, 38, 23, 15)  # of a tag in its frame: stereo, mono or MPEG 2, both; then with a checksum
VBRI_OFFSET = 36
XING_KBPS_INDEX = 9  # a frame of this bit rate has room for the tag that we write
GUESSED = 2 * 1152  # samples by which a decoder's estimate may be off
CLEAR_RUN = 3  # so many frames in a row are no chance


class Frame(NamedTuple):
    """Bytes, samples per channel, and what may not change inside a stream: (rate, whether it is mono)."""

    bytes: int
    samples: int
    form: tuple[int, bool]


class Tag(NamedTuple):
    """The tag in a stream's first frame."""

    name: bytes
    at: int
    frames: int | None
    frames_at: int
    bytes: int | None
    bytes_at: int


class Walk(NamedTuple):
    """All frames of a file."""

    start: int
    stop: int
    """Where the last whole frame ends."""
    samples: int
    frames: int
    cut_off: int
    """Bytes that the frame after it would have; 0 where none begins."""
    changes: list[int]
    """Places where the rate or the number of channels changes."""


def mpeg_frame(header: bytes) -> Frame | None:
    """The layer III frame that starts with these four bytes; None: no frame."""
    if len(header) < 4:
        return None
    word = int.from_bytes(header[:4], "big")
    version, layer = word >> 19 & 3, word >> 17 & 3
    kbps_index, rate_index = word >> 12 & 15, word >> 10 & 3
    if word >> 21 != 0x7FF or version == 1 or layer != 1 or kbps_index in (0, 15) or rate_index == 3:
        return None
    mpeg1 = version == 3
    bits_per_s = 1000 * (MPEG1_KBPS if mpeg1 else MPEG2_KBPS)[kbps_index]
    rate_hz = MPEG1_RATES_HZ[rate_index] // {3: 1, 2: 2, 0: 4}[version]
    samples = 1152 if mpeg1 else 576
    return Frame(samples // 8 * bits_per_s // rate_hz + (word >> 9 & 1), samples, (rate_hz, word >> 6 & 3 == 3))


def check_mp3(data: bytes, decoder_frames: int | None) -> Finding:
    start = 0
    while tag_bytes := id3v2_bytes(data[start : start + 10]):
        start += tag_bytes
    first = mpeg_frame(data[start : start + 4])
    if first is None:
        return WHOLE  # junk before the first frame: the decoder looks for it, and is the judge
    tag = _tag_of(data, start)
    if tag is not None and tag.bytes is not None and tag.frames is not None and start + tag.bytes > len(data):
        return Finding(damage=f"truncated: its header promises {tag.bytes} bytes, {len(data) - start} are there")
    walk = _walk(data, start + (first.bytes if tag is not None else 0), first)
    if walk.cut_off and (tag is None or tag.bytes is None or tag.frames is None):
        there = len(data) - walk.stop
        return Finding(damage=f"truncated: its last frame promises {walk.cut_off} bytes, {there} are there")
    understated = tag is not None and tag.frames is not None and walk.frames > tag.frames + 1
    note = None
    if understated or walk.changes:
        starts = sorted({*walk.changes, *_tagged_frames(data, start + first.bytes)})
        if starts:
            bounds = [0, *starts, len(data)]
            note = f"{len(starts) + 1} recordings follow one another in it; all are used"
            return Finding(pieces=tuple(data[a:b] for a, b in pairwise(bounds)), note=note)
        note = f"its header counts {tag.frames} frames, it holds {walk.frames}; all of them are used"
        if tag.name != VBRI:
            return Finding(pieces=(_with_counts(data, tag, start, walk),), note=note)
    counted = tag is not None and tag.frames is not None and tag.name != VBRI
    if counted or decoder_frames is None:
        return WHOLE
    if abs(walk.samples - decoder_frames) <= GUESSED and len(data) - walk.stop <= ID3V1_BYTES:
        return WHOLE
    sound = data[walk.start : walk.stop]
    return Finding(pieces=(data[:start] + _xing_frame(data[start : start + 4], walk) + sound,), note=note)


def _tag_of(data: bytes, frame_at: int) -> Tag | None:
    """The Xing, Info or VBRI tag of the frame there."""
    for offset in TAG_OFFSETS:
        at = frame_at + offset
        name = data[at : at + 4]
        if name in TAG_NAMES[:2] and len(data) >= at + 16:
            flags, one, two = struct.unpack(">III", data[at + 4 : at + 16])
            frames = one if flags & XING_FRAMES else None
            size, size_at = (two, at + 12) if flags & XING_FRAMES else (one, at + 8)
            return Tag(name, at, frames, at + 8, size if flags & XING_BYTES else None, size_at)
        if name == VBRI and offset == VBRI_OFFSET and len(data) >= at + 18:
            size, frames = struct.unpack(">II", data[at + 10 : at + 18])
            return Tag(name, at, frames, at + 14, size, at + 10)
    return None


def _walk(data: bytes, start: int, first: Frame) -> Walk:
    position = stop = start
    samples = frames = 0
    form, changes = first.form, []
    while True:
        frame = mpeg_frame(data[position : position + 4])
        if frame is None:
            position = _next_frame(data, position)
            if position is None:
                return Walk(start, stop, samples, frames, 0, changes)
            continue
        if frame.form != form:
            changes.append(position)
            form = frame.form
        count, position, cut_off = _run(data, position, form)
        samples += count * frame.samples
        frames += count
        stop = position
        if cut_off:
            return Walk(start, stop, samples, frames, cut_off, changes)


def _run(data: bytes, position: int, form: tuple[int, bool]) -> tuple[int, int, int]:
    """Frames of one form that follow one another: how many are whole, where they end, bytes of one that is cut off."""
    lengths: dict[bytes, int] = {}  # header -> bytes of its frame: the inner loop is most of what the check costs
    count, length = 0, 0
    while True:
        while known := lengths.get(data[position : position + 4]):
            length = known
            position += length
            count += 1
        if position > len(data):
            return count - 1, position - length, length
        header = data[position : position + 4]
        frame = mpeg_frame(header)
        if frame is None or frame.form != form:
            return count, position, 0
        lengths[header] = frame.bytes


def _next_frame(data: bytes, position: int) -> int | None:
    """Where frames start again after something else: tags in the middle of joined files, or junk."""
    while True:
        rest = data[position : position + 32]
        if length := id3v2_bytes(rest):
            position += length
        elif rest.startswith(b"TAG"):
            position += ID3V1_BYTES
        elif rest.startswith(b"APETAGEX") and len(rest) == 32:
            position += 32 + int.from_bytes(rest[12:16], "little")
        else:
            break
    at = data.find(b"\xff", position)
    while at >= 0:
        if _is_run(data, at):
            return at
        at = data.find(b"\xff", at + 1)
    return None


def _is_run(data: bytes, position: int) -> bool:
    """Whether several frames of one form follow one another here."""
    form = None
    for _ in range(CLEAR_RUN):
        frame = mpeg_frame(data[position : position + 4])
        if frame is None or form not in (None, frame.form) or position + frame.bytes > len(data):
            return False
        form = frame.form
        position += frame.bytes
    return True


def _tagged_frames(data: bytes, after: int) -> list[int]:
    """Places of the later frames that have a tag: there another file begins."""
    found = []
    for name in TAG_NAMES:
        at = data.find(name, after)
        while at >= 0:
            found += [at - offset for offset in TAG_OFFSETS if _is_tagged(data, at - offset, at)][:1]
            at = data.find(name, at + 4)
    return found


def _is_tagged(data: bytes, frame_at: int, tag_at: int) -> bool:
    tag = _tag_of(data, frame_at)
    return tag is not None and tag.at == tag_at and mpeg_frame(data[frame_at : frame_at + 4]) is not None


def _with_counts(data: bytes, tag: Tag, start: int, walk: Walk) -> bytes:
    """The file with the true counts in its tag."""
    right = bytearray(data)
    struct.pack_into(">I", right, tag.frames_at, walk.frames)
    if tag.bytes is not None:
        struct.pack_into(">I", right, tag.bytes_at, walk.stop - start)
    return bytes(right)


def _xing_frame(header: bytes, walk: Walk) -> bytes:
    """A frame, to stand before the first, that counts them."""
    word = int.from_bytes(header, "big")
    word = word & ~(15 << 12) & ~(1 << 9) | 1 << 16 | XING_KBPS_INDEX << 12  # no padding, no checksum
    header = word.to_bytes(4, "big")
    frame = mpeg_frame(header)
    mono = frame.form[1]
    offset = TAG_OFFSETS[mono] if word >> 19 & 3 == 3 else TAG_OFFSETS[1 + mono]
    size = frame.bytes + walk.stop - walk.start
    content = struct.pack(">4sIII", b"Xing", XING_FRAMES | XING_BYTES, walk.frames, size)
    return (header.ljust(offset, b"\0") + content).ljust(frame.bytes, b"\0")

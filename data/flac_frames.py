"""flac: the number of samples in the header, against the last frame's.

Encoders that write into a pipe leave the number open (0), and a decoder stops where the header says. The last frame
names its own place, so neither has to be believed.

Source: RFC 9639.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data.findings import TAGS, WHOLE, Finding, end_before_tags

MAGIC = b"fLaC"
INFO_HEADER = b"\0\0\0\x22"  # the first block: STREAMINFO of 34 bytes, which another block follows
LAST_INFO_HEADER = b"\x80\0\0\x22"
SECOND_WORDS = sorted(
    {
        int.from_bytes((MAGIC + header)[at : at + 4], "little")
        for header in (INFO_HEADER, LAST_INFO_HEADER)
        for at in range(4)
    }
)
INFO_BYTES = 34
TOTAL_AT = 13  # in STREAMINFO: the low 36 bits of five bytes
TOTAL_BITS = 36
MD5_AT = 18
LARGEST_FRAME = 1 << 18  # bytes that are searched where the header does not say how large frames become
LARGEST_TAIL = 1 << 16  # bytes of tags and padding behind the last frame that are searched as well
FRAME_HEADER_BYTES = 16


def _crc_table(polynomial: int, bits: int) -> tuple[int, ...]:
    top, mask = 1 << bits - 1, (1 << bits) - 1
    table = []
    for byte in range(256):
        crc = byte << bits - 8
        for _ in range(8):
            crc = (crc << 1 ^ (polynomial if crc & top else 0)) & mask
        table.append(crc)
    return tuple(table)


CRC8, CRC16 = _crc_table(0x07, 8), _crc_table(0x8005, 16)


class Info(NamedTuple):
    """STREAMINFO."""

    at: int
    block: int
    """Samples of each block but the last, where that is fixed."""
    largest_frame: int
    total: int
    """Samples per channel; 0: unknown."""


def check_flac(data: bytes, start: int = 0) -> Finding:
    """A native flac file, from `fLaC` at `start`."""
    info = _info(data, start)
    if info is None:
        return WHOLE  # the decoder is the judge
    second = _second_file(data, info.at + INFO_BYTES)
    if second is not None:
        note = f"a second recording begins at byte {second}; both are used, one after the other"
        return Finding(pieces=(data[:second], data[second:]), note=note)
    end = end_before_tags(data)
    frames = _frames_from_the_end(data, info, end)
    if info.total and any(stop == info.total for _, stop in frames):
        return WHOLE
    return _last_frame_decides(data, info, end, frames)


def _last_frame_decides(data: bytes, info: Info, end: int, frames: list[tuple[int, int]]) -> Finding:
    """No frame near the end is the last one of the header's count: is there a later one, whole up to the file's end?"""
    later = [(at, stop) for at, stop in frames if stop > info.total]
    for at, stop in later:
        ends = {end, *(found for tag in TAGS if (found := data.find(tag, at)) >= 0)}
        if any(_crc16(data[at:end]) == 0 for end in ends):  # padding with zeros leaves it 0
            note = f"its header counts {info.total} samples, it holds {stop}; all of them are used"
            return Finding(pieces=(_with_total(data, info, stop),), note=note if info.total else None)
    if not info.total:
        return Finding(damage="truncated: its header gives no length, and its last frame is not whole")
    if later:
        return Finding(damage="truncated: it holds more frames than its header counts, and the last is not whole")
    return WHOLE  # fewer than promised: the decoder reports it


def _with_total(data: bytes, info: Info, total: int) -> bytes:
    right = bytearray(data)
    at = info.at + TOTAL_AT
    field = int.from_bytes(data[at : at + 5], "big")
    right[at : at + 5] = (field - info.total + total).to_bytes(5, "big")
    right[info.at + MD5_AT : info.at + INFO_BYTES] = bytes(INFO_BYTES - MD5_AT)  # of other samples, or none
    return bytes(right)


def _info(data: bytes, start: int) -> Info | None:
    at = start + 8
    block = data[at : at + INFO_BYTES]
    if data[start : start + 4] != MAGIC or len(block) < INFO_BYTES or data[start + 4] & 0x7F != 0:
        return None
    field = int.from_bytes(block[TOTAL_AT : TOTAL_AT + 5], "big")
    largest, size = int.from_bytes(block[7:10], "big"), int.from_bytes(block[2:4], "big")
    return Info(at, size, largest, field & ((1 << TOTAL_BITS) - 1))


def _second_file(data: bytes, after: int) -> int | None:
    """Where another flac file begins.

    Wherever that is, an aligned word of four bytes lies inside its first seven; to compare words takes a fifth of the
    time of `bytes.find`, which would be a noticeable part of decoding.
    """
    after += -after % 4
    words = np.frombuffer(data, "<u4", max(0, len(data) - after) // 4, min(after, len(data)))
    if not any((words == word).any() for word in SECOND_WORDS):
        return None
    found = [data.find(MAGIC + header, after) for header in (INFO_HEADER, LAST_INFO_HEADER)]
    return min((at for at in found if at >= 0), default=None)


def _frames_from_the_end(data: bytes, info: Info, end: int) -> list[tuple[int, int]]:
    """What may be headers of the last frames, the last first: (place, number of the sample after the frame)."""
    lowest = max(info.at + INFO_BYTES, end - 2 * (info.largest_frame or LARGEST_FRAME) - LARGEST_TAIL)
    found = []
    at = data.rfind(b"\xff", lowest, end)
    while at >= 0:
        if data[at + 1 : at + 2] in (b"\xf8", b"\xf9"):
            stop = _frame_stop(data[at : at + FRAME_HEADER_BYTES], info)
            if stop is not None:
                found.append((at, stop))
                if stop == info.total:
                    break
        at = data.rfind(b"\xff", lowest, at)
    return found


def _frame_stop(header: bytes, info: Info) -> int | None:
    """The number of the sample after a frame that begins so; None: its checksum says that none does."""
    if len(header) < FRAME_HEADER_BYTES - 6:
        return None
    first = header[4]
    extra = 0 if first < 0x80 else next((n for n in range(1, 7) if not first & 0x40 >> n), None)
    if extra is None or 0x80 <= first < 0xC0:
        return None
    number = first & (0x7F if extra == 0 else 0x3F >> extra)
    for byte in header[5 : 5 + extra]:
        number = number << 6 | byte & 0x3F
    position = 5 + extra
    code, rate = header[2] >> 4, header[2] & 15
    if code in (6, 7):
        size = int.from_bytes(header[position : position + code - 5], "big") + 1
        position += code - 5
    elif code == 0 or rate == 15:
        return None
    else:
        size = 192 if code == 1 else 576 << code - 2 if code < 6 else 256 << code - 8
    position += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if len(header) <= position:
        return None
    crc = 0
    for byte in header[: position + 1]:
        crc = CRC8[crc ^ byte]
    if crc != 0:  # the checksum included
        return None
    return (number if header[1] & 1 else number * info.block) + size


def _crc16(frame: bytes) -> int:
    crc = 0
    for byte in frame:
        crc = (crc << 8 & 0xFFFF) ^ CRC16[crc >> 8 ^ byte]
    return crc

"""What the check of an audio file found: damage, or another form of the same bytes that decodes whole."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

ID3V1_BYTES = 128
APE_BYTES = 32  # of an APE tag's footer, and of its header
TAGS = (b"APETAGEX", b"ID3", b"LYRICSBEGIN", b"TAG")
"""How tags begin that players write behind the sound."""
LONGEST_PADDING = 256
"""Bytes after the samples that are never sound: a few milliseconds, whatever they are."""


@dataclass(frozen=True)
class Finding:
    """Nothing (the file is as its header says), `damage`, or `pieces`."""

    damage: str | None = None
    """What is cut off or missing, in one clause: the clip cannot be used."""
    pieces: tuple[bytes, ...] = ()
    """Decode these, one after another, in place of the file: parts of it, or the file with its header put right."""
    note: str | None = None
    """Why, in one clause, where the user should know."""
    content: bytes | None = None
    """The whole file, where the check has read it and the decoder would read it again."""


class Decoded(NamedTuple):
    """What the decoder believes about the file."""

    frames: int
    """Samples per channel."""
    frame_bytes: int | None
    """Bytes of a sample of all channels; None where samples are compressed."""


WHOLE = Finding()


def is_tag(data: bytes) -> bool:
    """Whether these bytes, up to the file's end, begin with a tag that players write after the sound."""
    return data.startswith(TAGS[:3]) or (data.startswith(b"TAG") and len(data) <= ID3V1_BYTES + 1)


def end_before_tags(data: bytes) -> int:
    """Where the sound ends: before the ID3v1, Lyrics3 and APE tags at the file's end."""
    end = len(data)
    if end >= ID3V1_BYTES and data[end - ID3V1_BYTES : end - ID3V1_BYTES + 3] == b"TAG":
        end -= ID3V1_BYTES
    if data[:end].endswith(b"LYRICS200") and data[end - 15 : end - 9].isdigit():
        end -= 15 + int(data[end - 15 : end - 9])
    footer = data[max(0, end - APE_BYTES) : end]
    if footer.startswith(b"APETAGEX") and len(footer) == APE_BYTES:
        size, _, flags = struct.unpack("<III", footer[12:24])
        end -= size + (APE_BYTES if flags >> 31 else 0)
    return max(0, end)


def id3v2_bytes(head: bytes) -> int:
    """The length of the ID3v2 tag that begins here; 0 where there is none."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    return 10 + size + (10 if head[5] & 0x10 else 0)  # 0x10: a footer follows


def is_sound(extra: bytes, silence: bool = False) -> bool:
    """Whether bytes that follow the samples, and are no chunk, are more samples: not padding, a tag or text.

    Zeros alone are padding; with `silence`, silence.
    """
    if len(extra) < LONGEST_PADDING or is_tag(extra) or not (silence or extra.strip(b"\0")):
        return False
    start = extra[:LONGEST_PADDING]
    return not all(byte in b"\t\r\n" or 0x20 <= byte < 0x7F for byte in start)

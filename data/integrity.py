"""Does an audio file contain what its header says: not less, and not more?

Decoders are tolerant: libsndfile silently shortens a cut wav or a damaged ogg, stops where a header that was never
finished says so, and reads the first of two files that stand one after the other. Training on such a clip pairs a whole
text with a part of its audio. The checks read headers and checksums, never the samples, so they cost microseconds. What
is cut off is refused; where more is there than the header says, the decoder gets a copy whose header is right.

A container each: `chunks`, `ogg_pages`, `mpeg_frames`, `flac_frames`, `sphere`.
"""

from __future__ import annotations

import os
from typing import BinaryIO

from data import sphere
from data.chunks import beginning_of, check_au, check_chunks
from data.findings import WHOLE, Decoded, Finding, id3v2_bytes
from data.flac_frames import MAGIC, check_flac
from data.mpeg_frames import check_mp3, mpeg_frame
from data.ogg_pages import check_ogg

HEAD_BYTES = 4096


def inspect(file: BinaryIO, decoded: Decoded | None = None) -> Finding:
    """What is wrong with a file that is open for reading in binary; `data.findings.WHOLE` if nothing is.

    `decoded` is what the decoder believes; None where it could not open the file. Unknown containers pass: their
    decoder is the judge.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if beginning_of(head) is not None:
        return check_chunks(file, head, size, decoded)
    if head[:4] == b".snd":
        return check_au(file, head, size, decoded)
    if head.startswith(sphere.MAGIC):
        return sphere.check_sphere(head, size)
    if head[:4] not in (b"OggS", MAGIC) and head[:3] != b"ID3" and mpeg_frame(head[:4]) is None:
        return WHOLE
    file.seek(0)
    data = file.read(size)
    if head[:4] == b"OggS":
        return check_ogg(data)
    start = id3v2_bytes(head)
    if data[start : start + 4] == MAGIC:
        finding = check_flac(data, start)
        return Finding(content=data) if finding is WHOLE else finding
    return check_mp3(data, decoded and decoded.frames)

"""Ogg (Vorbis, Opus, FLAC): every page whole, in order and true to its checksum; streams that follow one another.

A decoder passes over a page that is missing or damaged, and reads the first of several chained streams alone.

Sources: Ogg (RFC 3533), Ogg FLAC mapping (xiph.org).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import NamedTuple

from data.findings import WHOLE, Finding

HEADER_BYTES = 27
FIRST_PAGE, LAST_PAGE = 0x02, 0x04  # flags of the pages that begin and end a stream
CONTINUED = 255  # a lacing value: the packet continues
FULL_PAGE_BYTES = 4096  # libogg closes a page with the packet that takes it past this
MOST_SEGMENTS = 255
NO_MARK = "its last page is not marked as the end of the recording, which may have been cut there"
OPUS_HEAD = b"OpusHead"
OPUS_HZ = 48_000  # of its positions, whatever the rate
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
OGG_FLAC = b"\x7fFLAC"
OGG_FLAC_HEADER_BYTES = 9  # before `fLaC`: this name, a version, the number of header packets


class Page(NamedTuple):
    start: int
    stop: int
    flags: int
    segments: bytes

    @property
    def body(self) -> int:
        return self.start + HEADER_BYTES + len(self.segments)


@dataclass
class Link:
    """A stream, or several side by side, from its first page to its last."""

    first: Page
    last: Page
    before_last: Page
    begun: bool = False
    """Whether a page has come that begins no stream."""


def check_ogg(data: bytes) -> Finding:
    links: list[Link] = []
    following: dict[bytes, int] = {}  # stream -> number of its next page
    position = 0
    while position < len(data):
        page = _page_at(data, position)
        if page is None:
            ended = bool(links) and bool(links[-1].last.flags & LAST_PAGE)
            further = data.find(b"OggS\0\2", position) if ended else -1
            if further < 0:
                if ended or data[position : position + 3] == b"TAG":
                    break  # a tag after the end
                return Finding(damage=f"damaged: there is no Ogg page at byte {position}")
            position = further
            continue
        if isinstance(page, str):
            return Finding(damage=page)
        whole = data[page.start : page.stop]
        if checksum(whole) != whole[22:26]:
            return Finding(damage=f"damaged: the Ogg page at byte {position} does not fit its checksum")
        if page.flags & FIRST_PAGE and (not links or links[-1].begun):
            links.append(Link(page, page, page))
            following = {}
        stream, number = whole[14:18], int.from_bytes(whole[18:22], "little")
        if following.get(stream, number) != number:
            return Finding(damage=f"damaged: page {following[stream]} of its Ogg stream is missing")
        following[stream] = number + 1
        if not links:
            links.append(Link(page, page, page))
        links[-1].begun = links[-1].begun or not page.flags & FIRST_PAGE
        links[-1].before_last, links[-1].last = links[-1].last, page
        position = page.stop
    return _judge(data, links)


def checksum(page: bytes) -> bytes:
    """The page's checksum as its header has it, computed with zeros in its place.

    It is zlib's CRC-32 with the bits of every byte, and of the result, in reverse, and without zlib's inversions.
    """
    zeroed = page[:22] + bytes(4) + page[26:]
    crc = zlib.crc32(zeroed.translate(REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2).to_bytes(4, "little")


def _page_at(data: bytes, position: int) -> Page | str | None:
    """The page there; a sentence where it is cut off, None where no page begins."""
    header = data[position : position + HEADER_BYTES]
    if header[:5] != b"OggS\0"[: len(header)]:
        return None
    segments = data[position + HEADER_BYTES : position + HEADER_BYTES + (header[26:27] or b"\0")[0]]
    if len(header) < HEADER_BYTES or len(segments) < header[26]:
        return "truncated inside the header of its last page"
    promised = HEADER_BYTES + len(segments) + sum(segments)
    if position + promised > len(data):
        return f"truncated: its last page promises {promised} bytes, {len(data) - position} are there"
    return Page(position, position + promised, header[5], segments)


def _judge(data: bytes, links: list[Link]) -> Finding:
    for link in links:
        if not link.last.flags & LAST_PAGE and _is_cut_after(link.last):
            return Finding(damage="truncated: its last page is not marked as the end of the stream")
    if len(links) > 1:
        starts = [link.first.start for link in links]
        pieces = tuple(data[start:stop] for start, stop in zip(starts, [*starts[1:], len(data)], strict=True))
        return Finding(
            pieces=pieces, note=f"{len(links)} recordings follow one another in it (a chained stream); all are used"
        )
    if not links:
        return WHOLE
    flac = _as_flac(data, links[0])
    if flac is not None:
        return Finding(pieces=(flac,))
    if links[0].last.flags & LAST_PAGE:  # libsndfile refuses Opus with anything behind it
        return WHOLE if links[0].last.stop == len(data) else Finding(pieces=(data[: links[0].last.stop],))
    last = links[0].last  # libsndfile opens no Opus without the mark
    note = None if _is_trimmed(data, links[0]) else NO_MARK
    return Finding(pieces=(_with_page(data, last, 5, bytes([last.flags | LAST_PAGE]))[: last.stop],), note=note)


def _is_cut_after(page: Page) -> bool:
    """Whether more came after a page without the mark of the end.

    Recorders that are stopped, and some that are not, never set the mark. But where a packet continues, or the writer
    filled pages up to a size and this one is full, the stream was cut between two pages.
    """
    segments = page.segments
    if not segments or segments[-1] == CONTINUED:
        return bool(segments)
    last_packet = segments[-1]
    for size in reversed(segments[:-1]):
        if size != CONTINUED:
            break
        last_packet += size
    body = sum(segments)
    return len(segments) == MOST_SEGMENTS or body - last_packet <= FULL_PAGE_BYTES < body


def _is_trimmed(data: bytes, link: Link) -> bool:
    """Whether an Opus stream ends inside its last packet, as only the last page of a recording does."""
    if data[link.first.body : link.first.body + len(OPUS_HEAD)] != OPUS_HEAD or link.last is link.first:
        return False
    page = link.last
    before = _position(data, link.before_last)
    samples, at, begins = 0, page.body, True
    for size in page.segments:
        if begins and size:
            samples += opus_samples(data[at : at + 2])
        at += size
        begins = size != CONTINUED
    return 0 < _position(data, page) - before < samples


def opus_samples(packet: bytes) -> int:
    """Samples at 48 kHz of an Opus packet that begins with these two bytes (RFC 6716, section 3.1)."""
    config, code = packet[0] >> 3, packet[0] & 3
    if config < 12:
        frame_ms = (10, 20, 40, 60)[config & 3]
    elif config < 16:
        frame_ms = (10, 20)[config & 1]
    else:
        frame_ms = (2.5, 5, 10, 20)[config & 3]
    frames = (packet[1] & 63 if len(packet) > 1 else 0) if code == 3 else min(code + 1, 2)
    return int(frames * frame_ms * OPUS_HZ / 1000)


def _position(data: bytes, page: Page) -> int:
    """The position of the last sample that ends on a page, in its stream."""
    return int.from_bytes(data[page.start + 6 : page.start + 14], "little", signed=True)


def _as_flac(data: bytes, link: Link) -> bytes | None:
    """The flac file that the pages of an Ogg FLAC stream hold; None for other streams.

    Not every libsndfile reads Ogg FLAC. Its header's number of samples is checked like that of any flac file.
    """
    first = link.first
    if data[first.body : first.body + len(OGG_FLAC)] != OGG_FLAC:
        return None
    bodies, position = [data[first.body + OGG_FLAC_HEADER_BYTES : first.stop]], first.stop
    while position < link.last.stop:
        page = _page_at(data, position)
        bodies.append(data[page.body : page.stop])
        position = page.stop
    return b"".join(bodies)


def _with_page(data: bytes, page: Page, at: int, content: bytes) -> bytes:
    """The file with other content at a place of a page, and its checksum."""
    changed = bytearray(data[page.start : page.stop])
    changed[at : at + len(content)] = content
    changed[22:26] = checksum(bytes(changed))
    return data[: page.start] + bytes(changed) + data[page.stop :]

"""A made-up vocabulary of byte-pair encoding as large as Whisper's."""

from __future__ import annotations

from itertools import product

WORDS = (" the", " cat", " naïve", " transcription")


def byte_pieces(count: int, *, empty_last: bool = False) -> list[bytes]:
    """256 bytes, each word letter by letter from its start, then pairs of bytes; the multilingual one ends in b""."""
    pieces = [bytes([value]) for value in range(256)]
    pieces += [raw[:length] for raw in map(str.encode, WORDS) for length in range(2, len(raw) + 1)]
    pieces = list(dict.fromkeys(pieces))
    known = set(pieces)
    pairs = (bytes(pair) for pair in product(range(256), repeat=2))
    pieces += [pair for pair in pairs if pair not in known]
    return pieces[: count - empty_last] + [b""] * empty_last


def merges_of(pieces: list[bytes]) -> list[tuple[bytes, bytes]]:
    """The merges behind them: a word is one letter more than the piece before, a pair is two bytes."""
    return [(piece[:-1], piece[-1:]) for piece in pieces if len(piece) > 1]

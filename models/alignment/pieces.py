"""The pieces that transcripts are spelled in for alignment: entries of the language model's own vocabulary.

A language model's tokenizer splits a text into few, long pieces. From a few hours of speech most of them are met once
or twice, and a connector cannot learn them; every word that training lacks would be lost too. So a piece is used only
where it is met often enough, and what is left is spelled in shorter ones, down to single bytes (the idea of small
subword vocabularies for CTC, as in Kudo 2018, section 3.2, but chosen from a vocabulary that is given). Each piece is a
row of the embedding table, so the language model knows every one of them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from support.command_line import UserError

WORD = re.compile(r"\S+")
BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SENTENCEPIECE_SPACE = "\u2581"
NAMED = 8  # ids, in an error


class PiecesError(UserError):
    """Transcripts cannot be spelled in pieces of this vocabulary."""


class Pieces:
    """Some entries of a tokenizer's vocabulary, and how a text is spelled in them.

    `ids` are the entries' ids in the language model; a spelling is a list of positions in `ids`. The spelling of a word
    has as few pieces as possible; of several such spellings the one whose pieces have the lowest ids (in a vocabulary
    that was learned by merging: the most frequent ones) is taken. It depends on `ids` alone, so it is the same wherever
    these are stored.
    """

    def __init__(self, ids: Sequence[int], spellings: Mapping[int, bytes]) -> None:
        self.ids = list(ids)
        self.spellings = [spellings[id] for id in self.ids]
        self._ranks: dict[bytes, tuple[float, int]] = {}
        for position, (id, spelling) in enumerate(zip(self.ids, self.spellings, strict=True)):
            self._ranks[spelling] = min((math.log(id + 2), position), self._ranks.get(spelling, (math.inf, 0)))
        self._longest = max(map(len, self.spellings), default=0)
        self._spelled: dict[bytes, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], rows: int) -> Pieces:
        """The pieces with these ids, of a language model whose embedding table has so many rows.

        Raises:
            PiecesError: the vocabulary has no text, or the table no row, for an id; it is another language model's.
        """
        spellings = piece_bytes(tokenizer)
        unknown = [id for id in ids if id not in spellings or id >= rows]
        if unknown:
            shown = ", ".join(map(str, unknown[:NAMED])) + (" …" if len(unknown) > NAMED else "")
            raise PiecesError(
                f"alignment pieces: the language model has no text, or no embedding, for the ids {shown}; the adapter "
                "was aligned to another one: set model.llama_path to that one, or align anew"
            )
        return cls(ids, spellings)

    @classmethod
    def from_texts(cls, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], min_count: int) -> Pieces:
        """Pieces that are met at least `min_count` times in these texts, and every byte that the vocabulary has.

        Rare pieces are left out in rounds, the rarer half first, since the words that they leave behind make others
        more frequent. A character that words have, also with a space before it, is kept however rare it is.

        Raises:
            PiecesError: a text cannot be spelled: the vocabulary has neither a character nor its bytes.
        """
        words = Counter(word for text in texts for word in words_of(text))
        spellings = piece_bytes(tokenizer)
        longest = max(map(len, spellings.values()), default=0)
        fragments = {word[start:end] for word in words for start, end in _spans(len(word), longest)}
        kept = {id for id, spelling in spellings.items() if spelling in fragments or len(spelling) == 1}
        needed = {id for id in kept if _is_single(spellings[id])}
        spelled: dict[bytes, tuple[int, ...]] = {}  # in ids
        while True:
            pieces = cls(sorted(kept), spellings)
            for word in words:
                if word not in spelled or not kept.issuperset(spelled[word]):  # a piece of it was left out
                    spelled[word] = tuple(pieces.ids[position] for position in pieces._spell_word(word))
            counts: Counter[int] = Counter()
            for word, count in words.items():
                for id in spelled[word]:
                    counts[id] += count
            rare = sorted((id for id in kept - needed if counts[id] < min_count), key=lambda id: (counts[id], -id))
            if not rare:
                return pieces
            unused = sum(counts[id] == 0 for id in rare)
            kept -= set(rare[: max(unused, (len(rare) + 1) // 2)])

    def spell(self, text: str) -> list[int]:
        """A text as positions in `ids`.

        Raises:
            PiecesError: it has a character that no piece spells.
        """
        return [position for word in words_of(text) for position in self._spell_word(word)]

    def text(self, positions: Iterable[int]) -> str:
        """The text of a spelling; bytes that are no character become U+FFFD."""
        return b"".join(self.spellings[position] for position in positions).decode("utf-8", "replace").strip()

    def _spell_word(self, word: bytes) -> tuple[int, ...]:
        if word not in self._spelled:
            self._spelled[word] = self._cheapest(word)
        return self._spelled[word]

    def _cheapest(self, word: bytes) -> tuple[int, ...]:
        """The fewest pieces, and of equally many the lowest ranks: dynamic programming over the word's ends."""
        start_of_all = (0, 0.0, 0, -1)
        best: list[tuple[int, float, int, int] | None] = [start_of_all] + [None] * len(
            word
        )  # count, ranks, start, last
        for end in range(1, len(word) + 1):
            for start in range(max(0, end - self._longest), end):
                found, before = self._ranks.get(word[start:end]), best[start]
                if found is None or before is None:
                    continue
                candidate = (before[0] + 1, before[1] + found[0], start, found[1])
                if best[end] is None or candidate < best[end]:
                    best[end] = candidate
        if best[-1] is None:
            raise PiecesError(
                f"alignment pieces: {word.decode('utf-8', 'replace').strip()!r} cannot be spelled: the vocabulary has "
                "neither its characters nor their bytes; remove these characters from the texts"
            )
        spelled: list[int] = []
        end = len(word)
        while end:
            _, _, end, position = best[end]
            spelled.append(position)
        return tuple(reversed(spelled))


def words_of(text: str) -> list[bytes]:
    """The words of a text, each with a space before it, as bytes."""
    return [f" {word}".encode() for word in WORD.findall(text)]


def piece_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """The bytes that entries of a vocabulary stand for, without special tokens, and one entry for the same bytes.

    Byte-level vocabularies (GPT-2's) write a byte as a printable character; SentencePiece's mark a space and write
    single bytes as `<0x41>`, for texts without a better entry: where there is an `A`, that one is taken.
    """
    vocabulary = tokenizer.get_vocab()
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    tokens = {id: token for token, id in vocabulary.items() if id not in special}
    byte_level = not any(SENTENCEPIECE_SPACE in token for token in tokens.values())
    own: dict[bytes, int] = {}
    fallbacks: dict[bytes, int] = {}
    for id, token in sorted(tokens.items()):
        fallback = BYTE_FALLBACK.fullmatch(token)
        if fallback:
            fallbacks[bytes([int(fallback[1], 16)])] = id
        elif not byte_level:
            own.setdefault(token.replace(SENTENCEPIECE_SPACE, " ").encode(), id)
        elif all(character in byte_of for character in token):
            own.setdefault(bytes(byte_of[character] for character in token), id)
    return {id: spelling for spelling, id in (fallbacks | own).items() if spelling}


def _spans(length: int, longest: int) -> Iterable[tuple[int, int]]:
    return ((start, end) for start in range(length) for end in range(start + 1, min(length, start + longest) + 1))


def _is_single(spelling: bytes) -> bool:
    """A byte, or a character with or without a space before it: what every word can be spelled in."""
    if len(spelling) == 1:
        return True
    try:
        return len(spelling.decode().removeprefix(" ")) == 1
    except UnicodeDecodeError:
        return False

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
RANK_WEIGHT = 1e-3  # of the ties between spellings with equally many pieces
ROUNDS = 24  # of leaving out rare pieces; each re-spells every word


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
        self._costs: dict[bytes, tuple[float, int]] = {}
        for position, (id, spelling) in enumerate(zip(self.ids, self.spellings, strict=True)):
            cost = 1 + RANK_WEIGHT * math.log(id + 2)
            if spelling not in self._costs or cost < self._costs[spelling][0]:
                self._costs[spelling] = (cost, position)
        self._longest = max(map(len, self.spellings), default=0)
        self._spelled: dict[bytes, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> Pieces:
        """The pieces with these ids.

        Raises:
            PiecesError: the vocabulary has no text for an id; it is another tokenizer's.
        """
        spellings = piece_bytes(tokenizer)
        unknown = [id for id in ids if id not in spellings]
        if unknown:
            raise PiecesError(
                f"alignment pieces: the tokenizer has no text for the ids {unknown[:8]}; the adapter was aligned to "
                "another language model: set model.llama_path to that one, or align anew"
            )
        return cls(ids, spellings)

    @classmethod
    def from_texts(cls, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], min_count: int) -> Pieces:
        """Pieces that are met at least `min_count` times in these texts, and every byte that the vocabulary has.

        Rare pieces are left out in rounds, the rarer half first, since the words that they leave behind make others
        more frequent.

        Raises:
            PiecesError: a text cannot be spelled: the vocabulary has neither a character nor its bytes.
        """
        words = Counter(word for text in texts for word in words_of(text))
        spellings = piece_bytes(tokenizer)
        longest = max(map(len, spellings.values()), default=0)
        fragments = {word[start:end] for word in words for start, end in _spans(len(word), longest)}
        kept = {id for id, spelling in spellings.items() if spelling in fragments or len(spelling) == 1}
        needed = {id for id in kept if _is_single(spellings[id])}
        for round in range(ROUNDS):
            pieces = cls(sorted(kept), spellings)
            counts: Counter[int] = Counter()
            for word, count in words.items():
                for position in pieces._spell_word(word):
                    counts[pieces.ids[position]] += count
            rare = sorted((id for id in kept - needed if counts[id] < min_count), key=lambda id: (counts[id], -id))
            if not rare:
                break
            unused = sum(counts[id] == 0 for id in rare)
            last = round == ROUNDS - 1
            kept -= set(rare if last else rare[: max(unused, (len(rare) + 1) // 2)])
        pieces = cls(sorted(kept), spellings)
        for word in words:
            pieces._spell_word(word)
        return pieces

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
        """The spelling of the lowest cost, by dynamic programming over the word's ends."""
        best: list[tuple[float, int, int] | None] = [(0.0, 0, -1)] + [None] * len(word)  # cost, start, position
        for end in range(1, len(word) + 1):
            for start in range(max(0, end - self._longest), end):
                found = self._costs.get(word[start:end])
                if found is None or best[start] is None:
                    continue
                cost = best[start][0] + found[0]
                if best[end] is None or cost < best[end][0]:
                    best[end] = (cost, start, found[1])
        if best[-1] is None:
            raise PiecesError(
                f"alignment pieces: {word.decode('utf-8', 'replace').strip()!r} cannot be spelled: the vocabulary has "
                "neither its characters nor their bytes; remove these characters from the texts"
            )
        spelled: list[int] = []
        end = len(word)
        while end:
            _, end, position = best[end]
            spelled.append(position)
        return tuple(reversed(spelled))


def words_of(text: str) -> list[bytes]:
    """The words of a text, each with a space before it, as bytes."""
    return [f" {word}".encode() for word in WORD.findall(text)]


def piece_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """The bytes that each entry of a vocabulary stands for, without special tokens.

    Byte-level vocabularies (GPT-2's) write a byte as a printable character; SentencePiece's mark a space and write
    single bytes as `<0x41>`.
    """
    vocabulary = tokenizer.get_vocab()
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    byte_level = not any(SENTENCEPIECE_SPACE in token for token in vocabulary)
    found: dict[int, bytes] = {}
    for token, id in vocabulary.items():
        if id in special:
            continue
        fallback = BYTE_FALLBACK.fullmatch(token)
        if fallback:
            found[id] = bytes([int(fallback[1], 16)])
        elif not byte_level:
            found[id] = token.replace(SENTENCEPIECE_SPACE, " ").encode()
        elif all(character in byte_of for character in token):
            found[id] = bytes(byte_of[character] for character in token)
    return {id: spelling for id, spelling in found.items() if spelling}


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

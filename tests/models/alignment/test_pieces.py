"""Pieces: which entries of a vocabulary are chosen, how texts are spelled in them, and which vocabularies are read."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from models.alignment.pieces import Pieces, PiecesError, piece_bytes
from tests import tiny

ROWS = 100_000
SPECIAL = ("<unk>", "<s>", "</s>")
TEXTS = ["one two three", "naïve café", "你好 世界", "Ωmega 🐟 fish"]


def fast(tokens: list[str], *, byte_level: bool, added: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer with these entries in this order, after the special ones; its merges are not looked at."""
    vocabulary = {token: id for id, token in enumerate((*SPECIAL, *tokens))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=not byte_level))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel() if byte_level else pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.ByteLevel() if byte_level else decoders.Metaspace()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken(token, special=False) for token in added])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def byte_level(*pieces: str, **options) -> PreTrainedTokenizerFast:
    """All bytes, then these."""
    written = bytes_to_unicode()
    single = [written[value] for value in range(256)]
    longer = ["".join(written[value] for value in piece.encode()) for piece in pieces]
    return fast([*single, *longer], byte_level=True, **options)


def sentencepiece(*pieces: str, fallback: bool = True, **options) -> PreTrainedTokenizerFast:
    """`<0x00>` to `<0xFF>`, then these."""
    single = [f"<0x{value:02X}>" for value in range(256)] if fallback else []
    return fast([*single, *(piece.replace(" ", "▁") for piece in pieces)], byte_level=False, **options)


def chosen(tokenizer, texts, min_count=1) -> Pieces:
    return Pieces.from_texts(tokenizer, texts, min_count)


def spelled(pieces: Pieces, text: str) -> list[str]:
    return [pieces.spellings[position].decode("utf-8", "replace") for position in pieces.spell(text)]


@pytest.mark.parametrize("kind", ["byte level", "trained", "sentencepiece", "without bytes"])
def test_texts_come_back(kind, tmp_path):
    characters = sorted({*"".join(TEXTS)} - {" "})
    if kind == "trained":
        tiny.write_tokenizer(tmp_path)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    elif kind == "byte level":
        tokenizer = byte_level(" one", " two", "é", "世界")
    else:
        tokenizer = sentencepiece(" one", " ", *characters, fallback=kind == "sentencepiece")
    pieces = chosen(tokenizer, TEXTS)
    for text in TEXTS:
        assert pieces.text(pieces.spell(text)) == text
    assert pieces.text(pieces.spell("  one \n two ")) == "one two"
    assert pieces.spell("") == [] and pieces.text([]) == ""
    again = Pieces.of(tokenizer, pieces.ids, ROWS)
    assert [again.spell(text) for text in TEXTS] == [pieces.spell(text) for text in TEXTS]


def test_the_language_model_reads_what_is_spelled(tmp_path):
    """The ids of a spelling decode to the text by the tokenizer itself."""
    tiny.write_tokenizer(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    pieces = chosen(tokenizer, TEXTS)
    for text in TEXTS:
        assert tokenizer.decode([pieces.ids[position] for position in pieces.spell(text)]).strip() == text


def test_which_pieces_are_chosen():
    tokenizer = byte_level(" red", " green", " re", "en", "unused", "gre")
    texts = ["red"] * 5 + ["green"] * 2
    often = chosen(tokenizer, texts, 3)
    longer = [piece.decode() for piece in often.spellings if len(piece) > 1]
    assert longer == [" red"]  # " re" and "en" are met less often than three times once the two greens are spelled
    assert len(often) == 256 + 1  # every byte stays: any text can be spelled
    assert [piece.decode() for piece in chosen(tokenizer, texts, 2).spellings if len(piece) > 1] == [" red", " green"]
    assert len(chosen(tokenizer, texts, 100)) == 256


def test_a_rare_piece_is_spelled_in_shorter_ones():
    tokenizer = byte_level(" greenish", " green", "ish", " gr", "een")
    texts = ["greenish", *["green"] * 9, *["fish"] * 9]
    assert spelled(chosen(tokenizer, texts, 1), "greenish") == [" greenish"]
    assert spelled(chosen(tokenizer, texts, 2), "greenish") == [" green", "ish"]


@pytest.mark.parametrize("min_count", [1, 2, 5, 17])
def test_every_longer_piece_is_met_often_enough(min_count):
    generator = random.Random(3)
    words = ["".join(generator.choices("abcd", k=generator.randint(1, 9))) for _ in range(60)]
    fragments = sorted({f" {word}"[start:end] for word in words for start in range(9) for end in range(start + 2, 10)})
    tokenizer = byte_level(*generator.sample([piece for piece in fragments if len(piece) > 1], 400))
    texts = [" ".join(generator.choices(words, weights=range(1, 61), k=12)) for _ in range(80)]
    pieces = chosen(tokenizer, texts, min_count)
    counts = [0] * len(pieces)
    for position in itertools.chain.from_iterable(map(pieces.spell, texts)):
        counts[position] += 1
    longer = [count for count, piece in zip(counts, pieces.spellings, strict=True) if len(piece.lstrip()) > 1]
    assert longer and min(longer) >= min_count
    shuffled = generator.sample(texts, len(texts))
    assert chosen(tokenizer, shuffled, min_count).ids == pieces.ids


def test_a_spelling_has_the_fewest_pieces_however_long_the_word():
    """Rank only decides between equally many: 300 bytes of low ids do not win against 150 pairs of high ones."""
    many = [chr(0x4E00 + index) for index in range(2000)]  # puts the pairs' ids far behind those of the bytes
    pieces = chosen(byte_level(*many, "ab"), ["ab" * 150])
    assert spelled(pieces, "ab" * 150) == [" ", *["ab"] * 150]


def test_of_equally_many_pieces_the_lowest_ids_are_taken():
    """All splits of a word, compared with what is taken."""
    listed = ["ab", " a", "bc", " ab", "cab", "bca", " abc"]
    for order in itertools.islice(itertools.permutations(listed), 0, 5040, 97):
        pieces = chosen(byte_level(*order), ["abcab abca bcab"] * 3)
        id_of = dict(zip(pieces.spellings, pieces.ids, strict=True))
        for word in ("abcab", "abca", "bcab", "cabcab"):
            taken = [pieces.ids[position] for position in pieces.spell(word)]
            splits = list(all_splits(f" {word}".encode(), id_of))
            fewest = min(map(len, splits))
            products = [product_of(split) for split in splits if len(split) == fewest]
            assert len(taken) == fewest and product_of(taken) == min(products)


def all_splits(word: bytes, id_of: dict[bytes, int]):
    if not word:
        yield []
    for end in range(1, len(word) + 1):
        if word[:end] in id_of:
            yield from ([id_of[word[:end]], *rest] for rest in all_splits(word[end:], id_of))


def product_of(ids: list[int]) -> int:
    result = 1
    for id in ids:
        result *= id + 2
    return result


def test_a_letter_is_its_own_entry_and_not_a_byte():
    """SentencePiece's vocabularies have both, the byte's first; the tokenizer itself never takes it for a letter."""
    tokenizer = sentencepiece(" ", "a", "b", " ab")
    pieces = chosen(tokenizer, ["ab ba é"])
    ids = tokenizer.convert_tokens_to_ids(["▁ab", "▁", "b", "a", "▁", "<0xC3>", "<0xA9>"])
    assert [pieces.ids[position] for position in pieces.spell("ab ba é")] == ids
    assert len(set(pieces.spellings)) == len(pieces)


def test_added_tokens_do_not_change_the_kind_of_vocabulary():
    """DeepSeek's byte-level vocabularies have special tokens with SentencePiece's mark in them."""
    tokenizer = byte_level(" one", added=("<｜begin▁of▁sentence｜>", "<tool_call>"))
    pieces = chosen(tokenizer, ["one café"])
    assert spelled(pieces, "one")[0] == " one"
    assert pieces.text(pieces.spell("café")) == "café"
    known = piece_bytes(tokenizer)
    assert not any(id in known for id in tokenizer.all_special_ids)
    assert tokenizer.convert_tokens_to_ids("<tool_call>") not in known


def test_a_character_that_the_vocabulary_lacks_is_named():
    tokenizer = sentencepiece(" ", *"fish", fallback=False)
    with pytest.raises(PiecesError, match=r"'fiŝh' cannot be spelled.*remove these characters"):
        chosen(tokenizer, ["fish", "fiŝh fish"])
    pieces = chosen(tokenizer, ["fish"])
    with pytest.raises(PiecesError, match="'cat'"):
        pieces.spell("fish cat")
    assert pieces.text(pieces.spell("hsif")) == "hsif"


def test_ids_of_another_language_model():
    tokenizer = byte_level(" one")
    beyond = len(tokenizer) + 7
    with pytest.raises(PiecesError, match=rf"no embedding, for the ids 1, {beyond};.*model\.llama_path"):
        Pieces.of(tokenizer, [5, 1, beyond], ROWS)
    with pytest.raises(PiecesError, match="no embedding, for the ids 100;"):  # fewer rows than the tokenizer has ids
        Pieces.of(tokenizer, [5, 100], 100)
    with pytest.raises(PiecesError, match=r"1000, .* …;"):
        Pieces.of(tokenizer, range(1000, 2000), ROWS)


def test_bytes_that_are_no_character_are_marked():
    pieces = chosen(byte_level(), ["é"])
    first, *_ = pieces.spell("é")[1:]
    assert pieces.text([first]) == "\ufffd"


@pytest.mark.slow
def test_a_hundred_thousand_words_take_seconds():
    generator = random.Random(0)
    syllables = ["".join(pair) for pair in itertools.product("bdfgklmnprst", "aeiou")]
    words = ["".join(generator.choices(syllables, k=generator.randint(1, 4))) for _ in range(20_000)]
    longer = sorted({f" {word}" for word in words} | {word[: 2 + 2 * (index % 3)] for index, word in enumerate(words)})
    texts = [" ".join(generator.choices(words, weights=[1 / (1 + rank) for rank in range(20_000)], k=100))
             for _ in range(1_000)]  # fmt: skip
    begin = time.process_time()
    pieces = chosen(byte_level(*longer), texts, 20)
    assert time.process_time() - begin < 30
    assert 256 < len(pieces) < 256 + len(longer)

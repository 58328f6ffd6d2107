"""Tokenizers from GGUF: the ids that the file's own vocabulary and merges give, and that SentencePiece gives."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import regex
import sentencepiece
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from conversion.gguf_file import read_gguf
from conversion.gguf_tokenizer import SPLITS, WHOLE_WORDS, tokenizer_of
from support.command_line import UserError
from tests import tiny
from tests.gguf_files import byte_level, write_gguf

SPACE = "\u2581"
TEXTS = (
    "",
    " ",
    "one two  three\n\n four\t five",
    "What can be heard? 12345 3.14 2,000",
    "don't WE'LL I'm they've",
    "a red fish.Transcribe the speech, word for word!?",
    "naïve café, 日本語 текст ½ Ⅻ ٣٤",
    "line\r\nline \u00a0 wide\u3000space 😀👩‍👩‍👧",
    "x = {'a': [1, 22, 333]}  # ok",
)


def texts() -> list[str]:
    """Those above, and random ones of every kind of character."""
    rng = random.Random(0)
    ranges = ((32, 127), (32, 127), (0xA0, 0x250), (0x370, 0x600), (0x3040, 0x3100), (0x1F300, 0x1F600), (9, 14))
    drawn = ["".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(1, 30))) for _ in range(200)]
    return [*TEXTS, *drawn]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_llm(tmp_path_factory.mktemp("llm") / "llama")


def read(path: Path, llm: Path, **tokenizer: object) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF file, saved and loaded again."""
    made = tokenizer_of(read_gguf(write_gguf(path / "model.gguf", llm, tokenizer=tokenizer)))
    made.save_pretrained(path / "folder")
    return PreTrainedTokenizerFast.from_pretrained(path / "folder")


def pieces(text: str, splits: tuple[str, ...]) -> Iterator[str]:
    """Split by one expression after the other; what an expression does not match stays whole."""
    if not splits:
        yield from [text] if text else []
        return
    at = 0
    for match in regex.finditer(splits[0], text):
        for part in (text[at : match.start()], match[0]):
            yield from pieces(part, splits[1:])
        at = match.end()
    yield from pieces(text[at:], splits[1:])


def merged(text: str, words: dict, splits: tuple[str, ...], *, whole: bool) -> list[int]:
    """Byte-level BPE, as plainly as it can be written."""
    spelling, ids = bytes_to_unicode(), []
    vocabulary = {token: index for index, token in enumerate(words["tokens"])}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(words["merges"])}
    for piece in pieces(text, splits):
        symbols = [spelling[byte] for byte in piece.encode()]
        if whole and "".join(symbols) in vocabulary:
            symbols = ["".join(symbols)]
        while pairs := [(ranks[pair], at) for at, pair in enumerate(pairwise(symbols)) if pair in ranks]:
            _, at = min(pairs)
            symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
        ids += [vocabulary[symbol] for symbol in symbols]
    return ids


@pytest.mark.parametrize("pre", sorted(SPLITS))
def test_byte_level_ids_are_those_of_the_files_own_merges(tmp_path: Path, llm: Path, pre: str):
    tokenizer, words = read(tmp_path, llm, pre=pre), byte_level(llm)
    for text in texts():
        if pre in ("qwen2", "deepseek-r1-qwen"):  # composed first
            text = tokenizer.backend_tokenizer.normalizer.normalize_str(text)
        got = tokenizer(text, add_special_tokens=False).input_ids
        assert got == merged(text, words, SPLITS[pre], whole=pre in WHOLE_WORDS), repr(text)
        assert tokenizer.decode(got) == text


def test_digits_are_apart_where_the_model_learned_them_so(tmp_path: Path, llm: Path):
    words = byte_level(llm)
    words["tokens"] = [*words["tokens"][:-1], "12"]
    words["merges"] = ["1 2", *words["merges"][:-1]]
    ids = {pre: read_in(tmp_path / pre, llm, words | {"pre": pre})("12").input_ids for pre in ("gpt-2", "smollm")}
    assert len(ids["gpt-2"]) == 1 and len(ids["smollm"]) == 2


def read_in(path: Path, llm: Path, words: dict) -> PreTrainedTokenizerFast:
    path.mkdir()
    return read(path, llm, **words)


def test_special_tokens_are_found_in_texts_and_others_are_not_dropped(tmp_path: Path, llm: Path):
    words = byte_level(llm)
    types = [*words["token_type"]]
    types[300] = 4  # added by the model's makers: found as a whole, and shown
    tokenizer = read(tmp_path, llm, token_type=types)
    assert tokenizer("<s>one</s>", add_special_tokens=False).input_ids[0] == 1
    assert tokenizer.decode([1, *tokenizer("one").input_ids, 2], skip_special_tokens=True) == "one"
    added = words["tokens"][300]
    assert tokenizer.decode([300], skip_special_tokens=True)
    assert tokenizer(f"x{added}", add_special_tokens=False).input_ids[-1] == 300


@pytest.mark.parametrize(
    ("pre", "stated", "begins"),
    [("gpt-2", None, False), ("llama-bpe", None, True), ("gpt-2", True, True), ("llama-bpe", False, False)],
)
def test_bos_is_where_llama_cpp_puts_it(tmp_path: Path, llm: Path, pre: str, stated: bool | None, begins: bool):
    tokenizer = read(tmp_path, llm, pre=pre, add_bos_token=stated)
    assert (tokenizer("one").input_ids[0] == 1) is begins
    assert tokenizer.bos_token_id == 1


def test_eos_is_appended_where_the_file_says_so(tmp_path: Path, llm: Path):
    assert read(tmp_path, llm, add_eos_token=True)("one").input_ids[-1] == 2


def sentencepiece_model() -> sentencepiece.SentencePieceProcessor:
    """A small SentencePiece BPE with Llama's settings, trained on the tests' words."""
    lines = [
        " ".join(tiny.WORDS),
        *tiny.SOUNDS.values(),
        *(prompt for group in tiny.TRAIN_PROMPTS.values() for prompt in group),
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def test_sentencepiece_ids_are_sentencepiece_s(tmp_path: Path, llm: Path):
    theirs = sentencepiece_model()
    ids = range(theirs.get_piece_size())
    kinds = [2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1 for i in ids]
    tokenizer = read(
        tmp_path,
        llm,
        model="llama",
        pre="default",
        tokens=[theirs.id_to_piece(i) for i in ids],
        scores=[theirs.get_score(i) for i in ids],
        token_type=kinds,
        merges=None,
        padding_token_id=None,
    )
    for text in texts():
        if not text or SPACE in text:
            continue
        assert tokenizer(text, add_special_tokens=False).input_ids == theirs.encode(text), repr(text)
        assert tokenizer.decode(theirs.encode(text)) == text, repr(text)
    assert tokenizer("one").input_ids[0] == 1  # a SentencePiece vocabulary begins with BOS unless the file says no


def test_a_damaged_vocabulary_is_refused(tmp_path: Path, llm: Path):
    words = byte_level(llm)
    with pytest.raises(UserError, match="vocabulary is damaged"):
        read(tmp_path, llm, tokens=[*words["tokens"][:-1], words["tokens"][0]])
    with pytest.raises(UserError, match="vocabulary is damaged"):
        read(tmp_path, llm, token_type=words["token_type"][:-1])

"""Tokenizers from lists of pieces, and copies of tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import WhisperTokenizer

from conversion.whisper_tokenizer import CHARACTERS, build_tokenizer, copy_tokenizer
from conversion.whisper_tokens import tokens_of_size
from support.command_line import UserError
from tests.pieces import WORDS, byte_pieces, merges_of

TOKENS = tokens_of_size(51_864)
PIECES = byte_pieces(50_256)


@pytest.fixture(scope="module")
def tokenizer() -> WhisperTokenizer:
    built = build_tokenizer(PIECES, TOKENS)
    assert built is not None
    return built


def test_merges_are_found_again(tokenizer: WhisperTokenizer) -> None:
    def written(part: bytes) -> str:
        return "".join(CHARACTERS[value] for value in part)

    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert [tuple(pair) for pair in merges] == [(written(left), written(right)) for left, right in merges_of(PIECES)]


def test_words_are_one_piece_each(tokenizer: WhisperTokenizer) -> None:
    made = tokenizer.encode("".join(WORDS), add_special_tokens=False)
    assert made == [PIECES.index(word.encode()) for word in WORDS]


def test_a_prompt_begins_as_whispers_does(tokenizer: WhisperTokenizer) -> None:
    made = tokenizer.encode(" cat")
    assert made == [TOKENS.ids["<|startoftranscript|>"], 50_362, PIECES.index(b" cat"), TOKENS.end]


def test_timestamps_are_decoded(tokenizer: WhisperTokenizer) -> None:
    ids = [50_363, PIECES.index(b" cat"), 50_363 + 75]
    assert tokenizer.decode(ids, decode_with_timestamps=True) == "<|0.00|> cat<|1.50|>"


def test_other_lists_make_none() -> None:
    assert build_tokenizer(PIECES[:-1], TOKENS) is None
    assert build_tokenizer([*PIECES[:-1], PIECES[0]], TOKENS) is None
    assert build_tokenizer([b"??", *PIECES[1:]], TOKENS) is None


def test_a_tokenizer_of_another_model_is_not_copied(tokenizer: WhisperTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "a")
    file = tmp_path / "a" / "tokenizer.json"
    (tmp_path / "out").mkdir()
    copy_tokenizer(file, tmp_path / "out", TOKENS)
    again = WhisperTokenizer.from_pretrained(tmp_path / "out")
    assert again.encode(" cat") == tokenizer.encode(" cat") and again.pad_token_id == TOKENS.end
    with pytest.raises(UserError, match=r"another model's tokenizer: <\|endoftext\|> is 50256; expected 50257"):
        copy_tokenizer(file, tmp_path / "out", tokens_of_size(51_865))
    file.write_text('{"version": "1.0"}')
    with pytest.raises(UserError, match=r"tokenizer\.json is no tokenizer"):
        copy_tokenizer(file, tmp_path / "out", TOKENS)

"""Whisper's tokenizer, where a source has one: copied, or rebuilt from the list of its pieces."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from transformers import WhisperTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from conversion.whisper_tokens import END, NO_SPEECH, TIMESTAMPS, WhisperTokens
from support.command_line import UserError
from support.file_kinds import mistaken
from support.files import write_json

CHARACTERS = bytes_to_unicode()
"""Byte -> the character that stands for it in tokenizer.json."""
BYTES = {character: value for value, character in CHARACTERS.items()}


def copy_tokenizer(source: Path, folder: Path, tokens: WhisperTokens) -> None:
    """Copy a tokenizer.json, under a configuration that makes it Whisper's. UserError where it is of another model."""
    found = mistaken(source, text_is_right=True)
    if found:
        raise UserError(f"{source} {found}")
    try:
        tokenizer = Tokenizer.from_file(str(source))
    except Exception as error:  # the library raises this type alone
        raise UserError(f"{source} is no tokenizer: {error}; copy or download it again") from error
    for name, number in tokens.ids.items():
        names = NO_SPEECH if name in NO_SPEECH else (name,)
        if number not in map(tokenizer.token_to_id, names):
            raise UserError(
                f"{source} is another model's tokenizer: {name} is {tokenizer.token_to_id(name)}; expected {number}, "
                "as in the model's vocabulary"
            )
    shutil.copyfile(source, folder / "tokenizer.json")
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), END)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "WhisperTokenizer", **special})


def build_tokenizer(pieces: Sequence[bytes], tokens: WhisperTokens) -> WhisperTokenizer | None:
    """The tokenizer of a list of byte pieces in the order of their ids; None where they are not Whisper's.

    The list does not say which two pieces were merged into a third; that is what the earlier pieces make of its bytes.
    """
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    if (
        len(ranks) != len(pieces)
        or len(pieces) != tokens.end
        or any(bytes([value]) not in ranks for value in range(256))
    ):
        return None
    merges = [_written(parts) for piece, rank in ranks.items() if len(parts := _parts(piece, ranks, rank)) == 2]
    special = [AddedToken(name, normalized=False, special=True) for name in tokens.ids]
    times = [AddedToken(f"<|{0.02 * step:.2f}|>", normalized=False, special=False) for step in range(TIMESTAMPS)]
    tokenizer = WhisperTokenizer(
        vocab={"".join(CHARACTERS[value] for value in piece): rank for piece, rank in ranks.items()},
        merges=merges,
        pad_token=END,
        extra_special_tokens=[str(token) for token in special[1:]],
    )
    tokenizer.add_tokens(special + times)
    tokenizer.set_prefix_tokens()
    right = all(tokenizer.convert_tokens_to_ids(name) == number for name, number in tokens.ids.items())
    return tokenizer if right else None


def _parts(piece: bytes, ranks: dict[bytes, int], rank: int) -> list[bytes]:
    """What the pieces before `rank` make of a piece's bytes: two parts, in a vocabulary of byte-pair encoding."""
    parts = [bytes([value]) for value in piece]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
        first = min(range(len(pairs)), key=pairs.__getitem__)
        if pairs[first] >= rank:
            break
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts


def _written(parts: list[bytes]) -> tuple[str, str]:
    left, right = ("".join(CHARACTERS[value] for value in part) for part in parts)
    return left, right

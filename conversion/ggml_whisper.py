"""Whisper in a `ggml-*.bin` of whisper.cpp: one file of sizes, mel filters, pieces of the vocabulary and tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor, WhisperTokenizer

from conversion.byte_reader import ByteReader
from conversion.ggml_blocks import block_type
from conversion.openai_whisper import check_sizes
from conversion.stored_tensors import StoredTensor
from conversion.whisper_folder import WhisperSource, write_whisper
from conversion.whisper_names import transformers_name
from conversion.whisper_tokenizer import build_tokenizer
from conversion.whisper_tokens import END, WhisperTokens, tokens_of_size
from support.command_line import UserError

MAGIC = b"lmgg"  # 0x67676d6c, 'ggml', as a little-endian word
SIZES = (
    "n_vocab",
    "n_audio_ctx",
    "n_audio_state",
    "n_audio_head",
    "n_audio_layer",
    "n_text_ctx",
    "n_text_state",
    "n_text_head",
    "n_text_layer",
    "n_mels",
)
PLAIN_TYPES = {0: ("float32", np.dtype("<f4")), 1: ("float16", np.dtype("<f2"))}
MOST_AXES = 4
FILTERS_TOLERANCE = 1e-3  # of the mel filters; the released ones differ by 1e-8 from transformers'


def recognises(path: Path) -> bool:
    """Whether a file starts as those of whisper.cpp do."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def convert(path: Path, folder: Path, dtype: str | None, report: Callable[[str], None]) -> None:
    """Fill an empty folder from a `ggml-*.bin`."""
    reader = ByteReader(path)
    reader.take(len(MAGIC), "its mark")
    sizes = dict(zip(SIZES, reader.numbers("10i", "its sizes"), strict=True))
    reader.numbers("i", "its type")  # of most tensors; each states its own
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{path} states {name} = {size}; expected a Whisper of whisper.cpp, with sizes above 0")
    _check_filters(reader, sizes["n_mels"], report)
    pieces = _pieces(reader)
    tensors = _tensors(reader)
    check_sizes(path, sizes, tensors)
    tokens = tokens_of_size(sizes["n_vocab"])
    tokenizer = _tokenizer(pieces, tokens)
    source = WhisperSource(
        path=path,
        format="whisper.cpp's ggml file",
        tensors=tensors,
        encoder_heads=sizes["n_audio_head"],
        decoder_heads=sizes["n_text_head"],
        tokens=tokens,
        settings={},
        write_tokenizer=tokenizer and tokenizer.save_pretrained,
        no_tokenizer=f"its list of {len(pieces):,} pieces is none of the released models'",
    )
    write_whisper(source, folder, dtype, report)


def _check_filters(reader: ByteReader, mels: int, report: Callable[[str], None]) -> None:
    """The file's own mel filters; those of transformers, which are used, are the released models'."""
    rows, columns = reader.numbers("ii", "the size of its mel filters")
    if rows != mels or columns < 1:
        raise UserError(f"{reader.path} has mel filters of {rows} x {columns}; expected {mels} rows, as in its sizes")
    filters = np.array(reader.take(rows * columns * 4, "its mel filters")).view("<f4").reshape(rows, columns)
    ours = WhisperFeatureExtractor(feature_size=mels).mel_filters.T
    if ours.shape != filters.shape or not np.abs(filters - ours).max() <= FILTERS_TOLERANCE:
        report(f"note: {reader.path} has other mel filters than the released models; the released ones are used")


def _pieces(reader: ByteReader) -> list[bytes]:
    (count,) = reader.numbers("i", "the size of its vocabulary")
    pieces = []
    for number in range(count):  # ends with the file at the latest: each reads four bytes or more
        (length,) = reader.numbers("I", f"the length of token {number}")
        pieces.append(reader.take(length, f"token {number}").tobytes())
    return pieces


def _tokenizer(pieces: list[bytes], tokens: WhisperTokens | None) -> WhisperTokenizer | None:
    """Files made from transformers' models list the end token too."""
    if tokens is None:
        return None
    return build_tokenizer(pieces[: tokens.end] if pieces[tokens.end :] in ([], [END.encode()]) else [], tokens)


def _tensors(reader: ByteReader) -> dict[str, StoredTensor]:
    """All tensors, by transformers' names; their bytes stay in the file."""
    tensors: dict[str, StoredTensor] = {}
    while reader.left:
        axes, length, kind = reader.numbers("iii", "a tensor's header")
        if not 0 < axes <= MOST_AXES:
            raise UserError(f"{reader.path} is damaged: a tensor before byte {reader.position:,} has {axes} axes")
        sizes = reader.numbers(f"{axes}i", "a tensor's shape")[::-1]  # ggml's first axis is the innermost
        theirs = reader.text(length, "a tensor's name")
        name = transformers_name(theirs) or theirs
        if min(sizes) < 1:
            raise UserError(f"{reader.path} is damaged: {theirs} has the shape {list(sizes)}")
        if name in tensors:
            raise UserError(f"{reader.path} is damaged: it holds {theirs} twice")
        shape = sizes[:-1] if theirs.endswith(".bias") and sizes[1:] == (1,) else sizes  # a convolution's: [D, 1]
        tensors[name] = _tensor(reader, theirs, shape, kind, sizes[-1])
    return tensors


def _tensor(reader: ByteReader, name: str, shape: tuple[int, ...], kind: int, row: int) -> StoredTensor:
    count = math.prod(shape)
    if kind in PLAIN_TYPES:
        stated, plain = PLAIN_TYPES[kind]
        raw = reader.take(count * plain.itemsize, name)
        return StoredTensor(shape=shape, type=stated, load=partial(_plain, raw, plain, shape))
    block = block_type(kind)
    if isinstance(block, str):
        raise UserError(f"{reader.path}: {name} is of type {block}; expected float32, float16, or q2_k to q8_0")
    if row % block.values:
        raise UserError(f"{reader.path} is damaged: {name} has rows of {row}, which {block.name} cannot store")
    raw = reader.take(count // block.values * block.bytes, name)
    return StoredTensor(shape=shape, type=block.name, load=lambda: block.decode(raw).reshape(shape))


def _plain(raw: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> Tensor:
    """Floats at any byte of a file."""
    return torch.from_numpy(np.array(raw).view(dtype)).reshape(shape)

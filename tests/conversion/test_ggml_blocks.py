"""Quantised types of ggml against their published layout, bytes written by hand."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from conversion.ggml_blocks import BlockType, block_type
from tests.whisper_sources import GGML_TYPES, ggml_bytes

SIZES = {"q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "q8_0": 34}
"""Bytes of a block: sizes of the structs in ggml-common.h."""


def kind(name: str) -> BlockType:
    found = block_type(GGML_TYPES[name])
    assert isinstance(found, BlockType)
    return found


@pytest.mark.parametrize("name", SIZES)
def test_a_block_has_its_published_size(name: str) -> None:
    block = kind(name)
    assert (block.name, block.bytes, block.values) == (name, SIZES[name], 32)


@pytest.mark.parametrize("name", SIZES)
def test_random_values_are_decoded_exactly(name: str) -> None:
    values = np.random.default_rng(0).normal(size=640).astype(np.float32)
    raw, stored = ggml_bytes(values, name)
    decoded = kind(name).decode(np.frombuffer(raw, np.uint8)).numpy()
    assert np.array_equal(decoded, stored)
    assert np.abs(decoded - values).max() < {"q4": 0.5, "q5": 0.25, "q8": 0.02}[name[:2]]


def one(name: str, raw: bytes) -> list[float]:
    return kind(name).decode(np.frombuffer(raw, np.uint8)).tolist()


def test_halves_of_a_byte_are_values_j_and_j_plus_16() -> None:
    content = bytes([0xF3]) + bytes([0x88]) * 15
    values = one("q4_0", struct.pack("<e", 0.5) + content)
    assert (values[0], values[16]) == (0.5 * (3 - 8), 0.5 * (15 - 8)) and values[1] == values[17] == 0
    values = one("q4_1", struct.pack("<ee", 0.5, -2) + content)
    assert (values[0], values[16], values[1]) == (0.5 * 3 - 2, 0.5 * 15 - 2, 0.5 * 8 - 2)


def test_fifth_bits_are_one_word_with_value_j_at_bit_j() -> None:
    content = struct.pack("<I", 1 << 1 | 1 << 17) + bytes(16)
    values = one("q5_0", struct.pack("<e", 0.25) + content)
    assert values[1] == values[17] == 0 and values[0] == values[16] == 0.25 * -16
    values = one("q5_1", struct.pack("<ee", 0.25, 1) + content)
    assert values[1] == values[17] == 0.25 * 16 + 1 and values[0] == 1


def test_eight_bits_have_a_sign() -> None:
    assert one("q8_0", struct.pack("<e32b", 0.5, -128, 127, *[0] * 30))[:3] == [-64, 63.5, 0]


def test_other_types() -> None:
    assert block_type(26) == "i32" and block_type(999) == "number 999"
    assert isinstance(block_type(14), BlockType) and block_type(14).name == "q6_k"  # what `quantize q6_k` writes

"""Matrices in 8 bits: what is kept, what is not, and that the names of a file come back."""

import torch

from models.checkpoint.rounded_rows import ROW_SCALE, restore_rows, round_rows


def test_a_large_matrix_comes_back_within_half_a_step() -> None:
    matrix = torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
    entries = round_rows("connector.to_llm.weight", matrix)
    assert entries["connector.to_llm.weight"].dtype == torch.int8
    restored = restore_rows(entries)
    assert list(restored) == ["connector.to_llm.weight"]
    step = matrix.abs().amax(dim=1, keepdim=True) / 127
    assert ((restored["connector.to_llm.weight"] - matrix).abs() <= 0.51 * step).all()


def test_rows_of_zeros_stay_zero() -> None:
    restored = restore_rows(round_rows("m", torch.zeros(64, 64)))
    assert not restored["m"].any()


def test_small_tensors_and_integers_are_not_in_8_bits() -> None:
    assert round_rows("bias", torch.ones(5000))["bias"].dtype == torch.float16
    assert round_rows("m", torch.ones(4, 4))["m"].dtype == torch.float16
    ids = torch.arange(5000).view(50, 100)
    assert round_rows("ids", ids)["ids"] is ids


def test_files_without_such_matrices_are_as_they_were() -> None:
    state = {"a": torch.ones(3), "b": torch.ones(2, 2)}
    assert restore_rows(state) == state
    assert not any(name.endswith(ROW_SCALE) for name in state)

"""Units that every program shares."""

import torch

from support.units import GIB, MIB, dtype_name


def test_binary_units_and_names_of_number_types() -> None:
    assert (MIB, GIB) == (1024**2, 1024**3)
    assert dtype_name(torch.bfloat16) == "bfloat16"

"""Names of the public code and ours."""

from models.checkpoint.adapter_tensors import named_tensors
from models.checkpoint.released_names import own_name, released_name


def test_names_go_both_ways(model):
    for name, (_, needed) in named_tensors(model).items():
        if needed:
            assert own_name(released_name(name)) == name

"""Random generators are put back."""

import torch

from support.random_state import preserved_rng, rng_state, set_rng_state


def test_random_generators_are_put_back():
    import random

    import numpy

    def draw():
        return torch.rand(1).item(), numpy.random.rand(), random.random()

    state = rng_state()
    expected = draw()
    set_rng_state(state)
    with preserved_rng():
        assert draw() == expected
    assert draw() == expected

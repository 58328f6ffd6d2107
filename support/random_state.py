"""Keep and restore every random generator of a process."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def rng_state() -> dict:
    """State of every random generator that training may draw from; tensors, numbers and tuples only."""
    version, words, position, has_gauss, cached = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": (version, torch.from_numpy(words.astype(np.int64)), position, has_gauss, cached),
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict) -> None:
    """Restore what `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    version, words, position, has_gauss, cached = state["numpy"]
    np.random.set_state((version, words.numpy().astype(np.uint32), position, has_gauss, cached))
    python_version, python_words, gauss = state["python"]
    random.setstate((python_version, tuple(python_words), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Leave every random generator as it was found: validation and loader start-up must not shift training."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)

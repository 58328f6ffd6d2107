"""Spans: named parts of what the model does, which measurements read; they cost next to nothing when nobody measures.

    with span("features", "whisper"): ...     # in the model
    with measured(now) as seconds: ...        # around a call of it: {"features.whisper": 0.004, …, "other": 0.001}

A clock on an accelerator waits for it at both ends of every span, so spans are outside of what CUDA graphs capture,
and what would run concurrently on CUDA streams runs sequentially while it is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

OTHER = "other"
"""What lies outside of every span."""

_NOT_MEASURED = nullcontext()

P = ParamSpec("P")
R = TypeVar("R")


class _Meter:
    """Adds what the clock moves to the span that is open, the innermost of several."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.parts: dict[str, float] = {}
        self._clock = clock
        self._part, self._since = OTHER, clock()

    def move_to(self, part: str) -> None:
        now = self._clock()
        self.parts[self._part] = self.parts.get(self._part, 0) + now - self._since
        self._part, self._since = part, now

    @contextmanager
    def span(self, part: str) -> Iterator[None]:
        outer = self._part
        self.move_to(part)
        try:
            yield
        finally:
            self.move_to(outer)


_meter: ContextVar[_Meter | None] = ContextVar("_meter", default=None)  # of this thread


def span(part: str, name: str = "") -> AbstractContextManager[None]:
    """The part `part.name` (or `part`) of what the model does, while the context is open."""
    meter = _meter.get()
    return _NOT_MEASURED if meter is None else meter.span(f"{part}.{name}" if name else part)


def spanned(part: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function each of whose calls is a span."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def within(*args: P.args, **kwargs: P.kwargs) -> R:
            with span(part):
                return function(*args, **kwargs)

        return within

    return decorate


@contextmanager
def measured(clock: Callable[[], float], expected: Sequence[str] | None = None) -> Iterator[dict[str, float]]:
    """How far `clock` moves in each span while the context is open, and in none (`other`): filled in at its end.

    The clock may show anything that only grows: seconds, FLOPs. A span's own figure leaves out the spans within it, and
    sums over its calls, so that all figures together are the whole. Spans of other threads do not count.

    Args:
        expected: the spans that must be opened, and no others; the figures are in this order. None takes what comes.

    Raises RuntimeError at the end if a span of `expected` was not opened, or another one was.
    """
    meter = _Meter(clock)
    parts: dict[str, float] = {}
    token = _meter.set(meter)
    try:
        yield parts
    finally:
        _meter.reset(token)
        meter.move_to(OTHER)
    opened = [part for part in meter.parts if part != OTHER]
    wanted = opened if expected is None else expected
    faults = [f"{part} was not measured: no span of this name was opened" for part in wanted if part not in opened]
    faults += [f"the span {part} was opened" for part in opened if part not in wanted]
    if faults:
        raise RuntimeError(
            f"{'; '.join(faults)}; expected are {', '.join(wanted) or 'none'}. Open the span in the model, or correct "
            "what is expected (SALMONN.spans)."
        )
    parts.update({part: meter.parts[part] for part in [*wanted, OTHER]})

"""Signals that stop a run: noted when they come, acted upon between steps."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether SIGTERM or SIGINT has come, and which."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @contextmanager
    def noted(self, say: Callable[[str], None]) -> Iterator[None]:
        """Note signals until the current step ends; a second one ends the process at once."""

        def note(number: int, _frame: object) -> None:
            self.signal = signal.Signals(number)
            say(f"{self.signal.name}: saving a checkpoint after this step; once more to quit at once.")
            for other in STOP_SIGNALS:
                signal.signal(other, before[other])

        before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Interrupted(Exception):
    """Validation, or an evaluation, was asked to stop."""

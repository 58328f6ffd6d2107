"""Spans: each figure is a part's own, together they are the whole, and nobody pays who does not measure."""

from __future__ import annotations

import itertools
import threading
import timeit
from collections.abc import Callable, Iterator

import pytest

from models.runtime.spans import measured, span, spanned


@pytest.fixture
def clock() -> Callable[[], float]:
    """One further at each reading."""
    ticks: Iterator[int] = itertools.count()
    return lambda: float(next(ticks))


def test_a_span_leaves_out_those_within_it_and_adds_up_its_calls(clock: Callable[[], float]) -> None:
    @spanned("outer")
    def outer() -> str:
        with span("inner", "one"):
            pass
        clock()
        return "result"

    with measured(clock) as parts:
        assert outer() == outer() == "result"
        with span("last"):
            pass
    assert parts == {"outer": 2 * 3, "inner.one": 2 * 1, "last": 1, "other": 4}
    assert sum(parts.values()) == clock() - 1


def test_a_span_ends_with_an_error(clock: Callable[[], float]) -> None:
    with measured(clock) as parts:
        with pytest.raises(KeyError), span("broken"):
            raise KeyError("in the model")
        with span("next"):
            pass
    assert parts == {"broken": 1, "next": 1, "other": 3}


def test_what_is_expected_is_measured_in_that_order(clock: Callable[[], float]) -> None:
    with measured(clock, ["second", "first"]) as parts:
        for name in ("first", "second"):
            with span(name):
                pass
    assert list(parts) == ["second", "first", "other"]


def test_a_part_that_is_not_measured_is_an_error(clock: Callable[[], float]) -> None:
    with pytest.raises(RuntimeError) as caught, measured(clock, ["prefill", "encoder.ced"]), span("prefill"):
        pass
    said = "encoder.ced was not measured: no span of this name was opened; expected are prefill, encoder.ced. Open the"
    assert str(caught.value).startswith(said)
    with (
        pytest.raises(RuntimeError, match="the span more was opened; expected are none"),
        measured(clock, []),
        span("more"),
    ):
        pass


def test_an_error_of_the_model_is_not_hidden_by_parts_that_it_never_reached(clock: Callable[[], float]) -> None:
    with pytest.raises(KeyError), measured(clock, ["prefill"]):
        raise KeyError("in the model")


def test_other_threads_are_not_measured(clock: Callable[[], float]) -> None:
    def work() -> None:
        with span("elsewhere"):
            pass

    with measured(clock, []) as parts:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert parts == {"other": 1}


def test_nobody_pays_who_does_not_measure() -> None:
    assert span("encoder", "whisper") is span("prefill")  # nothing is made

    def pass_through() -> None:
        with span("encoder", "whisper"):
            pass

    calls = 1000
    seconds = min(timeit.repeat(pass_through, number=calls, repeat=20)) / calls
    assert seconds < 2e-6, f"a span takes {1e6 * seconds:.2f} µs"

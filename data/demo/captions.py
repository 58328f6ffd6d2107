"""Captions of the demo corpus' sounds, of one or two events, and which pairs are reserved for testing."""

import hashlib

import numpy as np

from data.demo.sounds import CONTINUOUS, INSTRUMENTS, SOUNDS

PAIR_TEST_SHARE = 6
"""One of this many unordered pairs of events belongs to the test split."""

_VERBS = {
    "rain": ("rain", "falls", "falling"),
    "wind": ("wind", "blows", "blowing"),
    "engine": ("an engine", "runs", "running"),
    "helicopter": ("a helicopter", "flies", "flying"),
    "siren": ("a siren", "wails", "wailing"),
    "thunder": ("thunder", "rumbles", "rumbling"),
    "dog": ("a dog", "barks", "barking"),
    "cat": ("a cat", "meows", "meowing"),
    "bird": ("a bird", "chirps", "chirping"),
    "frog": ("a frog", "croaks", "croaking"),
    "bell": ("a bell", "rings", "ringing"),
    "clock": ("a clock", "ticks", "ticking"),
    "knocking": ("someone", "knocks", "knocking"),
    "footsteps": ("someone", "walks", "walking"),
    "phone": ("a phone", "rings", "ringing"),
    "water": ("water", "drips", "dripping"),
    "alarm": ("an alarm", "beeps", "beeping"),
    "whistle": ("a whistle", "blows", "blowing"),
    "clapping": ("people", "clap", "clapping"),
    "typing": ("someone", "types", "typing"),
    **{name: (f"a {name}" if name != "organ" else "an organ", "plays", "playing") for name in INSTRUMENTS},
}
"""Kind → subject, verb in the present, verb in -ing."""

KINDS = (*SOUNDS, *INSTRUMENTS)
"""Every kind of event, continuous ones first."""


def noun(kind: str) -> str:
    """The event as a noun phrase: `a dog`, `someone knocking`."""
    subject, _, doing = _VERBS[kind]
    return f"{subject} {doing}" if subject in ("someone", "people") else subject


def _present(kind: str) -> str:
    subject, does, _ = _VERBS[kind]
    return f"{subject} {does}"


def _progressive(kind: str) -> str:
    subject, _, doing = _VERBS[kind]
    return f"{subject} {'are' if subject == 'people' else 'is'} {doing}"


def _gerund(kind: str) -> str:
    subject, _, doing = _VERBS[kind]
    return f"{subject} {doing}"


def captions(relation: str, kinds: tuple[str, ...]) -> list[str]:
    """Six captions, the plainest first. For `while`, the first kind is the one in the background."""
    if relation == "single":
        (a,) = kinds
        return [
            _present(a),
            _progressive(a),
            _gerund(a),
            f"the sound of {_gerund(a)}",
            f"we hear {_gerund(a)}",
            f"there is {_gerund(a)}",
        ]
    a, b = kinds
    if relation == "then":
        return [
            f"{_present(a)}, then {_present(b)}",
            f"{_present(a)} and then {_present(b)}",
            f"{_present(a)} followed by {_gerund(b)}",
            f"{_gerund(a)} and then {_gerund(b)}",
            f"first {_present(a)}, after that {_present(b)}",
            f"{_progressive(a)} before {_present(b)}",
        ]
    assert relation == "while", relation
    return [
        f"{_present(a)} while {_present(b)}",
        f"{_present(b)} while {_present(a)}",
        f"{_present(b)} as {_present(a)}",
        f"{_gerund(b)} with {_gerund(a)} in the background",
        f"{_present(a)} and {_present(b)} at the same time",
        f"{_progressive(b)} over the sound of {_gerund(a)}",
    ]


def draw_caption(rng: np.random.Generator, relation: str, kinds: tuple[str, ...]) -> str:
    """One caption: the plainest most of the time, as annotators do."""
    forms = captions(relation, kinds)
    return forms[0] if rng.random() < 0.7 else forms[int(rng.integers(1, len(forms)))]


def draw_references(rng: np.random.Generator, relation: str, kinds: tuple[str, ...]) -> list[str]:
    """Five references for a test clip, the plainest first."""
    forms = captions(relation, kinds)
    return [forms[0], *(forms[i] for i in sorted(rng.permutation(np.arange(1, len(forms)))[:4]))]


def is_test_pair(first: str, second: str) -> bool:
    """Whether clips with both kinds are reserved for testing, in either order and relation."""
    key = "|".join(sorted((first, second)))
    return hashlib.sha256(key.encode()).digest()[0] % PAIR_TEST_SHARE == 0


def draw_events(rng: np.random.Generator, *, test: bool, single: float = 0.3) -> tuple[str, tuple[str, ...]]:
    """A relation and its kinds. `single` is the share of one-event clips; pairs come from one split."""
    if rng.random() < single:
        return "single", (KINDS[int(rng.integers(len(KINDS)))],)
    while True:
        relation = "while" if rng.random() < 0.4 else "then"
        first = CONTINUOUS[int(rng.integers(len(CONTINUOUS)))] if relation == "while" else None
        first = first or KINDS[int(rng.integers(len(KINDS)))]
        second = KINDS[int(rng.integers(len(KINDS)))]
        if relation == "while" and second in CONTINUOUS:
            continue
        if first != second and is_test_pair(first, second) == test:
            return relation, (first, second)

"""The demo corpus' sentences: a grammar of some 330 words, and which sentences are kept for testing.

A sentence belongs to the test split or to the training split by a hash of its text alone, so the split is the same for
every seed, and the shipped stand-ins (which were pretrained on other seeds) never saw a test sentence.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np

TEST_SHARE = 8
"""One sentence in so many belongs to the test split."""

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUMBERS = (*DIGITS[2:], "ten", "eleven", "twelve", "twenty")
COLORS = (
    "red", "blue", "green", "yellow", "black", "white", "brown", "purple", "orange", "silver", "golden", "pink",
)  # fmt: skip
ADJECTIVES = (
    "small", "large", "old", "young", "happy", "quick", "slow", "tall", "heavy", "quiet", "loud", "clean", "dirty",
    "empty", "broken", "wooden", "narrow", "famous", "friendly", "gentle", "lazy", "hungry", "tired", "clever", "brave",
    "warm", "cold", "frozen", "bright", "dark", "strange", "modern", "simple",
)  # fmt: skip
ANIMALS = (
    "dog", "cat", "horse", "rabbit", "tiger", "monkey", "elephant", "chicken", "turtle", "dolphin", "eagle", "lion",
    "mouse", "fox", "wolf", "goat", "camel", "spider", "penguin", "bird",
)  # fmt: skip
PEOPLE = (
    "farmer", "teacher", "doctor", "driver", "painter", "singer", "captain", "soldier", "student", "baker", "lawyer",
    "nurse", "pilot", "sailor", "uncle", "brother", "sister", "mother", "father", "neighbor", "child", "woman", "king",
    "queen", "boy", "girl",
)  # fmt: skip
NAMES = ("alice", "peter", "maria", "david", "emma", "thomas", "laura", "victor", "sophie", "martin", "helen", "oscar")
OBJECTS = (
    "table", "chair", "lamp", "window", "letter", "basket", "bottle", "guitar", "camera", "pencil", "hammer", "ladder",
    "mirror", "pillow", "blanket", "carpet", "candle", "bucket", "helmet", "umbrella", "jacket", "suitcase",
    "newspaper", "telephone", "computer", "bicycle", "picture", "ticket", "box", "coin", "book", "cup", "knife", "rope",
)  # fmt: skip
FOODS = (
    "bread", "butter", "cheese", "apple", "banana", "lemon", "tomato", "potato", "onion", "rice", "soup", "coffee",
    "honey", "sugar", "chocolate", "cherry", "sandwich", "pepper",
)  # fmt: skip
PLACES = (
    "garden", "kitchen", "market", "station", "village", "castle", "forest", "river", "mountain", "island", "harbor",
    "library", "museum", "hospital", "school", "church", "factory", "office", "hotel", "bridge", "tunnel", "valley",
    "desert", "beach", "park", "street",
)  # fmt: skip
ROOMS = ("kitchen", "garden", "library", "office", "hotel", "museum")
TRANSITIVE = (
    "carries", "paints", "follows", "watches", "opens", "closes", "finds", "brings", "sells", "cleans", "repairs",
    "hides", "pushes", "pulls", "drops", "kicks", "washes", "loves", "wants", "needs", "remembers", "forgets",
    "catches", "holds", "throws", "breaks", "steals",
)  # fmt: skip
INTRANSITIVE = (
    "sleeps", "runs", "walks", "jumps", "dances", "laughs", "waits", "swims", "sings", "works", "smiles", "rests",
    "falls", "shouts", "whispers", "travels",
)  # fmt: skip
MANNERS = ("slowly", "quickly", "quietly", "loudly", "again", "together", "alone")
DAYS = (
    "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "today", "tomorrow", "tonight",
)  # fmt: skip
MONTHS = ("january", "april", "june", "august", "october", "december")
SEASONS = ("winter", "summer", "autumn")
PREPOSITIONS = ("in", "near", "behind", "beside", "across", "inside", "under", "above")
FREQUENCIES = ("never", "always", "often", "sometimes")
DETERMINERS = ("the", "the", "the", "the", "this", "that", "my", "your", "her", "every")
THINGS_PLURAL = (
    "dogs", "horses", "apples", "books", "bottles", "chairs", "tickets", "pictures", "candles", "coins", "letters",
    "boxes", "cups", "rabbits", "lemons",
)  # fmt: skip
COMMANDS = ("take", "open", "bring", "show", "close", "wash", "paint", "move", "find", "send", "clean", "repair")
WEATHER = ("cold", "warm", "quiet", "bright", "dark", "strange")
FUNCTION_WORDS = (
    "a", "an", "and", "is", "are", "with", "from", "at", "please", "we", "they", "she", "he", "there", "very", "not",
    "but", "have", "has", "call", "set", "turn", "play", "on", "off", "lights", "alarm", "timer", "music", "minutes",
    "morning", "evening", "weather", "number", "room", "door", "likes", "some", "between",
)  # fmt: skip

WORDS = tuple(
    sorted(
        {
            *DIGITS, *NUMBERS, *COLORS, *ADJECTIVES, *ANIMALS, *PEOPLE, *NAMES, *OBJECTS, *FOODS, *PLACES, *TRANSITIVE,
            *INTRANSITIVE, *MANNERS, *DAYS, *MONTHS, *SEASONS, *PREPOSITIONS, *FREQUENCIES, *DETERMINERS,
            *THINGS_PLURAL, *COMMANDS, *FUNCTION_WORDS,
        }
    )
)  # fmt: skip
"""Every word that the grammar can say."""

_CONTENT_WORDS = frozenset({*ANIMALS, *PEOPLE, *NAMES, *OBJECTS, *FOODS, *PLACES, *THINGS_PLURAL})


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A sentence of 3–10 words and what is known about it."""

    text: str
    slots: dict[str, str] = field(default_factory=dict)
    """Intent and slots of a spoken command; empty for plain statements."""

    @property
    def keywords(self) -> list[str]:
        """The nouns and names, in the order spoken."""
        return [word for word in self.text.split() if word in _CONTENT_WORDS]


def is_test_sentence(text: str) -> bool:
    """Whether this sentence is kept for testing: a property of its text, the same for every seed."""
    return hashlib.sha256(text.encode()).digest()[0] % TEST_SHARE == 0


def draw_sentence(rng: np.random.Generator, *, test: bool, command: bool | None = None) -> Sentence:
    """Draw a sentence of one split; `command` asks for (or against) the kinds that carry slots."""
    while True:
        make = _pick(rng, _COMMAND_KINDS if command else _KINDS if command is None else _STATEMENT_KINDS)
        sentence = make(rng)
        if 3 <= len(sentence.text.split()) <= 10 and is_test_sentence(sentence.text) == test:
            return sentence


def _pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def _chance(rng: np.random.Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


def _noun_phrase(rng: np.random.Generator, nouns: tuple[str, ...], adjective: float = 0.4) -> str:
    words = [_pick(rng, nouns)]
    if _chance(rng, adjective):
        words.insert(0, _pick(rng, COLORS if nouns in (OBJECTS, ANIMALS) and _chance(rng, 0.5) else ADJECTIVES))
    if _chance(rng, 0.2):
        words.insert(0, "an" if words[0][0] in "aeiou" else "a")
    else:
        words.insert(0, _pick(rng, DETERMINERS))
    return " ".join(words)


def _subject(rng: np.random.Generator) -> str:
    if _chance(rng, 0.2):
        return _pick(rng, NAMES)
    if _chance(rng, 0.1):
        return _pick(rng, ("she", "he"))
    return _noun_phrase(rng, _pick(rng, (ANIMALS, PEOPLE)))


def _thing(rng: np.random.Generator) -> str:
    return _noun_phrase(rng, _pick(rng, (OBJECTS, OBJECTS, FOODS, ANIMALS)))


def _place(rng: np.random.Generator) -> str:
    return f"{_pick(rng, PREPOSITIONS)} {_noun_phrase(rng, PLACES, 0.2)}"


def _acts(rng: np.random.Generator) -> Sentence:
    text = f"{_subject(rng)} {_pick(rng, TRANSITIVE)} {_thing(rng)}"
    if _chance(rng, 0.3):
        text += " " + _pick(rng, (_pick(rng, MANNERS), f"on {_pick(rng, DAYS[:7])}", _place(rng)))
    return Sentence(text=text)


def _moves(rng: np.random.Generator) -> Sentence:
    frequency = f"{_pick(rng, FREQUENCIES)} " if _chance(rng, 0.2) else ""
    end = _place(rng) if _chance(rng, 0.7) else f"{_pick(rng, MANNERS)} in {_pick(rng, (*MONTHS, *SEASONS))}"
    return Sentence(text=f"{_subject(rng)} {frequency}{_pick(rng, INTRANSITIVE)} {end}")


def _both(rng: np.random.Generator) -> Sentence:
    first, second = _noun_phrase(rng, PEOPLE, 0.2), _noun_phrase(rng, ANIMALS, 0.3)
    return Sentence(text=f"{first} and {second} are {_pick(rng, ('not', 'very', 'often'))} {_pick(rng, ADJECTIVES)}")


def _is(rng: np.random.Generator) -> Sentence:
    very = _pick(rng, ("", "very ", "not "))
    if _chance(rng, 0.3):
        when = _pick(rng, (*(f"in {season}" for season in (*SEASONS, *MONTHS)), "today", "tonight"))
        return Sentence(text=f"the weather is {very}{_pick(rng, WEATHER)} {when}")
    return Sentence(text=f"{_noun_phrase(rng, _pick(rng, (OBJECTS, PLACES)))} is {very}{_pick(rng, ADJECTIVES)}")


def _counts(rng: np.random.Generator) -> Sentence:
    who = _pick(rng, ("we have", "they have", "there are", f"{_pick(rng, NAMES)} has"))
    color = f"{_pick(rng, COLORS)} " if _chance(rng, 0.5) else ""
    return Sentence(text=f"{who} {_pick(rng, NUMBERS)} {color}{_pick(rng, THINGS_PLURAL)} {_place(rng)}")


def _digits(rng: np.random.Generator) -> Sentence:
    digits = " ".join(_pick(rng, DIGITS) for _ in range(int(rng.integers(3, 8))))
    return Sentence(text=digits)


def _likes(rng: np.random.Generator) -> Sentence:
    return Sentence(
        text=f"{_subject(rng)} {_pick(rng, ('likes', 'wants', 'needs'))} some {_pick(rng, FOODS)} "
        f"{_pick(rng, ('with', 'and'))} {_pick(rng, FOODS)}"
    )


def _orders(rng: np.random.Generator) -> Sentence:
    please = "please " if _chance(rng, 0.5) else ""
    return Sentence(text=f"{please}{_pick(rng, COMMANDS)} {_thing(rng)} {_place(rng)}")


def _call_command(rng: np.random.Generator) -> Sentence:
    if _chance(rng, 0.5):
        digits = " ".join(_pick(rng, DIGITS) for _ in range(int(rng.integers(3, 6))))
        return Sentence(text=f"please call number {digits}", slots={"intent": "call", "number": digits})
    name, day = _pick(rng, NAMES), _pick(rng, DAYS)
    part = _pick(rng, ("morning", "evening"))
    on = "" if day in DAYS[7:] else "on "
    if day in ("today", "tonight"):
        return Sentence(text=f"please call {name} {day}", slots={"intent": "call", "name": name, "day": day})
    slots = {"intent": "call", "name": name, "day": day, "time": part}
    return Sentence(text=f"call {name} {on}{day} {part}", slots=slots)


def _set_command(rng: np.random.Generator) -> Sentence:
    number = _pick(rng, NUMBERS)
    if _chance(rng, 0.5):
        return Sentence(text=f"set a timer at {number} minutes", slots={"intent": "timer", "minutes": number})
    day = _pick(rng, DAYS[:7])
    slots = {"intent": "alarm", "hour": number, "day": day}
    return Sentence(text=f"set an alarm at {number} on {day}", slots=slots)


def _turn_command(rng: np.random.Generator) -> Sentence:
    state, room = _pick(rng, ("on", "off")), _pick(rng, ROOMS)
    if _chance(rng, 0.3):
        slots = {"intent": "music", "state": state, "room": room}
        return Sentence(text=f"turn {state} the music in the {room}", slots=slots)
    color = _pick(rng, COLORS)
    slots = {"intent": "lights", "state": state, "color": color, "room": room}
    return Sentence(text=f"turn {state} the {color} lights in the {room}", slots=slots)


_COMMAND_KINDS = (_call_command, _set_command, _turn_command)
_STATEMENT_KINDS = (_acts, _acts, _acts, _moves, _moves, _moves, _both, _is, _is, _counts, _counts, _likes, _orders)
_KINDS = (*_STATEMENT_KINDS, *_STATEMENT_KINDS, *_COMMAND_KINDS, _digits, _digits, _digits)

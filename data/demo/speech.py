"""Speech for the demo corpus: espeak-ng through its pip package, called in-process by ctypes.

What espeak-ng returns depends on the calls made before it in the same process: the same bytes need the same sequence
of calls in a fresh process. `data.demo` therefore renders every part of the corpus in a separate process.
"""

import ctypes
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import numpy as np

from data.demo.speakers import SpeakerFolder, draw_speaker
from support.command_line import UserError

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS
_UTF8 = 1  # espeakCHARS_UTF8
_IPA = 2  # TextToPhonemes: International Phonetic Alphabet
_PARAMETERS = {"rate_wpm": 1, "pitch": 3, "pitch_range": 4, "word_gap": 7}

# Left out: voices with an echo, and a few others (f2, f3, f5, Alicia, victor, sandro), whose bytes differ between runs.
FEMALE_TRAIN = ("f1", "Annie", "aunty", "belinda", "linda", "grandma", "steph", "steph2", "steph3")
MALE_TRAIN = (
    "m1", "m3", "m5", "m6", "m7", "m8", "Alex", "Andy", "Denis", "Gene", "Gene2", "Jacky", "Lee", "Mario", "Mike",
    "antonio", "ed", "edward2", "iven", "max", "paul", "pedro", "quincy", "rob", "robert", "klatt", "klatt2", "klatt3",
    "benjamin", "john",
)  # fmt: skip
FEMALE_TEST = ("Andrea", "anika")
MALE_TEST = ("m4", "Michael")
ACCENTS = ("en-us", "en-us", "en-us", "en", "en", "en-gb-x-rp")
"""Repeated by weight. Both splits have the same accents, but different speakers (espeak-ng's voice variants) are
not."""


class SpeechError(UserError):
    """espeak-ng is missing or refused a voice."""


@dataclass(frozen=True, kw_only=True)
class Voice:
    """One speaker saying one sentence: espeak-ng's voice name and its settings."""

    accent: str
    speaker: str
    gender: str | None
    """None for an invented speaker."""
    rate_wpm: int
    pitch: int
    pitch_range: int
    word_gap: int
    variant: str = ""
    """An invented speaker's definition; empty for espeak-ng's own speakers."""

    @property
    def name(self) -> str:
        return f"{self.accent}+{self.speaker}"


@dataclass(frozen=True)
class Spoken:
    """espeak-ng's output."""

    waveform: np.ndarray  # [T] float32 in [-1, 1]
    rate_hz: int
    cut: int
    """Samples of silence that were cut before it."""


def draw_voice(rng: np.random.Generator, *, test: bool) -> Voice:
    """A random voice of one split, both genders equally likely."""
    female = bool(rng.random() < 0.5)
    speakers = (FEMALE_TEST if test else FEMALE_TRAIN) if female else (MALE_TEST if test else MALE_TRAIN)
    return Voice(
        accent=ACCENTS[int(rng.integers(len(ACCENTS)))],
        speaker=speakers[int(rng.integers(len(speakers)))],
        gender="female" if female else "male",
        rate_wpm=int(rng.integers(115, 160)),
        pitch=int(rng.integers(35, 66)),
        pitch_range=int(rng.integers(30, 71)),
        word_gap=int(rng.choice((0, 1, 2, 4))),
    )


def invent_speaker(voice: Voice, name: str, rng: np.random.Generator) -> Voice:
    """The same accent, rate and pitch with a new speaker."""
    return replace(voice, speaker=name, gender=None, variant=draw_speaker(rng))


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def espeak_package() -> ModuleType:
    """The pip package with espeak-ng's library and data."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise SpeechError(
            "the demo corpus needs espeak-ng for its speech: pip install espeakng-loader (GPL-3, optional)"
        ) from error
    return espeakng_loader


class Synthesiser:
    """espeak-ng, initialised once per process (the library keeps its state in globals).

    Raises:
        SpeechError: the package `espeakng-loader` is not installed, or the library does not start.
    """

    options = 0
    """Of espeak_Initialize."""

    def __init__(self) -> None:
        loader = espeak_package()
        self._temporary = TemporaryDirectory(prefix="espeak_")
        self._speakers = SpeakerFolder(Path(loader.get_data_path()), Path(self._temporary.name))
        self._library = ctypes.CDLL(loader.get_library_path())
        self._library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self.rate_hz = self._library.espeak_Initialize(_SYNCHRONOUS, 0, str(self._speakers.path).encode(), self.options)
        if self.rate_hz <= 0:
            raise SpeechError(
                f"espeak_Initialize returned {self.rate_hz}; its data should be in espeakng_loader's folder"
            )
        self._chunks: list[bytes] = []
        self._callback = _Callback(self._receive)  # kept alive: C holds only the pointer
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples, count: int, events: int) -> int:
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def _select(self, voice: Voice) -> None:
        if voice.variant:
            self._speakers.add(voice.speaker, voice.variant)
        if self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise SpeechError(f"espeak-ng has no voice {voice.name!r}")
        for name, number in _PARAMETERS.items():
            self._library.espeak_SetParameter(number, getattr(voice, name), 0)

    def say(self, text: str, voice: Voice) -> Spoken:
        """Synthesise plain lower-case English; silence at both ends is cut to 30 ms."""
        self._select(voice)
        self._chunks = []
        encoded = text.encode()
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        waveform = np.frombuffer(b"".join(self._chunks), dtype=np.int16).astype(np.float32) / 32768
        if not waveform.size:
            raise SpeechError(f"espeak-ng returned no audio for {text!r} with voice {voice.name!r}")
        sounding = np.flatnonzero(np.abs(waveform) > 0.005)
        margin = int(0.03 * self.rate_hz)
        start = max(0, int(sounding[0]) - margin) if sounding.size else 0
        end = min(waveform.size, int(sounding[-1]) + margin) if sounding.size else waveform.size
        return Spoken(waveform[start:end], self.rate_hz, start)

    def phonemes(self, text: str, voice: Voice) -> str:
        """IPA of a text in a voice's accent, without stress marks, one space between words."""
        self._select(voice)
        pointer = ctypes.c_char_p(text.encode())
        ipa = self._library.espeak_TextToPhonemes(ctypes.byref(pointer), _UTF8, _IPA).decode()
        return " ".join(ipa.replace("ˈ", "").replace("ˌ", "").split())

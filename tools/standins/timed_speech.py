"""Speech that says when its words and phonemes begin: what the Whisper stand-in is aligned to."""

import ctypes
from collections.abc import Iterator

from data.demo.speech import Spoken, Synthesiser, Voice

_PHONEME_EVENTS = 1  # espeakINITIALIZE_PHONEME_EVENTS
_EVENT_END, _EVENT_WORD, _EVENT_PHONEME = 0, 1, 7


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


class TimedSynthesiser(Synthesiser):
    """Keeps the times of what it said last."""

    options = _PHONEME_EVENTS
    words: tuple[tuple[str, float, float], ...] = ()
    """Word, start and end in seconds."""
    phonemes: tuple[tuple[str, float], ...] = ()
    """espeak's phoneme mnemonic, start in seconds."""

    def say(self, text: str, voice: Voice) -> Spoken:
        self._words: list[tuple[int, int]] = []
        self._phonemes: list[tuple[str, int]] = []
        spoken = super().say(text, voice)
        end = spoken.cut + spoken.waveform.size
        self.words = tuple(_word_times(text, self._words, spoken.cut, end, spoken.rate_hz))
        self.phonemes = tuple((name, (sample - spoken.cut) / spoken.rate_hz) for name, sample in self._phonemes)
        return spoken

    def _receive(self, samples, count: int, events: int) -> int:
        for event in _up_to_the_end(ctypes.cast(events, ctypes.POINTER(_Event))):
            if event.type == _EVENT_WORD:
                self._words.append((event.text_position - 1, event.sample))
            elif event.type == _EVENT_PHONEME:
                self._phonemes.append((event.id.decode("utf-8", "replace"), event.sample))
        return super()._receive(samples, count, events)


def _up_to_the_end(events) -> Iterator[_Event]:
    index = 0
    while events[index].type != _EVENT_END:
        yield events[index]
        index += 1


def _word_times(text: str, events: list[tuple[int, int]], start: int, end: int, rate_hz: int):
    """Word, start and end in seconds, from espeak's word events (position in the text, sample).

    espeak-ng reports some pairs of function words ("in the") as one event: its time is shared by their letters.
    """
    positions, cursor = [], 0
    for word in text.split():
        cursor = text.index(word, cursor)
        positions.append((cursor, word))
        cursor += len(word)
    samples = [sample for _, sample in events] + [end]
    for number, (position, _) in enumerate(events):
        following = events[number + 1][0] if number + 1 < len(events) else len(text)
        group = [word for at, word in positions if (position <= at < following) or (number == 0 and at < position)]
        letters = sum(map(len, group))
        begin_s, finish_s = (
            (min(max(sample, start), end) - start) / rate_hz for sample in samples[number : number + 2]
        )
        for word in group:
            width_s = (finish_s - begin_s) * len(word) / letters
            yield word, begin_s, begin_s + width_s
            begin_s, letters, finish_s = begin_s + width_s, letters - len(word), finish_s

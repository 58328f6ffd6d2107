"""Whisper's special tokens: which ids they have, and what transformers' `generate` is told about them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers.models.whisper.configuration_whisper import NON_SPEECH_TOKENS, NON_SPEECH_TOKENS_MULTI
from transformers.models.whisper.tokenization_whisper import LANGUAGES

ENGLISH_ONLY = 51_864  # tokens of the English-only models; the multilingual ones have one more for the empty text
LANGUAGE_COUNTS = (99, 100)
TIMESTAMPS = 1_501  # of 0.02 s, for 0 to 30 s
BLANK = 220  # the piece of one space, which no answer starts with
LATEST_FIRST_TIMESTAMP = 50  # 1 s, as released

END, START, TRANSLATE, TRANSCRIBE = "<|endoftext|>", "<|startoftranscript|>", "<|translate|>", "<|transcribe|>"
LM, PREVIOUS, NO_TIMESTAMPS = "<|startoflm|>", "<|startofprev|>", "<|notimestamps|>"
NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")  # two names of one token
RENAMED = {"<|iw|>": "<|he|>"}  # Hebrew; `generate` knows the new code
LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")


@dataclass(frozen=True, kw_only=True)
class WhisperTokens:
    """Special tokens, in the order of their ids, which follow those of the text's pieces."""

    multilingual: bool
    ids: dict[str, int]
    """Name -> id: all but the timestamps."""

    @property
    def end(self) -> int:
        """<|endoftext|>: so many pieces come before it."""
        return self.ids[END]

    def settings(self) -> dict[str, Any]:
        """For transformers' GenerationConfig, as the released models have it."""
        pieces = NON_SPEECH_TOKENS_MULTI if self.multilingual else NON_SPEECH_TOKENS
        control = {self.ids[name] for name in (START, TRANSLATE, TRANSCRIBE, LM, PREVIOUS)} | {self._no_speech}
        result = {
            "bos_token_id": self.end,
            "eos_token_id": self.end,
            "pad_token_id": self.end,
            "decoder_start_token_id": self.ids[START],
            "no_timestamps_token_id": self.ids[NO_TIMESTAMPS],
            "prev_sot_token_id": self.ids[PREVIOUS],
            "suppress_tokens": sorted({piece for piece in pieces if piece < self.end} | control),
            "begin_suppress_tokens": [BLANK, self.end] if self.end > BLANK else [self.end],
            "max_initial_timestamp_index": LATEST_FIRST_TIMESTAMP,
            "return_timestamps": False,
            "is_multilingual": self.multilingual,
        }
        if self.multilingual:
            languages = {
                RENAMED.get(name, name): number for name, number in self.ids.items() if LANGUAGE.fullmatch(name)
            }
            tasks = {"transcribe": self.ids[TRANSCRIBE], "translate": self.ids[TRANSLATE]}
            result |= {"lang_to_id": languages, "task_to_id": tasks}
        return result

    @property
    def _no_speech(self) -> int:
        return next(self.ids[name] for name in NO_SPEECH if name in self.ids)


def tokens_of_size(vocabulary: int) -> WhisperTokens | None:
    """Those of a released model, by the size of its vocabulary, as OpenAI's code derives them; else None."""
    multilingual = vocabulary > ENGLISH_ONLY
    languages = vocabulary - ENGLISH_ONLY + LANGUAGE_COUNTS[0] - multilingual
    if languages not in LANGUAGE_COUNTS or vocabulary < ENGLISH_ONLY:
        return None
    spoken = [f"<|{code}|>" for code in list(LANGUAGES)[:languages]]
    names = [END, START, *spoken, TRANSLATE, TRANSCRIBE, LM, PREVIOUS, NO_SPEECH[0], NO_TIMESTAMPS]
    first = vocabulary - TIMESTAMPS - len(names)
    return WhisperTokens(multilingual=multilingual, ids={name: first + at for at, name in enumerate(names)})


def tokens_by_name(vocabulary: Sequence[str]) -> WhisperTokens | None:
    """Those that a list of all tokens names; None where one is missing."""
    places = {name: at for at, name in enumerate(vocabulary)}
    needed = (END, START, TRANSLATE, TRANSCRIBE, LM, PREVIOUS, NO_TIMESTAMPS)
    if any(name not in places for name in needed) or not any(name in places for name in NO_SPEECH):
        return None
    if len(vocabulary) <= places[NO_TIMESTAMPS] or places[START] != places[END] + 1:
        return None
    special = list(vocabulary[places[END] : places[NO_TIMESTAMPS] + 1])
    ids = {name: places[END] + at for at, name in enumerate(special)}
    multilingual = "" in places or len(vocabulary) > ENGLISH_ONLY  # as CTranslate2, and OpenAI, tell them apart
    return WhisperTokens(multilingual=multilingual, ids=ids) if all(name in ids for name in needed) else None

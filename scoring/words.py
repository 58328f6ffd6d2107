"""Word, character and phone error rates, with Whisper's normalisers.

Edge cases: see `scoring/tasks.py`.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import jiwer

from scoring.captions import check_pairs
from support.command_line import UserError
from support.texts import require_texts


@dataclass(frozen=True, kw_only=True)
class WordErrors:
    """Errors of a corpus: total edits over total reference words (or characters, or phones)."""

    wer: float
    substitutions: int
    deletions: int
    insertions: int
    hits: int
    reference_words: int
    hypothesis_words: int

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions


@dataclass(frozen=True, kw_only=True)
class ClipErrors:
    """Errors of one clip, and the words of its reference."""

    errors: int
    reference_words: int


def wer(references: Sequence[str], hypotheses: Sequence[str], language: str = "en") -> WordErrors:
    """Word errors after Whisper's English normaliser (its basic one for other languages)."""
    return _errors(references, hypotheses, _word_splitter(language))


def wer_per_clip(references: Sequence[str], hypotheses: Sequence[str], language: str = "en") -> list[ClipErrors]:
    """The same counts clip by clip: their sums give `wer`, and draws among them its interval (scoring/intervals.py)."""
    return [
        ClipErrors(
            errors=sum(_edits(chunk) for chunk in chunks), reference_words=sum(_of_reference(chunk) for chunk in chunks)
        )
        for chunks in _aligned(references, hypotheses, _word_splitter(language)).alignments
    ]


def wer_nota(references: Sequence[str], hypotheses: Sequence[str]) -> WordErrors:
    """Word errors as the contest's evaluator counts them.

    Whisper's English normaliser, then sacreBLEU's 13a tokens in lower case, without tokens made only of punctuation: a
    currency sign before a number is a separate word, `%` is lost.
    """
    normalise, tokenize = english_normalizer(), _tokenizer_13a()

    def words(text: str) -> list[str]:
        tokens = tokenize(normalise(text)).lower().split()
        return [token for token in tokens if not all(unicodedata.category(char)[0] == "P" for char in token)]

    return _errors(references, hypotheses, words)


def cer(references: Sequence[str], hypotheses: Sequence[str]) -> WordErrors:
    """Character errors after Whisper's basic normaliser, spaces removed (for scripts without word spaces)."""
    normalise = _basic_normalizer(split_letters=True)
    return _errors(references, hypotheses, lambda text: list("".join(normalise(text).split())))


def per(references: Sequence[str], hypotheses: Sequence[str]) -> WordErrors:
    """Phone errors: symbols between spaces, ignoring case and stress digits (AH0)."""
    return _errors(references, hypotheses, lambda text: [re.sub(r"\d$", "", token) for token in text.lower().split()])


_NAMED_SPECIALS = (
    "s|pad|unk|bos|eos|mask|cls|sep|endoftext|begin_of_text|end_of_text|start_of_turn|end_of_turn|turn|eod|eot|eom"
    "|im_start|im_end|think|tool_call|tool_response|end_of_utterance|speech|speechhere|unused\\d+|extra_id_\\d+|reserved_\\w+|image|audio|start_of_image|end_of_image"
)


_SPECIAL = re.compile(
    rf"<[|｜][^<>|｜]*[|｜]>|</?(?:{_NAMED_SPECIALS})/?>|\[/?(?:PAD|CLS|SEP|UNK|MASK|BOS|EOS|INST)\]|<</?SYS>>",
    re.IGNORECASE,
)


def clean_hypothesis(text: str, special_tokens: Iterable[str] = ()) -> str:
    """The text without special tokens, spaces collapsed.

    Common spellings (``</s>``, ``<|im_end|>``, ``<end_of_turn>``, ``[PAD]`` …) are always removed; ``special_tokens``
    adds the tokenizer's own (``tokenizer.all_special_tokens``) and an end symbol.
    """
    if not isinstance(text, str):
        raise UserError(f"the hypothesis is {type(text).__name__}, expected a string")
    for token in sorted({token for token in special_tokens if token and token.strip()}, key=len, reverse=True):
        text = text.replace(token, " ")
    return " ".join(_SPECIAL.sub(" ", text).split())


@functools.cache
def english_normalizer() -> Callable[[str], str]:
    """Whisper's English normaliser; its table of spellings comes with the library."""
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


@functools.cache
def _basic_normalizer(split_letters: bool) -> Callable[[str], str]:
    from whisper_normalizer.basic import BasicTextNormalizer

    return BasicTextNormalizer(remove_diacritics=False, split_letters=split_letters)


@functools.cache
def _tokenizer_13a() -> Callable[[str], str]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


def check_texts(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    require_texts("references", references)
    require_texts("hypotheses", hypotheses)
    check_pairs([[text] for text in references], hypotheses)


def _word_splitter(language: str) -> Callable[[str], list[str]]:
    normalise = english_normalizer() if language == "en" else _basic_normalizer(split_letters=False)
    return lambda text: normalise(text).split()


def _errors(references: Sequence[str], hypotheses: Sequence[str], words: Callable[[str], list[str]]) -> WordErrors:
    """Corpus counts over the words of each text."""
    counts = _aligned(references, hypotheses, words)
    return WordErrors(
        wer=float(counts.wer),
        substitutions=counts.substitutions,
        deletions=counts.deletions,
        insertions=counts.insertions,
        hits=counts.hits,
        reference_words=counts.hits + counts.substitutions + counts.deletions,
        hypothesis_words=counts.hits + counts.substitutions + counts.insertions,
    )


def _aligned(
    references: Sequence[str], hypotheses: Sequence[str], words: Callable[[str], list[str]]
) -> jiwer.WordOutput:
    """jiwer's alignment of each pair."""
    check_texts(references, hypotheses)
    # Ids instead of words: jiwer would split and strip the words' own characters again.
    ids: dict[str, str] = {}

    def encoded(text: str) -> str:
        return " ".join(ids.setdefault(word, str(len(ids))) for word in words(text))

    return jiwer.process_words([encoded(text) for text in references], [encoded(text) for text in hypotheses])


def _of_reference(chunk: jiwer.AlignmentChunk) -> int:
    return chunk.ref_end_idx - chunk.ref_start_idx


def _edits(chunk: jiwer.AlignmentChunk) -> int:
    """Words of a stretch of an alignment that differ; an insertion has none of the reference."""
    return 0 if chunk.type == "equal" else max(_of_reference(chunk), chunk.hyp_end_idx - chunk.hyp_start_idx)

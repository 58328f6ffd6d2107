"""References and hypotheses in, scores out.

Corpus-level figures with the counts behind them. Decided edge cases: an empty hypothesis counts every reference word as
deleted; an empty reference adds insertions to the numerator only; when all references are empty the error rate is the
number of inserted words, as jiwer has it (0.0 if there are none either); unequal counts, or nothing to score, is a
``ValueError``. Text is Unicode throughout. Caption scores live in :mod:`caption_metrics` and are reached from here.
"""

from __future__ import annotations

import functools
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import jiwer

from caption_metrics import (
    Bleu,
    MetricUnavailable,
    bleu,
    check_pairs,
    cider_d,
    cider_d_per_clip,
    cider_d_x100,
    meteor,
    meteor_or_raise,
    ptb_tokenize,
    rouge_l,
    spice,
    spice_or_raise,
    spider,
    unavailable,
)

__all__ = [
    "Bleu", "MetricUnavailable", "Scores", "WordErrors", "accuracy", "bleu", "cer", "cider_d", "cider_d_per_clip",
    "cider_d_x100", "clean_hypothesis", "directions", "english_normalizer", "meteor", "per", "primary_metric",
    "ptb_tokenize", "rouge_l", "score", "score_with_reasons", "spice", "spider", "token_f1", "translation_bleu",
    "unavailable", "wer", "wer_nota",
]  # fmt: skip


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
class Scores:
    """The figures of one task; ``reasons`` says why a value is ``None`` (or 0 by definition)."""

    values: dict[str, float | None]
    reasons: dict[str, str]


def wer(references: Sequence[str], hypotheses: Sequence[str], language: str = "en") -> WordErrors:
    """Word errors after Whisper's English normaliser (its basic one for other languages)."""
    normalise = english_normalizer() if language == "en" else _basic_normalizer(split_letters=False)
    return _errors(references, hypotheses, lambda text: normalise(text).split())


def wer_nota(references: Sequence[str], hypotheses: Sequence[str]) -> WordErrors:
    """Word errors as the contest's evaluator counts them.

    Whisper's English normaliser, then sacreBLEU's 13a tokens in lower case, without tokens made only of punctuation: a
    currency sign before a number is a word of its own, `%` is lost.
    """
    normalise, tokenize = english_normalizer(), _tokenizer_13a()

    def words(text: str) -> list[str]:
        tokens = tokenize(normalise(text)).lower().split()
        return [token for token in tokens if not all(unicodedata.category(char)[0] == "P" for char in token)]

    return _errors(references, hypotheses, words)


def cer(references: Sequence[str], hypotheses: Sequence[str]) -> WordErrors:
    """Character errors after Whisper's basic normaliser, blanks left out (for scripts without word spaces)."""
    normalise = _basic_normalizer(split_letters=True)
    return _errors(references, hypotheses, lambda text: list("".join(normalise(text).split())))


def per(references: Sequence[str], hypotheses: Sequence[str]) -> WordErrors:
    """Phone errors: symbols between blanks, upper and lower case alike, stress digits (AH0) left out."""
    return _errors(references, hypotheses, lambda text: [re.sub(r"\d$", "", token) for token in text.lower().split()])


def accuracy(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Share of hypotheses equal to their reference, case, punctuation, accents' form and blanks aside."""
    _check_texts(references, hypotheses)
    pairs = zip(references, hypotheses, strict=True)
    return sum(_answer_words(a) == _answer_words(b) for a, b in pairs) / len(references)


def token_f1(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Mean overlap of words between answer and reference (F1 as in SQuAD); two empty texts agree."""
    _check_texts(references, hypotheses)

    def f1(reference: list[str], hypothesis: list[str]) -> float:
        if not reference or not hypothesis:
            return float(reference == hypothesis)
        return 2 * sum((Counter(reference) & Counter(hypothesis)).values()) / (len(reference) + len(hypothesis))

    pairs = zip(references, hypotheses, strict=True)
    return sum(f1(_answer_words(a), _answer_words(b)) for a, b in pairs) / len(references)


def translation_bleu(references: Sequence[Sequence[str]], hypotheses: Sequence[str], tokenize: str = "13a") -> float:
    """sacreBLEU corpus score, 0 to 100. ``tokenize`` is 13a for spaced scripts, zh, or char (Japanese, no MeCab)."""
    check_pairs(references, hypotheses)
    try:
        import sacrebleu
    except ImportError as error:
        raise MetricUnavailable(f"translation BLEU needs sacrebleu ({error}); `pip install sacrebleu`") from error
    most = max(len(several) for several in references)
    streams = [[several[i] if i < len(several) else None for several in references] for i in range(most)]
    return float(sacrebleu.corpus_bleu(list(hypotheses), streams, tokenize=tokenize).score)


_NAMED_SPECIALS = (
    "s|pad|unk|bos|eos|mask|cls|sep|endoftext|begin_of_text|end_of_text|start_of_turn|end_of_turn|turn|eod|eot|eom"
    "|im_start|im_end|think|tool_call|tool_response|end_of_utterance|speech|speechhere|unused\\d+|extra_id_\\d+|reserved_\\w+|image|audio|start_of_image|end_of_image"
)
_SPECIAL = re.compile(
    rf"<[|｜][^<>|｜]*[|｜]>|</?(?:{_NAMED_SPECIALS})/?>|\[/?(?:PAD|CLS|SEP|UNK|MASK|BOS|EOS|INST)\]|<</?SYS>>",
    re.IGNORECASE,
)


def clean_hypothesis(text: str, special_tokens: Iterable[str] = ()) -> str:
    """The text without any special token, blanks collapsed.

    Known spellings (``</s>``, ``<|im_end|>``, ``<end_of_turn>``, ``[PAD]`` …) always go; ``special_tokens`` adds the
    tokenizer's own (``tokenizer.all_special_tokens``) and an end symbol.
    """
    for token in sorted({token for token in special_tokens if token.strip()}, key=len, reverse=True):
        text = text.replace(token, " ")
    return " ".join(_SPECIAL.sub(" ", text).split())


# ---------------------------------------------------------------------------------------------------------------------
# Tasks


def _score_words(references: list[list[str]], hypotheses: list[str]) -> dict[str, float | None]:
    first = [several[0] for several in references]
    errors = wer(first, hypotheses)
    return {
        "wer": errors.wer,
        "wer_nota": wer_nota(first, hypotheses).wer,
        "substitutions": errors.substitutions,
        "deletions": errors.deletions,
        "insertions": errors.insertions,
        "reference_words": errors.reference_words,
    }


def _score_foreign_words(references: list[list[str]], hypotheses: list[str]) -> dict[str, float | None]:
    first = [several[0] for several in references]
    errors = wer(first, hypotheses, language="other")
    return {"wer": errors.wer, "cer": cer(first, hypotheses).wer, "reference_words": errors.reference_words}


def _score_characters(references: list[list[str]], hypotheses: list[str]) -> dict[str, float | None]:
    errors = cer([several[0] for several in references], hypotheses)
    return {"cer": errors.wer, "reference_characters": errors.reference_words}


def _score_phones(references: list[list[str]], hypotheses: list[str]) -> dict[str, float | None]:
    errors = per([several[0] for several in references], hypotheses)
    return {"per": errors.wer, "reference_phones": errors.reference_words}


def _score_answers(references: list[list[str]], hypotheses: list[str]) -> dict[str, float | None]:
    first = [several[0] for several in references]
    return {"accuracy": accuracy(first, hypotheses), "token_f1": token_f1(first, hypotheses)}


def _score_classes(references: list[list[str]], hypotheses: list[str]) -> dict[str, float | None]:
    return {"accuracy": accuracy([several[0] for several in references], hypotheses)}


def _score_translation(tokenize: str) -> Callable[[list[list[str]], list[str]], dict[str, float | None]]:
    def compute(references: list[list[str]], hypotheses: list[str]) -> dict[str, float | None]:
        return {"bleu": translation_bleu(references, hypotheses, tokenize)}

    return compute


def _score_captions(references: list[list[str]], hypotheses: list[str]) -> dict[str, float | None]:
    return {
        "cider_d": cider_d(references, hypotheses),
        "cider_d_x100": cider_d_x100(references, hypotheses),
        **bleu(references, hypotheses)._asdict(),
        "rouge_l": rouge_l(references, hypotheses),
    }


@dataclass(frozen=True, kw_only=True)
class TaskMetrics:
    """How a kind of task is scored: the metric that picks the best checkpoint, its direction, the computation."""

    primary: str
    direction: str
    compute: Callable[[list[list[str]], list[str]], dict[str, float | None]]
    java: bool = False


_WORDS = TaskMetrics(primary="wer", direction="min", compute=_score_words)
_CAPTIONS = TaskMetrics(primary="cider_d", direction="max", compute=_score_captions, java=True)
_ANSWERS = TaskMetrics(primary="accuracy", direction="max", compute=_score_answers)
_CLASSES = TaskMetrics(primary="accuracy", direction="max", compute=_score_classes)

TASKS: dict[str, TaskMetrics] = {
    "asr": _WORDS,
    "asr_zh": TaskMetrics(primary="cer", direction="min", compute=_score_characters),
    "asr_ja": TaskMetrics(primary="cer", direction="min", compute=_score_characters),
    "asr_de": TaskMetrics(primary="wer", direction="min", compute=_score_foreign_words),
    "asr_nl": TaskMetrics(primary="wer", direction="min", compute=_score_foreign_words),
    "lyrics_recognition": _WORDS,
    "speech_separation": _WORDS,
    "speaker_diarization_asr": _WORDS,
    "phone_recognition": TaskMetrics(primary="per", direction="min", compute=_score_phones),
    "translation_ec": TaskMetrics(primary="bleu", direction="max", compute=_score_translation("zh")),
    "translation_en2ja": TaskMetrics(primary="bleu", direction="max", compute=_score_translation("char")),
    "translation_en2de": TaskMetrics(primary="bleu", direction="max", compute=_score_translation("13a")),
    "audiocaption": _CAPTIONS,
    "audiocaption_v2": _CAPTIONS,
    "music_description": _CAPTIONS,
    "audio_speech_description": _CAPTIONS,
    "fluent_speech_audio": _CAPTIONS,
    "audio_story_telling": _CAPTIONS,
    "QA": _ANSWERS,
    "gender_QA": _ANSWERS,
    "speech_query": _ANSWERS,
    "speech_audio_query": _ANSWERS,
    "speech_audio_coreasoning": _ANSWERS,
    "slot_filling": _ANSWERS,
    "keywords": _ANSWERS,
    "gender_recognition": _CLASSES,
    "emotion_recognition": _CLASSES,
    "speaker_verification": _CLASSES,
}

_LOWER_IS_BETTER = frozenset({"wer", "wer_nota", "cer", "per", "substitutions", "deletions", "insertions", "loss"})
_COUNTS = frozenset({"reference_words", "reference_characters", "reference_phones"})


def task_metrics(task: str) -> TaskMetrics:
    """The row of ``TASKS`` for a task; a variant (``audiocaption_clotho``) takes the row that its name begins with.

    Raises:
        ValueError: no row fits; add one to ``TASKS``.
    """
    if task in TASKS:
        return TASKS[task]
    stems = [stem for stem in ("asr", "audiocaption", "QA") if task.startswith(stem + "_")]
    if not stems:
        raise ValueError(f"no metric for task {task!r}; known tasks: {', '.join(TASKS)}; add a row to metrics.TASKS")
    # An unlisted language cannot be sent through English spelling rules.
    return TASKS["asr_de"] if re.fullmatch(r"asr_[a-z]{2}", task) and task != "asr_en" else TASKS[stems[0]]


def primary_metric(task: str) -> tuple[str, str]:
    """The metric that decides which checkpoint is best, and its direction: ``("wer", "min")``."""
    row = task_metrics(task)
    return row.primary, row.direction


def directions(names: Iterable[str]) -> dict[str, str]:
    """Which way each metric is better: ``min`` or ``max``; counts are left out."""
    return {name: "min" if name in _LOWER_IS_BETTER else "max" for name in names if name not in _COUNTS}


def score(
    task: str, references: Sequence[str] | Sequence[Sequence[str]], hypotheses: Sequence[str]
) -> dict[str, float | None]:
    """All figures of a task; ``None`` where one cannot be computed here (:func:`score_with_reasons` says why)."""
    return score_with_reasons(task, references, hypotheses).values


def score_with_reasons(
    task: str,
    references: Sequence[str] | Sequence[Sequence[str]],
    hypotheses: Sequence[str],
    java: bool = True,
) -> Scores:
    """All figures of a task and, for each ``None``, the reason.

    Args:
        references: one string a clip, or a list of several.
        java: whether METEOR and SPICE may start their Java programs (they take seconds; off during training).
    """
    row = task_metrics(task)
    several = [[item] if isinstance(item, str) else list(item) for item in references]
    check_pairs(several, hypotheses)
    reasons: dict[str, str] = {}
    try:
        values = row.compute(several, list(hypotheses))
    except MetricUnavailable as error:
        values = {row.primary: None}
        reasons[row.primary] = str(error)
    if row.java:
        java_values, java_reasons = _score_java(several, hypotheses, values.get("cider_d"), java)
        values.update(java_values)
        reasons.update(java_reasons)
    if values.get("cider_d") is not None and len(hypotheses) == 1:
        reasons["cider_d"] = reasons["cider_d_x100"] = "0 by definition: one clip has no document frequencies"
    return Scores(values=values, reasons=reasons)


def _score_java(
    references: list[list[str]], hypotheses: Sequence[str], cider: float | None, allowed: bool
) -> tuple[dict[str, float | None], dict[str, str]]:
    values: dict[str, float | None] = {"meteor": None, "spice": None, "spider": None}
    if not allowed:
        return values, dict.fromkeys(values, "not computed: Java metrics are switched off for this run")
    reasons: dict[str, str] = {}
    for name, compute in (("meteor", meteor_or_raise), ("spice", spice_or_raise)):
        try:
            values[name] = compute(references, hypotheses)
        except MetricUnavailable as error:
            reasons[name] = str(error)
    if values["spice"] is None or cider is None:
        missing = "spice" if values["spice"] is None else "cider_d"
        reasons["spider"] = f"SPIDEr is (CIDEr-D + SPICE) / 2 and {missing} is null"
    else:
        values["spider"] = (cider + values["spice"]) / 2
    return values, reasons


# ---------------------------------------------------------------------------------------------------------------------
# Normalisers and counting


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


def _answer_words(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", text).casefold()
    text = "".join(" " if char in string.punctuation or unicodedata.category(char)[0] == "P" else char for char in text)
    return text.split()


def _check_texts(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    for name, values in (("references", references), ("hypotheses", hypotheses)):
        if isinstance(values, str):
            raise ValueError(f"{name} is one string, expected a list with one entry a clip; wrap it in a list")
        wrong = next((index for index, value in enumerate(values) if not isinstance(value, str)), None)
        if wrong is not None:
            raise ValueError(f"{name}[{wrong}] is {type(values[wrong]).__name__}, expected a string")
    check_pairs([[text] for text in references], hypotheses)


def _errors(references: Sequence[str], hypotheses: Sequence[str], words: Callable[[str], list[str]]) -> WordErrors:
    """Corpus counts over the words of each text; jiwer finds the alignments."""
    _check_texts(references, hypotheses)
    # Ids in place of words: jiwer would split and strip the words' own characters again.
    ids: dict[str, str] = {}

    def encoded(text: str) -> str:
        return " ".join(ids.setdefault(word, str(len(ids))) for word in words(text))

    counts = jiwer.process_words([encoded(text) for text in references], [encoded(text) for text in hypotheses])
    return WordErrors(
        wer=float(counts.wer),
        substitutions=counts.substitutions,
        deletions=counts.deletions,
        insertions=counts.insertions,
        hits=counts.hits,
        reference_words=counts.hits + counts.substitutions + counts.deletions,
        hypothesis_words=counts.hits + counts.substitutions + counts.insertions,
    )

"""The LLM stand-in's tokenizer: one piece for every word of its answers, letters and fragments for all others."""

import json
from collections import Counter
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from transformers import PreTrainedTokenizerFast

from data.demo.captions import KINDS, captions, noun
from data.demo.language import WORDS
from data.demo.sounds import CONTOURS, TEMPOS

SIZE = 1_216
"""Pieces, a multiple of 64."""
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
SPACE = "▁"
_OTHER_WORDS = (
    "yes", "no", "male", "female", "man", "woman", "first", "last", "one", "two", "who", "says", "say", "said",
    "intent", "name", "day", "time", "hour", "minutes", "number", "state", "color", "room", "lights", "timer", "a",
    "an", "the", "of", "with", "and", "to", "in", "on", "is", "are", "it", "this", "that", "there", "what", "which",
    "how", "many", "much", "can", "you", "hear", "heard", "here", "sound", "sounds", "speech", "speaker", "speakers",
    "spoken", "audio", "recording", "clip", "music", "melody", "words", "word", "text", "write", "down", "describe",
    "answer", "question", "about", "list", "keywords", "find", "transcribe", "give", "tell", "same", "does", "do",
    "or", "be", "by", "for", "from", "being", "been", "passing", "people", "someone", "their", "your", "please",
    "listen", "every", "out", "all", "both", "other", "only", "its", "airplane", "baby", "brushing", "buzzing",
    "cawing", "chainsaw", "chirping", "cleaner", "clicking", "clucking", "coughing", "cow", "creaking", "crickets",
    "crackling", "croaking", "crow", "crowing", "crying", "cutting", "drinking", "exploding", "fire", "fireworks",
    "flushed", "flying", "glass", "grunting", "hand", "hen", "honking", "horn", "insects", "keyboard", "laughing",
    "machine", "mooing", "opened", "pig", "poured", "rooster", "running", "saw", "sea", "sheep", "bleating",
    "sneezing", "snoring", "teeth", "thunderstorm", "toilet", "train", "vacuum", "washing", "waves", "wooden", "car",
    "can", "birds", "breaking", "breathing", "church", "bells", "computer", "footsteps", "keyboard", "knocking",
    "meowing", "wailing", "alarm", "ringing",
)  # fmt: skip
_MARKS = ("USER:", "ASSISTANT:", "\nASSISTANT:", "<Speech>", "</Speech>")
_IPA = "æɑɐɒɔəɚɛɜɝɡɪɫɬɱŋɹɾʃʊʌʍʒʔθðːɵʉɲʰʲ̩"


def texts() -> list[str]:
    """All texts of the demo's answers, for counting words and fragments."""
    lines = [*WORDS, *CONTOURS, *TEMPOS, *_OTHER_WORDS, *KINDS]
    for a in KINDS:
        lines += [*captions("single", (a,)), noun(a)]
        for b in KINDS[:6]:
            lines += [*captions("then", (a, b)), *captions("while", (a, b))]
    return lines


def instruction_words(folder: Path) -> list[str]:
    """The most frequent words of the instructions, so that prompts are short."""
    counts: Counter[str] = Counter()
    for name in ("train.json", "test.json"):
        for prompts in json.loads((folder / name).read_text(encoding="utf-8")).values():
            for prompt in [prompts] if isinstance(prompts, str) else prompts:
                counts.update(word for word in prompt.split()[1:] if word.isascii())
    return [word for word, count in counts.most_common() if count >= 2]


def build_tokenizer(prompts: Path = Path("prompts")) -> PreTrainedTokenizerFast:
    """A unigram model whose scores make the longest piece win; nothing is trained, so it is always the same."""
    words = {word.strip(",.") for line in texts() for word in line.split()} | set(WORDS)
    letters = [chr(code) for code in range(33, 127)] + ["\n"] + list(_IPA)
    pieces: dict[str, float] = {SPACE: -8.0}
    pieces |= dict.fromkeys(letters, -12.0)
    pieces |= {SPACE + word: -4.0 for word in sorted(words)}
    pieces |= dict.fromkeys(_MARKS, -3.0) | {SPACE + mark: -3.0 for mark in _MARKS}
    for word in instruction_words(prompts):
        if len(pieces) < SIZE - 160:
            pieces.setdefault(SPACE + word, -5.0)
    fragments: Counter[str] = Counter()
    for word in words:
        marked = SPACE + word
        for size in (2, 3, 4):
            fragments.update(marked[i : i + size] for i in range(len(marked) - size + 1))
    for fragment, _ in sorted(fragments.items(), key=lambda item: (-item[1] * len(item[0]), item[0])):
        if len(pieces) == SIZE - len(SPECIAL):
            break
        pieces.setdefault(fragment, -11.0 - 2.0 / len(fragment))
    assert len(pieces) == SIZE - len(SPECIAL), len(pieces)
    tokenizer = Tokenizer(Unigram([(token, 0.0) for token in SPECIAL] + list(pieces.items()), unk_id=0))
    tokenizer.pre_tokenizer = Metaspace(replacement=SPACE, prepend_scheme="first", split=True)
    tokenizer.decoder = MetaspaceDecoder(replacement=SPACE, prepend_scheme="first", split=True)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    unk, bos, eos, pad = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unk, bos_token=bos, eos_token=eos, pad_token=pad,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip

"""Caption scores: CIDEr-D, BLEU, ROUGE-L, METEOR, SPICE, SPIDEr over several references per clip.

References are ``list[list[str]]`` (one inner list per clip), hypotheses ``list[str]``. Texts are tokenised by
:func:`ptb_tokenize`, a Python version of the Stanford tokenizer that the COCO caption tools run in Java, so
CIDEr-D, BLEU and ROUGE-L need no Java. METEOR and SPICE are Java programs; where they cannot run the score is ``None``,
:func:`unavailable` gives the reason, and no call waits longer than its time limit.

Decided edge cases: an empty hypothesis scores 0; an empty reference is a reference without n-grams; when the
references of a whole corpus are empty CIDEr-D is 0; with one clip CIDEr-D is 0 by its definition (its inverse document
frequency is ln 1); no clips, or unequal counts, is a ``ValueError``.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from support.texts import require_list, require_texts

METEOR_TIMEOUT_S = 300.0
SPICE_TIMEOUT_S = 1800.0

# The 17 tokens that the COCO tools drop after tokenising, plus the typographic forms that the Stanford tokenizer first
# turns into one of them. The brackets are listed there in capitals but come out in lower case, so they stay as words.
_DROPPED = frozenset("'\"`.?!,:-;“”‘’«»‹›…–—") | {"''", "``", "--", "..."}
_SPELT = {"(": "-lrb-", ")": "-rrb-", "{": "-lcb-", "}": "-rcb-", "[": "-lsb-", "]": "-rsb-", "£": "#", "€": "$"}
_SPELT |= {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "¤": "$", "¢": "cents"}

# The Stanford tokenizer deletes unknown characters, with a warning, so that words end there: emoji and all else beyond
# the basic plane, joiners, variation selectors, direction marks, symbols without a rule.
_DELETED = re.compile(
    "[\x7f\x81-\x84\x86-\x9f\u200b-\u200f\u2012\u2015\u201b\u2024\u2025\u2027\u202a-\u202e\u203c\u203d\u2043"
    "\u2045-\u206f\u2072\u2073\u208f\u209d-\u20a3\u20a5-\u20ab\u20ad-\u20ff\u2150-\u2152\u215f-\u2182\u2185-\u218f"
    "\u2e00-\u2e2e\u2e30-\u2e7f\ud800-\uf8ff\ufe00-\ufe6f\ufefd-\uff00\ufff0-\uffff\U00010000-\U0010ffff]"
)
# Digits for Python's regular expressions, but separate tokens there: superscripts, fractions, encircled digits.
_APART = re.compile("([\xb2\xb3\xb9\xbc-\xbe\u2070-\u2089\u2153-\u215e\u2460-\u249b\u24ea-\u24ff\u2776-\u2793¢])")
_ENTITIES = {"&amp;": "&", "&lt;": " < ", "&gt;": " > ", "&quot;": '"', "&apos;": "'", "&nbsp;": " "}

# After an acronym or initial, one of these words begins a new sentence, so that the full stop is not the initial's.
_STARTERS = (
    "A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More|Mr\\.|Ms\\."
    "|Now|Once|One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|When|While|What|Yet|You"
)
_LETTER = r"(?:[^\W_][\u0300-\u036f]*)"  # or digit, and the accents on it
_PTB_TOKEN = re.compile(
    rf"""
      (?-i:[<>]?[:;=][-o*']?[()DPdpO\\{{@|\[\]])(?=[^a-z])                       # smileys
    | c\+\+ | [cf]\#                                                           # languages
    | </?[a-z!][^<>\s]*>                                                       # markup: <s>
    | (?:https?://|www\.)[^\s<>"|(){{}}]*[^\s<>"|(){{}}.,;:!?'-]               # addresses
    | [\w.+-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)+ | [#@][a-z]\w*
    | can(?=not\b) | gon(?=na\b) | wan(?=na\b) | got(?=ta\b) | gim(?=me\b) | lem(?=me\b)
    | (?<!\w)'t(?=(?:is|was)\b)
    | n['’]t(?!\w) | ['’](?:s|m|d|ll|re|ve)(?!\w)                              # do n't, it 's
    | (?<=\w)['’]n['’](?=\w) | ['’]n['’]?(?!\w) | ['’](?:em|cause|till?|[2-9]0s)(?!\w)
    | ol['’] | y['’](?=all\b) | [cd]['’](?:mon|ye)(?!\w) | nor['’]easter | s['’]mores | cont['’]d
    | [ldjo]['’][^\W\d_]{{2,}} | [^\W\d_]*[aeiouy]['’][aeiou](?!['’])[^\W\d_]* | ma['’]am | ne?['’]er
    | (?:mr|mrs|ms|dr|prof|st|jr|sr|vs|etc|inc|ltd|co|cos|corp|gov|sen|rep|gen|col|capt|lt|maj|sgt|rev|mt|ft|ave|blvd
       |rd|bros|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tue|wed|thu|fri|hon|pres|adm|cmdr|ph\.d|est|tel|dept
       |univ|assn|cie|al|bldg|cf|pvt|plc)\.(?!\w)
    | no\.(?=\s?\d)
    | (?:[a-z]\.){{2,}}(?!{_LETTER}) | (?<!\w&)[a-z]\.(?!\s(?-i:{_STARTERS})\s)(?=\s|$)    # u.s., initials
    | (?<![\w-])[+-]?\d*[.:,]\d+(?:[.:,]\d+)* | (?<=[a-z])\.\d+(?=\W) | (?:\+|(?<![\w-])-)\d+(?![\w-])
    | {_LETTER}+(?:-{_LETTER}+)*(?:/{_LETTER}+(?:-{_LETTER}+)*)+                           # and/or, 1/2
    | [^\W\d_]+(?:\.[^\W\d_]+)+                                                # word.word
    | (?-i:[A-Z]+(?:[&+][A-Z]+)+)(?!\w) | {_LETTER}+(?:_{_LETTER}+)+                 # R&B; snake_case
    | (?:{_LETTER}+-)*(?:{_LETTER}(?!['’]t(?!\w)))+(?:-(?:{_LETTER}(?!['’]t(?!\w)))+)*   # words, stopping before n't
    | \*+ | [!?]{{2,}} | \.{{2,}} | -{{2,}} | \S
    """,
    re.IGNORECASE | re.VERBOSE,
)


class MetricUnavailable(RuntimeError):
    """A score cannot be computed on this machine; the message says why and how to fix it."""


class Bleu(NamedTuple):
    """Corpus BLEU with closest reference length, for n-grams up to 1, 2, 3 and 4."""

    bleu_1: float
    bleu_2: float
    bleu_3: float
    bleu_4: float


def ptb_tokenize(texts: Sequence[str]) -> list[str]:
    """Lower-cased Penn Treebank tokens without punctuation, joined by spaces, one string per text.

    The texts are read as the lines of one document, as the COCO tools do: a text that ends in an initial ("… in a.")
    keeps its full stop unless the next text begins with a word such as "The". Equal to the Java tool's output on the
    AudioCaps captions; rare tokens (mixed fractions "3 1/2", "^_^") are split differently.
    """
    lines = [_plain(text) for text in texts]
    document = "\n".join(lines)
    tokens: list[list[str]] = [[] for _ in lines]
    line, line_end = 0, len(lines[0]) if lines else 0
    for match in _PTB_TOKEN.finditer(document):
        while match.start() >= line_end + 1:
            line += 1
            line_end += 1 + len(lines[line])
        token = _spelt(match.group())
        if token in _DROPPED or not token.strip(".") or not token.strip("-"):
            continue
        tokens[line].append(token.replace("’", "'"))
    return [" ".join(row) for row in tokens]


def _plain(text: str) -> str:
    """The text on one line, without characters that the Stanford tokenizer deletes."""
    for entity, character in _ENTITIES.items():
        text = text.replace(entity, character)
    return " ".join(_APART.sub(r" \1 ", _DELETED.sub(" ", text.replace("\xad", ""))).split())


def _spelt(token: str) -> str:
    """A token as the Stanford tokenizer writes it: lower-cased, brackets by name, in smileys too."""
    brackets = token[0] in "<>:;=" and len(token) > 1
    return ("".join(_SPELT.get(each, each) for each in token) if brackets else _SPELT.get(token, token)).lower()


def check_pairs(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> None:
    """Raise ``ValueError`` unless there is one non-empty list of references for each of one or more hypotheses."""
    require_list("references", references)
    require_texts("hypotheses", hypotheses)
    if len(references) != len(hypotheses):
        raise ValueError(
            f"{len(references)} references but {len(hypotheses)} hypotheses; both need one entry per clip, in order"
        )
    if len(hypotheses) == 0:  # of an array, the truth is not that
        raise ValueError("no clips to score: references and hypotheses are empty lists")
    for index, several in enumerate(references):
        if isinstance(several, str):
            raise ValueError(f"references[{index}] is a string, expected the list of that clip's references")
        require_texts(f"references[{index}]", several)
        if len(several) == 0:
            raise ValueError(f"references[{index}] is an empty list, expected at least one reference")


def cider_d(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> float:
    """CIDEr-D (0 to 10) of a corpus; document frequencies are those of the references."""
    items = cider_d_per_clip(references, hypotheses)
    return sum(items) / len(items)


def cider_d_per_clip(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> list[float]:
    """CIDEr-D of each clip, with document frequencies from all of them."""
    return _cider(*_tokenized(references, hypotheses))


def cider_d_x100(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> float:
    """100 x CIDEr-D over the first reference, words split at blanks, only hypotheses lower-cased.

    Some evaluators print this figure under the name SPIDEr. Case and punctuation of the references count against the
    model, so it does not measure quality by itself; it is for comparison with figures that were printed that way.
    """
    check_pairs(references, hypotheses)
    return 100.0 * _mean(_cider([[several[0]] for several in references], [text.lower() for text in hypotheses]))


def bleu(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> Bleu:
    """Corpus BLEU-1 to BLEU-4 (0 to 1), brevity against the closest reference length."""
    scorer = _pycocoevalcap("bleu.bleu").Bleu(4)
    score, _ = scorer.compute_score(*_by_id(*_tokenized(references, hypotheses)), verbose=0)
    return Bleu(*(float(value) for value in score))


def rouge_l(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> float:
    """Mean ROUGE-L (0 to 1), beta 1.2, maximum precision and maximum recall over the references separately."""
    scorer = _pycocoevalcap("rouge.rouge").Rouge()
    tokens = _tokenized(references, hypotheses)
    scores = [
        scorer.calc_score([hypothesis], several) if hypothesis else 0.0
        for several, hypothesis in zip(*tokens, strict=True)
    ]
    return float(_mean(scores))


def meteor(
    references: Sequence[Sequence[str]], hypotheses: Sequence[str], timeout_s: float = METEOR_TIMEOUT_S
) -> float | None:
    """Corpus METEOR 1.5 (0 to 1), or ``None`` where :func:`unavailable` gives a reason."""
    return _or_none(meteor_or_raise, references, hypotheses, timeout_s)


def spice(
    references: Sequence[Sequence[str]], hypotheses: Sequence[str], timeout_s: float = SPICE_TIMEOUT_S
) -> float | None:
    """Mean SPICE F-score (0 to 1), or ``None`` where :func:`unavailable` gives a reason."""
    return _or_none(spice_or_raise, references, hypotheses, timeout_s)


def spider(
    references: Sequence[Sequence[str]], hypotheses: Sequence[str], timeout_s: float = SPICE_TIMEOUT_S
) -> float | None:
    """SPIDEr = (CIDEr-D + SPICE) / 2 and nothing else; ``None`` when SPICE is."""
    semantic = spice(references, hypotheses, timeout_s)
    return None if semantic is None else (cider_d(references, hypotheses) + semantic) / 2


def meteor_or_raise(
    references: Sequence[Sequence[str]], hypotheses: Sequence[str], timeout_s: float = METEOR_TIMEOUT_S
) -> float:
    """As :func:`meteor`, raising :class:`MetricUnavailable` with the reason."""
    several, tokens = _tokenized(references, hypotheses)
    _require("meteor")
    lines = [
        " ||| ".join(["SCORE", *(reference.replace("|||", " ") for reference in row), hypothesis.replace("|||", " ")])
        for row, hypothesis in zip(several, tokens, strict=True)
    ]
    folder = _package_folder() / "meteor"
    command = [
        "java",
        "-Dfile.encoding=UTF-8",
        "-Xmx2G",
        "-jar",
        "meteor-1.5.jar",
        "-",
        "-",
        "-stdio",
        "-l",
        "en",
        "-norm",
    ]
    return _meteor_dialogue(command, folder, lines, timeout_s)


def _meteor_dialogue(command: list[str], folder: Path, lines: list[str], timeout_s: float) -> float:
    """Ask METEOR for each line's statistics, then for the score of all of them: its corpus score is not the mean."""
    process = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
    )
    timer = threading.Timer(timeout_s, process.kill)
    timer.start()
    try:
        assert process.stdin is not None and process.stdout is not None

        def ask(line: str, answers: int) -> list[str]:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            return [process.stdout.readline().strip() for _ in range(answers)]

        statistics = [ask(line, 1)[0] for line in lines]
        answers = ask(" ||| ".join(["EVAL", *statistics]), len(lines) + 1)
        return float(answers[-1])
    except (ValueError, OSError) as error:
        late = "" if timer.is_alive() else f" within {timeout_s:.0f} s"
        raise MetricUnavailable(f"METEOR's Java program gave no score{late} ({error})") from error
    finally:
        timer.cancel()
        process.kill()
        process.communicate()


def spice_or_raise(
    references: Sequence[Sequence[str]], hypotheses: Sequence[str], timeout_s: float = SPICE_TIMEOUT_S
) -> float:
    """As :func:`spice`, raising :class:`MetricUnavailable` with the reason. Never downloads its models."""
    several, tokens = _tokenized(references, hypotheses)
    _require("spice")
    # Java 17 denies reflection into the packages that SPICE's serialiser needs.
    packages = [f"java.base/java.{name}" for name in ("lang", "util", "util.concurrent", "math", "net", "text", "io")]
    options = " ".join(f"--add-opens={name}=ALL-UNNAMED" for name in [*packages, "java.sql/java.sql"])
    environment = {**os.environ, "JDK_JAVA_OPTIONS": f"{os.environ.get('JDK_JAVA_OPTIONS', '')} {options}".strip()}
    with tempfile.TemporaryDirectory(prefix="spice-") as folder:
        asked, answered = Path(folder, "in.json"), Path(folder, "out.json")
        items = [
            {"image_id": index, "test": test, "refs": refs}
            for index, (refs, test) in enumerate(zip(several, tokens, strict=True))
        ]
        asked.write_text(json.dumps(items), encoding="utf-8")
        command = [
            "java",
            "-Dfile.encoding=UTF-8",
            "-Xmx8G",
            "-jar",
            "spice-1.0.jar",
            str(asked),
            "-out",
            str(answered),
            "-subset",
            "-silent",
        ]
        try:
            subprocess.run(
                command,
                cwd=_package_folder() / "spice",
                env=environment,
                check=True,
                timeout=timeout_s,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
            )
            results = json.loads(answered.read_text(encoding="utf-8"))
            return _mean([float(item["scores"]["All"]["f"]) for item in results])
        except subprocess.TimeoutExpired as error:
            raise MetricUnavailable(f"SPICE's Java program gave no score within {timeout_s:.0f} s") from error
        except subprocess.CalledProcessError as error:
            last = (error.stderr or error.stdout or "no output").strip().splitlines()[-1:]
            raise MetricUnavailable(f"SPICE's Java program ended with status {error.returncode}: {last}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MetricUnavailable(f"SPICE's Java program left no readable scores: {error!r}") from error


def unavailable(name: str) -> str | None:
    """Why ``meteor``, ``spice`` or ``spider`` cannot be computed here, or ``None`` if nothing is missing."""
    if name not in ("meteor", "spice", "spider"):
        raise ValueError(f"no check for {name!r}; expected meteor, spice or spider")
    try:
        folder = _package_folder()
    except MetricUnavailable as error:
        return str(error)
    if shutil.which("java") is None:
        return f"{name} needs Java, and there is no `java` on the PATH; install a Java runtime (17 works)"
    needed = {
        "meteor": ("meteor/meteor-1.5.jar", "meteor/data/paraphrase-en.gz"),
        "spice": (
            "spice/spice-1.0.jar",
            "spice/lib/stanford-corenlp-3.6.0.jar",
            "spice/lib/stanford-corenlp-3.6.0-models.jar",
        ),
    }["meteor" if name == "meteor" else "spice"]
    missing = [part for part in needed if not (folder / part).is_file()]
    if not missing:
        return None
    fix = "reinstall pycocoevalcap"
    if name != "meteor":
        fix = "put Stanford CoreNLP 3.6.0's two jars into that folder (pycocoevalcap/spice/get_stanford_models.py)"
    return f"{name} needs {', '.join(Path(part).name for part in missing)} in {(folder / missing[0]).parent}; {fix}"


def _require(name: str) -> None:
    reason = unavailable(name)
    if reason is not None:
        raise MetricUnavailable(reason)


def _or_none(compute, references, hypotheses, timeout_s) -> float | None:
    try:
        return compute(references, hypotheses, timeout_s)
    except MetricUnavailable:
        return None


def _pycocoevalcap(module: str) -> ModuleType:
    """Import one pure-Python scorer; pycocoevalcap is optional and nothing imported here starts Java."""
    try:
        return importlib.import_module(f"pycocoevalcap.{module}")
    except ImportError as error:
        raise MetricUnavailable(
            f"caption scores need the package pycocoevalcap ({error}); `pip install pycocoevalcap`"
        ) from error


def _package_folder() -> Path:
    return Path(_pycocoevalcap("bleu.bleu").__file__).parent.parent


def _tokenized(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    check_pairs(references, hypotheses)
    flat = iter(ptb_tokenize([text for several in references for text in several]))
    return [[next(flat) for _ in several] for several in references], ptb_tokenize(hypotheses)


def _by_id(references: list[list[str]], hypotheses: list[str]) -> tuple[dict, dict]:
    return dict(enumerate(references)), {index: [text] for index, text in enumerate(hypotheses)}


def _cider(references: list[list[str]], hypotheses: list[str]) -> list[float]:
    if not any(text.split() for several in references for text in several):
        return [0.0] * len(hypotheses)  # the library takes a maximum over the references' n-grams
    _, scores = _pycocoevalcap("cider.cider").Cider().compute_score(*_by_id(references, hypotheses))
    return [float(score) for score in scores]


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return float(sum(values) / len(values))

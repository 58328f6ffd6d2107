"""Edge cases that were decided, the table of tasks, and Java programs that are absent, fail or hang."""

import json
import stat
import sys
from pathlib import Path

import pytest

import metrics
from scoring import captions


@pytest.fixture
def java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a Python program in the place of Java, and a folder with all jars in the place of pycocoevalcap's."""
    folder = tmp_path / "jars"
    for name in (
        "meteor/meteor-1.5.jar",
        "meteor/data/paraphrase-en.gz",
        "spice/spice-1.0.jar",
        "spice/lib/stanford-corenlp-3.6.0.jar",
        "spice/lib/stanford-corenlp-3.6.0-models.jar",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    monkeypatch.setattr(captions, "_package_folder", lambda: folder)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def install(program: str) -> Path:
        path = tmp_path / "bin" / "java"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{sys.executable}\n{program}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return folder

    return install


FAKE_SPICE = """
import json, os, sys
assert "--add-opens=java.base/java.lang=ALL-UNNAMED" in os.environ["JDK_JAVA_OPTIONS"]
items = json.load(open(sys.argv[4]))
json.dump([{"image_id": i["image_id"], "scores": {"All": {"f": 0.25}}} for i in items], open(sys.argv[6], "w"))
"""


# Word errors


def test_word_errors_carry_their_counts() -> None:
    counted = metrics.wer(["one two three four"], ["one too three"])
    assert counted.errors == counted.substitutions + counted.deletions + counted.insertions
    assert counted.wer == counted.errors / counted.reference_words

    counted = metrics.wer(["the dog barks loudly", "a cat"], ["the dog bark", "a big cat"])
    assert (counted.hits, counted.substitutions, counted.deletions, counted.insertions) == (4, 1, 1, 1)
    assert (counted.reference_words, counted.hypothesis_words) == (6, 6)
    assert counted.wer == 0.5  # over the corpus, no mean of the clips' rates


def test_spelling_case_numbers_and_contractions_do_not_count() -> None:
    assert metrics.wer(["The COLOUR isn't twenty one!"], ["the color is not 21"]).wer == 0.0


def test_an_empty_hypothesis_is_all_deletions() -> None:
    for function in (metrics.wer, metrics.wer_nota, metrics.cer, metrics.per):
        counted = function(["a dog barks", "yes"], ["", "yes"])
        assert counted.deletions == counted.reference_words - counted.hits > 0
        assert counted.substitutions == counted.insertions == 0


def test_an_empty_reference_adds_insertions_only() -> None:
    counted = metrics.wer(["a dog", ""], ["a dog", "two cats here"])
    assert (counted.insertions, counted.reference_words, counted.wer) == (3, 2, 1.5)


def test_all_references_empty() -> None:
    assert metrics.wer(["", ""], ["", ""]).wer == 0.0
    assert metrics.wer(["", "!"], ["a dog", ""]).wer == 2.0
    assert metrics.wer_nota([""], [""]).wer == 0.0


def test_unequal_counts_empty_lists_and_wrong_types_are_errors() -> None:
    for function in (metrics.wer, metrics.wer_nota, metrics.cer, metrics.per, metrics.accuracy, metrics.token_f1):
        with pytest.raises(ValueError, match="2 references but 1 hypotheses"):
            function(["a", "b"], ["a"])
        with pytest.raises(ValueError, match="no clips to score"):
            function([], [])
        with pytest.raises(ValueError, match="references is one string"):
            function("a dog", "a dog")
        with pytest.raises(ValueError, match=r"hypotheses\[1\] is NoneType"):
            function(["a", "b"], ["a", None])


def test_unicode() -> None:
    assert metrics.wer(["café Zürich"], ["cafe Zurich"]).wer == 0.0  # the English normaliser drops diacritics
    assert metrics.wer(["schöne Größe"], ["schone Grösse"], language="de").substitutions == 2
    assert metrics.wer(["cafe\u0301"], ["caf\u00e9"], language="de").wer == 0.0
    assert metrics.cer(["今天天气很好。"], ["今天天汽很好"]).wer == pytest.approx(1 / 6)
    assert metrics.wer(["🎵 a dog 🎵"], ["a dog"]).wer == 0.0
    assert metrics.wer_nota(["naïve 日本"], ["naïve 日本"]).wer == 0.0


def test_phones() -> None:
    assert metrics.per(["HH AH0 L OW1"], ["hh ah l ow"]).wer == 0.0
    assert metrics.per(["HH AH L OW"], ["HH EH L"]).wer == 0.5


# Answers, translations


def test_accuracy_and_overlap() -> None:
    assert metrics.accuracy(["Female", "male", "angry"], ["female.", "Male!", "sad"]) == pytest.approx(2 / 3)
    assert metrics.accuracy(["yes", ""], ["", ""]) == 0.5
    assert metrics.token_f1(["the red car", ""], ["a red car", ""]) == pytest.approx((2 / 3 + 1) / 2)


def test_translation() -> None:
    assert metrics.score("translation_en2de", ["Der Hund bellt sehr laut."], ["Der Hund bellt sehr laut."])[
        "bleu"
    ] == pytest.approx(100.0)
    assert metrics.score("translation_ec", ["今天天气很好。"], ["今天天气很好。"])["bleu"] == pytest.approx(100.0)
    assert metrics.score("translation_en2ja", ["今日は良い天気"], [""])["bleu"] == 0.0


# Captions


REFERENCES = [["a dog barks", "a dog is barking loudly"], ["rain falls on a roof"], ["a bell rings twice"]]


def test_perfect_captions() -> None:
    hypotheses = [several[0] for several in REFERENCES]
    assert metrics.rouge_l(REFERENCES, hypotheses) == pytest.approx(1.0)
    assert metrics.bleu(REFERENCES, hypotheses).bleu_1 == pytest.approx(1.0)
    assert (
        metrics.cider_d(
            [[text] for text in hypotheses], ["A dog barks.", "Rain falls on a roof!", "a bell rings twice"]
        )
        > 7
    )


def test_caption_edge_cases() -> None:
    assert metrics.cider_d(REFERENCES, ["", "...", ""]) == 0.0
    assert metrics.rouge_l(REFERENCES, ["", "!", ""]) == 0.0
    assert metrics.bleu(REFERENCES, ["", "", ""]).bleu_4 == pytest.approx(0.0, abs=1e-9)
    assert metrics.cider_d([[""], ["."]], ["a dog", ""]) == 0.0
    assert metrics.cider_d_x100([[""], [""]], ["a dog", ""]) == 0.0
    assert metrics.cider_d([["a dog barks"]], ["a dog barks"]) == 0.0  # one clip: ln 1
    assert metrics.rouge_l([["", "a dog"]], ["a dog"]) == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"references\[1\] is an empty list"):
        metrics.cider_d([["a"], []], ["a", "b"])
    with pytest.raises(ValueError, match=r"references\[0\] is a string"):
        metrics.cider_d(["a dog"], ["a dog"])
    with pytest.raises(ValueError, match="3 references but 2 hypotheses"):
        metrics.bleu(REFERENCES, ["a", "b"])


def test_unicode_captions() -> None:
    assert metrics.ptb_tokenize(["“Café” – don’t… ½ naïve", "狗 叫 。", "a\nb\tc\u2028d"]) == [
        "café do n't 1/2 naïve",
        "狗 叫 。",
        "a b c d",
    ]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A man's dog can't bark; it's asleep.", "a man 's dog ca n't bark it 's asleep"),
        ("R&B, drum&bass and rock 'n' roll", "r&b drum & bass and rock 'n' roll"),
        ("The U.S. anthem at 5 p.m. (live)", "the u.s. anthem at 5 p.m. -lrb- live -rrb-"),
        ("plan b. Then it", "plan b then it"),
        ("lo-fi hi-hat -- 44.1kHz 3:00pm 1,000 4/4", "lo-fi hi-hat 44.1 khz 3:00 pm 1,000 4/4"),
        ("cannot gonna y'all o'clock", "can not gon na y' all o'clock"),
        ("A dog 🐶 barks 🎉🎉 a👍b ❤️ 👨‍👩‍👧 \u200bend", "a dog barks a b ❤ end"),
        ("I code in C++, c# and g++ at 1+1", "i code in c++ c# and g + + at 1 +1"),
        ("smile :) now :-( =D so", "smile :-rrb- now :--lrb- =d so"),
        ("x² ½ 5¢ &amp; &lt;b&gt; cafe\u0301 100°C ♪", "x ² 1/2 5 cents & < b > cafe\u0301 100 ° c ♪"),
        ("he'd've \"said\" [so] {it} & £5 50%", "he 'd 've said -lsb- so -rsb- -lcb- it -rcb- & # 5 50 %"),
    ],
)  # each line as Stanford CoreNLP 3.4.1 has it
def test_tokenizer(text: str, tokens: str) -> None:
    assert metrics.ptb_tokenize([text]) == [tokens]


def test_tokenizer_takes_any_text() -> None:
    for odd in (
        "\ud83d",
        "\x00\x07",
        "🏳️‍🌈" * 50,
        "\u202e\ufeff",
        "e\u0301" * 5000,
        "a-" * 5000,
        "+" * 5000,
        "(:" * 5000,
    ):
        assert len(metrics.ptb_tokenize([odd, "a dog"])) == 2
    assert metrics.ptb_tokenize(["🐶", "a dog"]) == ["", "a dog"]
    assert metrics.cider_d([["🐶 barks"], ["C++"]], ["🐶", ""]) == 0.0


def test_tokenizer_keeps_one_line_a_text() -> None:
    assert metrics.ptb_tokenize([]) == []
    assert metrics.ptb_tokenize(["", "a", "", "", "b c", ""]) == ["", "a", "", "", "b c", ""]


def test_cider_d_starts_no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments, **options):
        raise AssertionError(f"started {arguments}")

    monkeypatch.setattr("subprocess.Popen", refuse)
    hypotheses = ["a dog", "rain falls", "a bell"]
    scores = metrics.score_with_reasons("audiocaption", REFERENCES, hypotheses, java=False)
    assert scores.values["cider_d"] > 0 and scores.values["bleu_4"] is not None
    assert scores.values["meteor"] is scores.values["spider"] is None
    assert "switched off" in scores.reasons["spice"]


# Java programs


def test_without_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    scores = metrics.score_with_reasons("audiocaption", REFERENCES, ["a dog", "rain", "a bell"])
    assert scores.values["cider_d"] is not None
    assert scores.values["meteor"] is scores.values["spice"] is scores.values["spider"] is None
    assert "no `java` on the PATH" in scores.reasons["meteor"]
    assert "spice is null" in scores.reasons["spider"]
    assert metrics.meteor(REFERENCES, ["a", "b", "c"]) is None


def test_missing_models_are_named(java) -> None:
    folder = java("raise SystemExit(1)")
    (folder / "spice/lib/stanford-corenlp-3.6.0-models.jar").unlink()
    assert "stanford-corenlp-3.6.0-models.jar" in metrics.unavailable("spice")
    assert metrics.unavailable("meteor") is None
    assert metrics.spider(REFERENCES, ["a", "b", "c"]) is None


def test_spider_is_the_mean_of_two(java) -> None:
    java(FAKE_SPICE)
    hypotheses = ["a dog barks", "rain", "a bell rings"]
    assert metrics.spice(REFERENCES, hypotheses) == 0.25
    assert metrics.spider(REFERENCES, hypotheses) == pytest.approx((metrics.cider_d(REFERENCES, hypotheses) + 0.25) / 2)


@pytest.mark.parametrize("program", ["import time; time.sleep(60)", "raise SystemExit(3)", "print('Exception')"])
def test_a_hanging_or_failing_java_program_gives_none(java, program: str) -> None:
    java(program)
    for function in (metrics.meteor, metrics.spice, metrics.spider):
        assert function(REFERENCES, ["a", "b", "c"], 1.0) is None
    with pytest.raises(metrics.MetricUnavailable, match="SPICE's Java program"):
        captions.spice_or_raise(REFERENCES, ["a", "b", "c"], 1.0)


# Hypotheses


@pytest.mark.parametrize(
    "text",
    [
        "<s>a dog barks</s>",
        "a dog barks<|im_end|><|endoftext|>",
        "<|begin_of_text|>a dog barks<|eot_id|>",
        "<bos>a dog barks<eos><pad><pad>",
        "a dog barks<end_of_turn>",
        "<start_of_turn> a dog <unk> barks </s></s>",
        "[CLS] a dog barks [SEP] [PAD]",
        "<｜begin▁of▁sentence｜>a dog barks<｜end▁of▁sentence｜>",
        "a dog barks <|reserved_special_token_17|> <unused42>",
    ],
)
def test_special_tokens_go(text: str) -> None:
    assert metrics.clean_hypothesis(text) == "a dog barks"


@pytest.mark.parametrize("name", ["think", "tool_call", "tool_response", "end_of_utterance"])
def test_named_specials_go(name: str) -> None:
    assert metrics.clean_hypothesis(f"<{name}>\n\n</{name}> a dog barks<{name}>") == "a dog barks"


def test_a_tokenizers_own_tokens_go_too() -> None:
    assert metrics.clean_hypothesis("@@a dog@@ barks ###", ("@@", "###", "#", "")) == "a dog barks"
    assert metrics.clean_hypothesis("x < y and <laughs> [noise]") == "x < y and <laughs> [noise]"
    assert metrics.clean_hypothesis("  </s> ") == ""


# Tasks


def test_every_prompted_task_has_a_metric() -> None:
    prompts = json.loads((Path(metrics.__file__).parent / "prompts" / "test.json").read_text(encoding="utf-8"))
    for task in prompts:
        name, direction = metrics.primary_metric(task)
        assert metrics.directions([name]) == {name: direction}


@pytest.mark.parametrize("task", sorted(metrics.TASKS))
def test_scores_hold_the_primary_metric_and_survive_json(task: str) -> None:
    scores = metrics.score_with_reasons(task, ["a dog", "a cat sat here"], ["a dog", ""], java=False)
    name, direction = metrics.primary_metric(task)
    assert isinstance(scores.values[name], float) and direction in ("min", "max")
    assert json.loads(json.dumps(scores.values, allow_nan=False)) == scores.values


def test_variants_take_the_row_their_name_begins_with() -> None:
    assert metrics.primary_metric("audiocaption_clotho") == ("cider_d", "max")
    assert metrics.primary_metric("asr_noisy") == ("wer", "min")
    assert "wer_nota" not in metrics.score("asr_fr", ["été"], ["été"])
    with pytest.raises(ValueError, match="no metric for task 'juggling'"):
        metrics.score("juggling", ["a"], ["a"])


def test_one_clip_says_why_cider_d_is_zero() -> None:
    scores = metrics.score_with_reasons("audiocaption", [["a dog"]], ["a dog"], java=False)
    assert scores.values["cider_d"] == 0.0 and "one clip" in scores.reasons["cider_d"]

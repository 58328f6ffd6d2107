"""Caption metrics: edge cases, the tokenizer, and Java programs that are missing, fail or hang."""

import stat
import sys
from pathlib import Path

import pytest

import metrics
from scoring import captions


@pytest.fixture
def java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Replace Java by a Python program, and pycocoevalcap's folder by one with all jars."""
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
out = sys.argv.index("-out")
items = json.load(open(sys.argv[out - 1]))
json.dump([{"image_id": i["image_id"], "scores": {"All": {"f": 0.25}}} for i in items], open(sys.argv[out + 1], "w"))
"""


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


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [
        ([[None]], ["a"], r"references\[0\]\[0\] is NoneType"),
        ([["a"]], [None], r"hypotheses\[0\] is NoneType"),
        (None, None, "references is a NoneType"),
        ([["a"]], {"a"}, "hypotheses is a set"),
        ([3], ["a"], r"references\[0\] is a int"),
        ((each for each in [["a"]]), ["a"], "references is a generator"),
    ],
)
def test_what_is_no_text_is_refused(references, hypotheses, message: str) -> None:
    for metric in (metrics.bleu, metrics.cider_d, metrics.rouge_l, metrics.translation_bleu):
        with pytest.raises(ValueError, match=message):
            metric(references, hypotheses)

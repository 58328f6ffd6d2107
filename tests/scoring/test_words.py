"""Word, character and phone errors: edge cases; special tokens are removed from hypotheses."""

import pytest

import metrics


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


@pytest.mark.parametrize("metric", [metrics.wer, metrics.cer, metrics.accuracy, metrics.token_f1])
def test_values_without_an_order_are_not_paired(metric) -> None:
    for given in ({"a", "b"}, {"a": 1, "b": 2}, (each for each in ["a", "b"]), None):
        with pytest.raises(ValueError, match="expected a list with one entry per clip, in order"):
            metric(given, ["a", "b"])


def test_a_hypothesis_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="the hypothesis is NoneType"):
        metrics.clean_hypothesis(None)
    assert metrics.clean_hypothesis("a</x>", ["</x>", None]) == "a"

"""Tokenizer, template, BOS, end symbol and stop strings."""

import json
import pickle
import sys

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from configs.sections import ModelConfig
from models.hub import located
from models.language.text import TextProcessor, _declared_eos_ids, load_tokenizer
from support.command_line import UserError
from tests import tiny
from tests.parts import text_processor

PROMPT = "<Speech><SpeechHere></Speech> Write down what is said."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.write_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def without_bos(tmp_path):
    tiny.write_tokenizer(tmp_path, bos=False)
    return AutoTokenizer.from_pretrained(tmp_path)


def test_pieces_are_tokenised_apart_with_one_bos(tokenizer):
    text = text_processor(tokenizer, prompt_template="USER: {}\nASSISTANT:")
    batch = text.batch([PROMPT])
    assert batch.before[0].tolist() == [1, *tokenizer.encode("USER: <Speech>", add_special_tokens=False)]
    after = "</Speech> Write down what is said.\nASSISTANT:"
    assert batch.after[0].tolist() == tokenizer.encode(after, add_special_tokens=False)
    assert batch.targets is None and batch.target_tokens == 0 and len(batch) == 1


def test_empty_template_leaves_the_prompt(tokenizer):
    text = text_processor(tokenizer)
    assert text.in_template(PROMPT) == PROMPT
    assert text.batch(["<SpeechHere>"]).before[0].tolist() == [1]
    assert text.batch(["<SpeechHere>"]).after[0].tolist() == []


def test_template_may_place_the_audio_after_the_instruction(tokenizer):
    text = text_processor(tokenizer, prompt_template="USER: {} <Speech><SpeechHere></Speech>\nASSISTANT:")
    expected = "USER: Write down what is said. <Speech><SpeechHere></Speech>\nASSISTANT:"
    assert text.in_template(PROMPT) == expected


@pytest.mark.parametrize("prompt", ["no audio here", "<SpeechHere> and <SpeechHere>"])
def test_prompt_needs_exactly_one_placeholder(tokenizer, prompt):
    with pytest.raises(ValueError, match="expected exactly one"):
        text_processor(tokenizer, prompt_template="USER: {}").batch([prompt])


@pytest.mark.parametrize("template", ["no place", "{} and {}", "{} <SpeechHere> <SpeechHere>"])
def test_broken_template_is_refused(template):
    with pytest.raises(ValueError, match="prompt_template"):
        ModelConfig(prompt_template=template)


def test_targets_keep_the_end_symbol_whatever_the_limit(tokenizer):
    text = text_processor(tokenizer, max_txt_len=6)
    (short, long, empty) = text.batch([PROMPT] * 3, ["one two", "one two three " * 20, ""]).targets
    assert short.tolist() == [*tokenizer.encode("one two", add_special_tokens=False), 2]
    assert len(long) == 6 and long[-1] == 2
    assert empty.tolist() == [2]
    assert text.batch([PROMPT] * 2, ["one", ""]).target_tokens == 3


def test_end_symbol_of_several_tokens_is_a_target_and_a_stop_string(tokenizer):
    text = text_processor(tokenizer, end_sym="[end]", max_txt_len=8)
    end = tokenizer.encode("[end]", add_special_tokens=False)
    assert len(end) > 1
    assert text.stop_strings == ("[end]",)
    assert text.eos_ids == {2}
    for answer in ("one", "one two three four five six seven"):
        target = text.batch([PROMPT], [answer]).targets[0].tolist()
        assert target[-len(end) :] == end and len(target) <= 8
    assert text.decode([*tokenizer.encode(" red fish"), *end, 40, 41]) == "red fish"
    with pytest.raises(ValueError, match="max_txt_len"):
        text_processor(tokenizer, end_sym="[end]", max_txt_len=len(end))


def test_all_declared_ends_count(tokenizer, tmp_path):
    folder = tiny.write_llm(tmp_path / "llm")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 17, 19]}))

    class Config:
        llama_path, token, prompt_template, end_sym = str(folder), None, "USER: {}", "</s>"
        bos_token, stop_strings, max_txt_len = None, ("\n\n",), 50

    text = TextProcessor.from_config(Config)
    assert text.eos_ids == {2, 17, 19}
    assert text.stop_strings == ("\n\n",)
    assert text.decode([*tokenizer.encode(" red fish"), 19, 40]) == "red fish"


def test_bos_is_the_configured_one_or_the_tokenizers_or_none(tokenizer, tmp_path):
    assert text_processor(tokenizer).bos_ids == (1,)
    assert text_processor(tokenizer, bos_token="<unk>").bos_ids == (0,)
    assert text_processor(tokenizer, bos_token="").bos_ids == ()
    bare = without_bos(tmp_path)
    assert text_processor(bare).bos_ids == ()
    assert text_processor(bare).batch([PROMPT]).before[0].tolist() == bare.encode("<Speech>")
    with pytest.raises(ValueError, match="bos_token"):
        text_processor(tokenizer, bos_token="not one token")


def test_decoding_loses_every_special_token(tokenizer):
    text = text_processor(tokenizer)
    assert text.decode([1, 3, *tokenizer.encode(" red fish"), 0, 3, 2, 50, 60]) == "red fish"
    assert text.decode(torch.tensor([2, 50])) == ""
    assert text.decode([]) == ""


def test_padding_does_not_enlarge_the_vocabulary(tokenizer):
    assert text_processor(tokenizer).pad_id == 3
    tokenizer = pickle.loads(pickle.dumps(tokenizer))
    tokenizer.pad_token = None
    before = len(tokenizer)
    assert text_processor(tokenizer).pad_id == 2
    assert len(tokenizer) == before


def test_something_must_end_an_answer(tokenizer):
    tokenizer = pickle.loads(pickle.dumps(tokenizer))
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="end_sym"):
        text_processor(tokenizer, end_sym="")


def test_custom_vocabulary_survives_a_config_of_another_family(tmp_path):
    folder = tiny.write_llm(tmp_path / "qwen", family="qwen2", bos=False)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "Qwen2Tokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    own = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    loaded = load_tokenizer(str(folder))
    sentence = "USER: Write down what is said. seven fish"
    assert loaded.encode(sentence, add_special_tokens=False) == own.encode(sentence, add_special_tokens=False)
    assert loaded.eos_token_id == 2 and loaded.bos_token_id is None
    assert loaded.decode(loaded.encode(sentence)) == sentence


def test_missing_tokenizer_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match=r"llama_path.*nowhere"):
        load_tokenizer(str(tmp_path / "nowhere"))


def test_revision_of_a_hub_name(tmp_path):
    assert located("org/model@v2") == ("org/model", "v2")
    assert located("org/model") == ("org/model", None)
    folder = tmp_path / "a@b"
    folder.mkdir()
    assert located(str(folder)) == (str(folder), None)


def test_unequal_counts_are_refused(tokenizer):
    with pytest.raises(ValueError, match="2 prompts but 1 texts"):
        text_processor(tokenizer).batch([PROMPT] * 2, ["one"])


def test_processor_travels_to_loader_workers(tokenizer):
    text = pickle.loads(pickle.dumps(text_processor(tokenizer, stop_strings=("#",))))
    assert text.batch([PROMPT], ["one"]).target_tokens == 2


def test_an_end_that_no_file_declares_is_not_invented(tmp_path):
    """Llama's config class says id 2 ends a text, whatever the vocabulary."""
    folder = tiny.write_llm(tmp_path / "llm")
    for name in ("config.json", "generation_config.json"):
        declared = json.loads((folder / name).read_text())
        declared.pop("eos_token_id", None)
        (folder / name).write_text(json.dumps(declared))
    assert _declared_eos_ids(str(folder), None) == ()


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"text_config": None}, ()),
        ({"eos_token_id": None, "text_config": {"eos_token_id": [3, 4]}}, (3, 4)),
        ({"eos_token_id": 5, "text_config": {"eos_token_id": 4}}, (5,)),
    ],
)
def test_ends_are_read_from_the_config_or_its_text_part(tmp_path, declared, expected):
    (tmp_path / "config.json").write_text(json.dumps(declared))
    assert _declared_eos_ids(str(tmp_path), None) == expected


def test_only_tokens_that_may_end_a_stop_string_are_followed_up(tokenizer):
    text = text_processor(tokenizer, stop_strings=("one#",))
    for token in range(len(tokenizer)):
        piece = tokenizer.decode([token], skip_special_tokens=True)
        assert text.may_end_stop(token) == ("#" in piece or "\ufffd" in piece)
    assert all(text_processor(tokenizer, stop_strings=("one\n",)).may_end_stop(token) for token in (5, 6))


@pytest.mark.parametrize("options", [{"end_sym": "<|im_end|>\n"}, {"stop_strings": ["<|im_end|>\n"]}])
def test_an_end_that_begins_with_a_special_token_ends_by_its_id(tmp_path, options):
    """Decoding drops special tokens: such an end would never be found in the text."""
    tokenizer = without_bos(tmp_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    text = text_processor(tokenizer, **options)
    assert end in text.eos_ids
    assert text.decode([*tokenizer.encode("one two", add_special_tokens=False), end, 7]) == "one two"


@pytest.mark.parametrize("escape", [r"\u000a", r"\x0A", r"\r"])
def test_escapes_of_numbers_are_named_too(tokenizer, caplog, escape):
    text_processor(tokenizer, prompt_template=f"USER: {{}}{escape}ASSISTANT:")
    assert "model.prompt_template" in caplog.text


@pytest.mark.parametrize("key", ["prompt_template", "end_sym", "stop_strings"])
def test_an_escape_of_two_characters_is_named(tokenizer, caplog, key):
    value = {"prompt_template": r"USER: {}\nASSISTANT:", "end_sym": r"\n###", "stop_strings": ("a", r"\t")}[key]
    text_processor(tokenizer, **{key: value})
    assert f"model.{key}" in caplog.text and "double quotes" in caplog.text


def test_a_line_break_and_a_backslash_alone_are_not(tokenizer, caplog):
    text_processor(tokenizer, prompt_template="USER: {}\nC:\\data ASSISTANT:")
    assert not caplog.text


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory):
    """A language model's folder as Vicuna's: `tokenizer.model` and no `tokenizer.json`."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("vicuna")
    trained = folder / "tokenizer.model"
    texts = tmp_path_factory.mktemp("texts") / "texts.txt"
    texts.write_text("\n".join(["hello world", "a dog barks", "one two three four"] * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(texts), model_prefix=str(trained.with_suffix("")), vocab_size=300, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    trained.with_suffix(".vocab").unlink()
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def test_a_sentencepiece_model_alone_is_a_tokenizer(sentencepiece_folder):
    tokenizer = load_tokenizer(str(sentencepiece_folder))
    text = text_processor(tokenizer, prompt_template="USER: {}\nASSISTANT:")
    batch = text.batch([PROMPT], ["hello world </s> é"])
    assert text.decode(batch.targets[0]) == "hello world </s> é"
    assert batch.before[0][0] == tokenizer.bos_token_id and batch.targets[0].tolist().count(2) == 1


def test_without_its_packages_the_error_names_them(sentencepiece_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError) as error:
        load_tokenizer(str(sentencepiece_folder))
    assert "sentencepiece" in str(error.value)


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"", "is empty"),
        (b'{"eos_token_id": 2', "is no JSON"),
        ("{}".encode("utf-16"), "is no JSON"),
        (b"[2]", "expected a JSON object"),
    ],
)
def test_a_declaration_that_cannot_be_read_is_named(tmp_path, name, content, words):
    folder = tiny.write_llm(tmp_path / "llm")
    if name == "config.json":
        (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        _declared_eos_ids(str(folder), None)
    assert name in str(caught.value)

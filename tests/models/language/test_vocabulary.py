"""A tokenizer that is longer than the embeddings is found before anything runs."""

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from configs.schema import load_config
from models import build_model
from models.language.vocabulary import require_rows
from support.command_line import UserError
from tests import tiny
from tests.parts import text_processor


@pytest.fixture
def tokenizer(tmp_path):
    tiny.write_tokenizer(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


def test_ids_within_the_rows_pass(tokenizer):
    require_rows(text_processor(tokenizer), len(tokenizer), "llm")


def test_a_shorter_matrix_is_named(tokenizer):
    with pytest.raises(UserError, match=rf"'llm' has embeddings for {len(tokenizer) - 3} tokens.*make.*ids"):
        require_rows(text_processor(tokenizer), len(tokenizer) - 3, "llm")


def test_an_added_word_has_no_row(tokenizer):
    rows = len(tokenizer)
    tokenizer.add_tokens(["<laugh>"])
    with pytest.raises(UserError, match=rf"'<laugh>' \({rows}\)"):
        require_rows(text_processor(tokenizer), rows, "llm")


def test_an_unused_special_token_passes_and_a_used_one_does_not(tokenizer):
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": AddedToken("[PAD]", special=True)})
    require_rows(text_processor(tokenizer), rows, "llm")
    for used in ({"prompt_template": "[PAD]{}"}, {"end_sym": "[PAD]"}, {"bos_token": "[PAD]"}):
        with pytest.raises(UserError, match=r"\[PAD\]"):
            require_rows(text_processor(tokenizer, **used), rows, "llm")


def test_a_model_is_not_built_with_it(tmp_path):
    project = tiny.write_project(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(project.llm)
    tokenizer.add_tokens([f"<extra{number}>" for number in range(500)])
    tokenizer.save_pretrained(project.llm)
    with pytest.raises(UserError, match=r"model\.llama_path: .*has embeddings for"):
        build_model(load_config(project.config).model)

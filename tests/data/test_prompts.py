"""data/prompts.py: prompt files and their errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.prompts import PromptError, load_prompts

HERE = "<Speech><SpeechHere></Speech>"
PROMPTS = {"asr": [f"{HERE} Write it down.", f"Listen. {HERE}"], "QA": [f"{HERE} Answer: {{}}"]}


def test_load_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"asr": PROMPTS["asr"], "QA": PROMPTS["QA"][0]}))
    prompts = load_prompts(path)
    assert prompts["asr"] == tuple(PROMPTS["asr"]) and prompts["QA"] == PROMPTS["QA"][0]
    assert set(prompts) == {"asr", "QA"}


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no such prompt file"),
        ('{"asr": ', "line 1: broken JSON"),
        ("[]", "expected an object"),
        ("{}", "at least one task"),
        ('{"asr": 3}', "task 'asr' holds 3"),
        ('{"asr": []}', "task 'asr' has an empty list"),
        ('{"asr": [1]}', "task 'asr' holds 1"),
        ('{"asr": "Write it down."}', "task 'asr': prompt 'Write it down.' holds 0 <SpeechHere>"),
    ],
)
def test_prompt_files_are_checked(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "prompts.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(PromptError, match=message) as caught:
        load_prompts(path)
    assert str(path) in str(caught.value)


def test_prompt_files_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"asr": PROMPTS["asr"][0]}), encoding="utf-8-sig")
    assert load_prompts(path)["asr"] == PROMPTS["asr"][0]


@pytest.mark.parametrize(
    ("content", "words"), [(b"PK\x03\x04\xbd\xff", "zip archive"), (b"\x1f\x8b\x08\xff", "gzip archive")]
)
def test_a_packed_prompt_file_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "prompts.json"
    path.write_bytes(content)
    with pytest.raises(PromptError, match=words):
        load_prompts(path)

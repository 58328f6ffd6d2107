"""Strict JSON, and files written completely."""

import json
import math

import pytest

from support.files import jsonable, write_atomically


def test_numbers_without_a_form_in_json_are_null() -> None:
    value = {"a": math.nan, "b": [1.5, (math.inf, "x")], "c": {"d": -math.inf, "e": None}}
    expected = {"a": None, "b": [1.5, [None, "x"]], "c": {"d": None, "e": None}}
    assert json.loads(json.dumps(jsonable(value), allow_nan=False)) == expected


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    path = tmp_path / "scores.json"
    write_atomically(path, "old")
    write_atomically(path, "new ¼")
    assert path.read_text(encoding="utf-8") == "new ¼"

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("support.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "half")
    assert path.read_text(encoding="utf-8") == "new ¼"

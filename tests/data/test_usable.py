"""Is there any clip, and any text?"""

from __future__ import annotations

from pathlib import Path

import pytest

from data.annotations import Annotation
from data.usable import NoClips, require_files, require_texts
from support.command_line import UserError


def clip(path: object, *texts: str) -> Annotation:
    return Annotation(path=str(path), text=(*texts, "")[0], task="asr", texts=texts, source="a.json#0")


def test_some_clip_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "a.WAV").touch()
    require_files([clip("/gone/a.wav"), clip(tmp_path / "a.WAV")], None, "datasets.train_ann_path")
    require_files([], None, "key")
    with pytest.raises(NoClips) as caught:
        require_files([clip("/nowhere/a.wav")] * 3, "/nowhere", "datasets.train_ann_path")
    assert str(caught.value) == (
        "datasets.train_ann_path: no file is there for any of the 3 clips: the first is /nowhere/a.wav (a.json#0); "
        "datasets.prefix = /nowhere, which is no folder. Correct it, or the annotations' paths"
    )
    with pytest.raises(NoClips, match=r"a\.WAV is there; datasets\.prefix is not set"):
        require_files([clip(tmp_path / "a.wav")], None, "key")


def test_a_name_that_the_locale_cannot_write_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsencode", lambda path: path.encode("ascii"))
    with pytest.raises(UnicodeEncodeError):  # which commands explain
        require_files([clip("/nowhere/größe.wav")], None, "key")


def test_some_text_must_be_there(caplog: pytest.LogCaptureFixture) -> None:
    require_texts([clip("a", "one"), clip("b", "", "two")], "key")
    assert not caplog.text
    require_texts([clip("a", "one"), clip("b", "")], "key")
    assert "key: the text of 1 of 2 clips is empty (first: a.json#0)" in caplog.text
    with pytest.raises(UserError, match="the text of each of the 2 clips is empty"):
        require_texts([clip("a", ""), clip("b", "  ")], "key")

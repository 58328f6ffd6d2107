"""Names that are written in another way than on disk."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from data.annotations import load_annotations
from data.audio import AudioError, load_clip
from data.file_names import existing, may_differ, near_name


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def annotate(file: Path, *clips: str, **fields: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    entries = [{"path": clip, "text": "x", "task": "asr", **fields} for clip in clips]
    file.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    return file


@pytest.mark.parametrize("name", ["café/naïve.wav", "한국어/음성.wav", "がぎ/ぱ.wav"])
@pytest.mark.parametrize(("on_disk", "written"), [(nfc, nfd), (nfd, nfc)])
def test_the_other_unicode_form(tmp_path: Path, name: str, on_disk, written) -> None:
    path = tmp_path / on_disk(name)
    path.parent.mkdir()
    path.touch()
    for prefix in (None, tmp_path):
        file = annotate(tmp_path / "a.json", written(name), expand_wav=[written(name)])
        (annotation,) = load_annotations(file, prefix=prefix)
        assert annotation.path == annotation.expand_wav[0] == str(path)


def test_folder_and_file_in_different_forms_and_the_prefix_too(tmp_path: Path) -> None:
    path = tmp_path / nfd("données") / nfc("é") / nfd("ü.wav")
    path.parent.mkdir(parents=True)
    path.touch()
    file = annotate(tmp_path / "lists" / "a.json", nfd("é") + "/" + nfc("ü.wav"))
    assert load_annotations(file, prefix=tmp_path / nfc("données"))[0].path == str(path)


@pytest.mark.parametrize(
    "written", ["clips\\a.wav", ".\\clips\\a.wav", "clips/a.wav\r", " clips/a.wav ", "clips\\a.wav\r"]
)
def test_backslashes_and_blanks(tmp_path: Path, written: str) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.wav").touch()
    (annotation,) = load_annotations(annotate(tmp_path / "a.json", written))
    assert Path(annotation.path) == tmp_path / "clips" / "a.wav"


def test_a_name_as_written_comes_first(tmp_path: Path) -> None:
    for name in ("a\\b.wav", "a .wav", nfd("é.wav"), nfc("é.wav")):
        (tmp_path / name).touch()
        assert load_annotations(annotate(tmp_path / "a.json", name))[0].path == str(tmp_path / name)


def test_plain_names_are_not_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = annotate(tmp_path / "a.json", *(f"{number}.wav" for number in range(100)))
    monkeypatch.setattr("data.annotations.existing", lambda path: pytest.fail(path))
    assert len(load_annotations(file)) == 100
    assert not may_differ("clips/a.wav") and may_differ("é.wav") and may_differ("a\\b") and may_differ("a.wav\r")


def test_home_in_every_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.wav").touch()
    annotate(tmp_path / "lists" / "a.json", "a.wav", "~/data/a.wav")
    one, two = load_annotations("~/lists/a.json", prefix="~/data")
    assert one.path == two.path == str(tmp_path / "data" / "a.wav")
    annotate(tmp_path / "data" / "b.json", "a.wav")
    assert load_annotations("b.json ", prefix="~/data")[0].path == one.path


@pytest.mark.parametrize(
    ("on_disk", "written"),
    [("a.WAV", "a.wav"), ("a.flac", "a.wav"), ("Clip 1.wav", "clip1.wav"), ("é.wav", "\u0065\u0301.wav")],
)
def test_an_error_names_the_near_file(tmp_path: Path, on_disk: str, written: str) -> None:
    (tmp_path / on_disk).touch()
    with pytest.raises(AudioError, match="no such file") as caught:
        load_clip(tmp_path / written)
    assert f"({tmp_path / on_disk} is there)" in str(caught.value)


def test_what_is_nowhere(tmp_path: Path) -> None:
    for name in ("a.wav", "é/a.wav", "a\\b.wav", "a\0b.wav", "x" * 400, ""):
        assert existing(str(tmp_path / "gone" / name)) is None
        assert near_name(str(tmp_path / "gone" / name)) is None


def test_a_prefix_that_is_no_folder_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.wav").touch()
    file = annotate(tmp_path / "a.json", str(tmp_path / "a.wav"))
    gone = tmp_path / "gone"
    assert load_annotations(file, prefix=gone)[0].path == str(tmp_path / "a.wav")
    other = annotate(tmp_path / "b.json", str(tmp_path / "a.wav"))
    load_annotations([file, other], prefix=gone)
    assert caplog.text.count(f"datasets.prefix, '{gone}', is no folder") == 1

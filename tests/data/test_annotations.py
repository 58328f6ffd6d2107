"""Annotation files: every form that is read, every error that a user can make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.annotations import AnnotationError, load_annotations

ENTRY = {"path": "a.wav", "text": "hello", "task": "asr"}


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def error(path: Path, content: object, **options: object) -> str:
    write(path, content)
    with pytest.raises(AnnotationError) as caught:
        load_annotations(str(path), **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps({"annotation": [ENTRY, {**ENTRY, "text": "you"}]}, indent=1)),
        ("list.json", json.dumps([ENTRY, {**ENTRY, "text": "you"}])),
        ("lines.jsonl", json.dumps(ENTRY) + "\n\n" + json.dumps({**ENTRY, "text": "you"}) + "\n"),
        ("lines.json", json.dumps(ENTRY) + "\n" + json.dumps({**ENTRY, "text": "you"})),
        ("bom.json", "\ufeff" + json.dumps([ENTRY, {**ENTRY, "text": "you"}])),
    ],
)
def test_every_form_reads_the_same(tmp_path: Path, name: str, content: str) -> None:
    annotations = load_annotations(str(write(tmp_path / name, content)))
    assert [(a.text, a.index, a.source) for a in annotations] == [
        ("hello", 0, f"{tmp_path / name}#0"),
        ("you", 1, f"{tmp_path / name}#1"),
    ]
    assert annotations[0].path == str(tmp_path / "a.wav")
    assert annotations[0].texts == ("hello",)


def test_optional_fields(tmp_path: Path) -> None:
    entries = [
        {**ENTRY, "Q": "Who?", "testset_id": 7, "expand_wav": "b.wav", "speaker": {"age": 3}},
        {**ENTRY, "Q": "", "testset_id": "x", "expand_wav": ["b.wav", "c.wav"], "texts": ["hi", "hello"]},
        {"path": "a.wav", "task": "audiocaption", "captions": ["one", "two"], "expand_wav": None},
        {**ENTRY, "references": "not a list: carried"},
    ]
    first, second, third, fourth = load_annotations(write(tmp_path / "a.json", {"annotation": entries}))
    assert (first.Q, first.testset_id, first.expand_wav) == ("Who?", "7", (str(tmp_path / "b.wav"),))
    assert first.extra == {"speaker": {"age": 3}}
    assert (second.Q, second.testset_id, len(second.expand_wav)) == (None, "x", 2)
    assert (second.text, second.texts) == ("hello", ("hello", "hi"))
    assert (third.text, third.texts, third.expand_wav, third.extra) == ("one", ("one", "two"), (), {})
    assert fourth.extra == {"references": "not a list: carried"}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    ("field", "value"),
    [("text", "a \ud800 b"), ("Q", "\udc00"), ("captions", ["one", "\ud83d"]), ("note", {"by": "\udead"})],
)
def test_half_a_character_is_an_error(tmp_path: Path, name: str, field: str, value: object) -> None:
    entries = [ENTRY, {**ENTRY, field: value}]
    lines = name.endswith("l")
    content = "\n".join(json.dumps(entry) for entry in entries) if lines else json.dumps(entries)
    message = error(tmp_path / name, content)
    assert ("line 2" if lines else "annotation[1]") in message and f"field '{field}'" in message
    assert "half of a surrogate pair" in message and message.isprintable()


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    entry = r'[{"path": "a", "task": "asr", "text": "\ud83d\ude00"}]'
    (annotation,) = load_annotations(write(tmp_path / "a.json", entry))
    assert annotation.text == "\U0001f600"


@pytest.mark.parametrize("field", ["texts", "captions", "references"])
@pytest.mark.parametrize(
    ("text", "listed", "expected"),
    [
        ("own", ["one", "two"], ("own", "one", "two")),
        ("two", ["one", "two"], ("two", "one")),
        ("one", ["one", "two"], ("one", "two")),
        ("one", ["one", "one", "one"], ("one",)),
        ("", ["one", "two"], ("one", "two")),
        (None, ["one", "two"], ("one", "two")),
    ],
)
def test_text_is_the_first_reference(
    tmp_path: Path, field: str, text: str | None, listed: list[str], expected: tuple[str, ...]
) -> None:
    file = write(tmp_path / "a.json", [{**ENTRY, "text": text, field: listed}])
    for annotation in (*load_annotations(file), *load_annotations(file, require_text=False)):
        assert (annotation.text, annotation.texts) == (expected[0], expected)


def test_text_may_be_absent_where_it_is_not_needed(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.json", [{"path": "a.wav", "task": "asr"}, {"path": "b.wav", "task": "asr", "text": None}]
    )
    annotations = load_annotations(file, require_text=False)
    assert [(a.text, a.texts) for a in annotations] == [("", ()), ("", ())]


def test_an_empty_text_is_a_reference(tmp_path: Path) -> None:
    (annotation,) = load_annotations(write(tmp_path / "a.json", [{**ENTRY, "text": ""}]))
    assert (annotation.text, annotation.texts) == ("", ("",))


def test_lines_of_json_end_at_newlines_alone(tmp_path: Path) -> None:
    text = "one\u2028two\x85three"
    lines = "\r\n".join(json.dumps(entry, ensure_ascii=False) for entry in ({**ENTRY, "text": text}, ENTRY))
    assert [a.text for a in load_annotations(write(tmp_path / "a.jsonl", lines))] == [text, ENTRY["text"]]


@pytest.mark.parametrize("clip", ["~nobody-at-home.wav", "x" * 400, "a\0b.wav"])
def test_names_that_no_file_can_have_wait_for_their_turn(tmp_path: Path, clip: str) -> None:
    file = write(tmp_path / "a.json", [{**ENTRY, "path": clip}])
    assert load_annotations(file, prefix=tmp_path)[0].path == str(tmp_path / clip)


def test_several_files_make_one_list(tmp_path: Path) -> None:
    one = write(tmp_path / "one/a.json", [ENTRY])
    two = write(tmp_path / "two/a.jsonl", json.dumps(ENTRY))
    annotations = load_annotations([str(one), str(two)])
    assert [a.index for a in annotations] == [0, 1]
    assert [a.path for a in annotations] == [str(tmp_path / "one/a.wav"), str(tmp_path / "two/a.wav")]
    assert annotations[1].source == f"{two}#0"


class TestPaths:
    def test_clips_under_prefix_win(self, tmp_path: Path) -> None:
        write(tmp_path / "data/a.wav", "x")
        file = write(tmp_path / "lists/a.json", [ENTRY, {**ENTRY, "path": "gone.wav"}])
        annotations = load_annotations(file, prefix=tmp_path / "data")
        assert [a.path for a in annotations] == [str(tmp_path / "data/a.wav"), str(tmp_path / "data/gone.wav")]

    def test_else_the_files_own_folder(self, tmp_path: Path) -> None:
        write(tmp_path / "data/digits/a.wav", "x")
        write(tmp_path / "data/digits/train.json", [{**ENTRY, "path": "gone.wav"}, ENTRY])
        first, second = load_annotations("digits/train.json", prefix=str(tmp_path / "data"))
        assert second.path == str(tmp_path / "data/digits/a.wav")
        assert first.path == str(tmp_path / "data/digits/gone.wav")

    def test_where_no_clip_is_found_the_prefix_is_named(self, tmp_path: Path) -> None:
        file = write(tmp_path / "lists/a.json", [ENTRY])
        assert load_annotations(file, prefix=tmp_path / "data")[0].path == str(tmp_path / "data/a.wav")

    def test_absolute_clips_stay(self, tmp_path: Path) -> None:
        clip = write(tmp_path / "elsewhere/a.wav", "x")
        file = write(tmp_path / "a.json", [{**ENTRY, "path": str(clip)}])
        assert load_annotations(file, prefix=tmp_path / "data")[0].path == str(clip)

    def test_rooted_clips_of_the_family_are_found_under_prefix(self, tmp_path: Path) -> None:
        write(tmp_path / "data/corpus/a.wav", "x")
        file = write(tmp_path / "a.json", [{**ENTRY, "path": "/corpus/a.wav"}])
        assert load_annotations(file, prefix=tmp_path / "data")[0].path == str(tmp_path / "data/corpus/a.wav")

    def test_missing_annotation_file_names_both_places(self, tmp_path: Path) -> None:
        with pytest.raises(AnnotationError, match=r"train\.json: no such annotation file") as caught:
            load_annotations("train.json", prefix=tmp_path)
        assert f"looked at train.json and at {tmp_path}/train.json" in str(caught.value)


class TestErrors:
    @pytest.mark.parametrize("name", ["path", "text", "task"])
    def test_missing_field(self, tmp_path: Path, name: str) -> None:
        entry = {key: value for key, value in ENTRY.items() if key != name}
        message = error(tmp_path / "a.json", {"annotation": [ENTRY, entry]})
        assert "annotation[1]" in message
        assert f"field '{name}' is missing" in message
        message = error(tmp_path / "a.jsonl", f"{json.dumps(ENTRY)}\n\n{json.dumps(entry)}\n")
        assert "line 3" in message

    @pytest.mark.parametrize("name", ["path", "task"])
    def test_empty_field(self, tmp_path: Path, name: str) -> None:
        assert f"field '{name}' is empty" in error(tmp_path / "a.json", [{**ENTRY, name: " "}])

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("path", 3, "expected text, found 3"),
            ("text", ["a"], 'expected text, found ["a"]'),
            ("text", None, "is null"),
            ("task", True, "expected text, found true"),
            ("Q", {"a": 1}, 'expected text, found {"a": 1}'),
            ("testset_id", 1.5, "expected text or a whole number, found 1.5"),
            ("testset_id", True, "expected text or a whole number, found true"),
            ("expand_wav", {"a": 1}, "expected a list of text"),
            ("expand_wav", ["a", 3], "expected a list of text, found 3"),
            ("texts", [1], "expected a list of text, found 1"),
            ("captions", [], "is an empty list"),
        ],
    )
    def test_wrong_type(self, tmp_path: Path, name: str, value: object, expected: str) -> None:
        message = error(tmp_path / "a.json", [ENTRY, {**ENTRY, name: value}])
        assert "annotation[1]" in message
        assert f"'{name}'" in message
        assert expected in message

    def test_broken_json_names_the_line(self, tmp_path: Path) -> None:
        text = json.dumps({"annotation": [ENTRY, ENTRY]}, indent=1).replace('"hello",', '"hello"', 1)
        message = error(tmp_path / "a.json", text)
        assert "line 6" in message  # where the parser meets the text that should be a comma
        assert "broken JSON" in message
        message = error(tmp_path / "a.jsonl", json.dumps(ENTRY) + "\n{broken\n")
        assert "line 2" in message

    def test_duplicate_testset_id_names_both(self, tmp_path: Path) -> None:
        message = error(tmp_path / "a.json", [{**ENTRY, "testset_id": 1}, ENTRY, {**ENTRY, "testset_id": "1"}])
        assert "annotation[2]: field 'testset_id': '1'" in message
        assert "annotation[0]" in message

    def test_the_same_testset_id_in_two_files_is_no_duplicate(self, tmp_path: Path) -> None:
        one, two = (write(tmp_path / f"{n}.json", [{**ENTRY, "testset_id": 0}]) for n in "ab")
        assert [a.testset_id for a in load_annotations([one, two])] == ["0", "0"]
        with pytest.raises(AnnotationError, match="testset_id"):
            load_annotations([one, one])

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ("", "is empty"),
            ([], "no entries"),
            ({"annotation": []}, "no entries"),
            ("3", "found 3"),
            ({"annotation": {"path": "a"}}, "found keys 'annotation'"),
            (["a.wav"], 'found "a.wav"'),
        ],
    )
    def test_nothing_to_read(self, tmp_path: Path, content: object, expected: str) -> None:
        assert expected in error(tmp_path / "a.json", content)

    def test_wrong_encoding(self, tmp_path: Path) -> None:
        file = tmp_path / "a.json"
        file.write_bytes(b'[{"path": "\xff"}]')
        with pytest.raises(AnnotationError, match="UTF-8"):
            load_annotations(file)

    def test_no_files(self) -> None:
        with pytest.raises(AnnotationError, match="no annotation files"):
            load_annotations([])


def test_real_recordings(real_dir: Path) -> None:
    annotations = load_annotations(
        ["asr_digits/annotation_train.json", "sound_events/annotation_train.json"], prefix=str(real_dir)
    )
    assert {a.task for a in annotations} == {"asr", "audiocaption"}
    assert all(Path(a.path).is_file() for a in annotations)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"PK\x03\x04 packed", "zip archive"),
        (b"", "empty"),
    ],
)
def test_a_file_that_is_something_else_is_named(tmp_path, content, words):
    file = tmp_path / "train.json"
    file.write_bytes(content)
    with pytest.raises(AnnotationError, match=words):
        load_annotations(file)


@pytest.mark.parametrize("start", ["[", " \n[", '{"annotation": [', '{ "annotation" :\n['])
def test_a_document_of_one_line_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(f'{start}{{"path": "a.wav", "task": "asr", "text": "x"}}]' + "}" * ("{" in start))
    parsed, real = [], json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(len(text)) or real(text))
    (annotation,) = load_annotations(file)
    assert annotation.text == "x" and len(parsed) == 1


@pytest.mark.parametrize("prefix", [".", "/data/", "/", "data", "./data", "data/../data", "~/data"])
@pytest.mark.parametrize(
    "clip",
    ["a.wav", "a/b.c/d e.wav", "-a/_b.wav", "a//b.wav", "a/./b.wav", "./a.wav", "../a.wav", "a/../b.wav", ".a/b.wav",
     "a/", "~/a.wav", "~a.wav", "/a/b.wav", "a\\b.wav", "\u00e9/a.wav"],
)  # fmt: skip
def test_plain_names_are_joined_as_pathlib_joins_them(tmp_path: Path, prefix: str, clip: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"path": clip, "task": "asr", "text": "x"}]))
    root = Path(prefix).expanduser()
    assert load_annotations(file, prefix)[0].path == str(
        root / Path(clip).expanduser() if clip != "~a.wav" else root / clip
    )

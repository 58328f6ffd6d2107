"""Problems of submissions, as `tools.check_submission` reports them."""

from pathlib import Path

import pytest

from tests import tiny
from tools import check_submission


def test_the_submission_of_a_mixed_file_is_checked_by_family(tmp_path: Path) -> None:
    mixed = [{"path": f"{task}.wav", "text": "a", "task": task} for task in ("asr", "audiocaption", "QA")]
    file = tiny.write_annotations(tmp_path / "mixed.json", mixed)
    csv_file = tmp_path / "submission.csv"
    csv_file.write_text("testset_id,text\naudiocaption,a dog\n", encoding="utf-8")
    assert check_submission.main([str(csv_file), str(file), "--task", "aac"]) == 0
    assert check_submission.main([str(csv_file), str(file)]) == 1


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([["a", "x"], ["b", "y"]], None),
        ([["b", "x"], ["a", "y"]], "another order: row 1 is b, expected a"),
        ([["a", "x"]], "1 ids missing: b"),
        ([["a", "x"], ["b", "y"], ["b", "z"]], "1 ids given more than once: b"),
        ([["a", "x"], ["b", "y"], ["c", "z"]], "1 ids that no annotation has: c"),
        ([["a", "x"], ["b", "y", "z"]], "first in line 3"),
    ],
)
def test_problems_of_submissions(rows: list[list[str]], problem: str | None) -> None:
    problems = check_submission.find_problems(["testset_id", "text"], rows, ["a", "b"])
    assert (problem is None and not problems) or problem in problems[0]
    assert "header is id,text" in check_submission.find_problems(["id", "text"], rows, ["a", "b"])[0]


def check(tmp_path: Path, content: str | bytes, *arguments: str) -> int:
    file = tmp_path / "submission.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return check_submission.main([str(file), *arguments])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("testset_id,text\ntest0000,a dog\ntest0001,\n", None),
        ('\ufefftestset_id,text\r\na,"one, two"\r\n\r\n', None),
        ('testset_id,text\na,"two\nlines"\n', None),
        ("testset_id,text\na,b\na,c\n", "1 ids given more than once: a"),
        ("testset_id,text\na,one, two\n", "without exactly two fields, the first in line 2"),
        ("testset_id,text\na\n", "without exactly two fields"),
        (",testset_id,text\n0,a,b\n", "header is ,testset_id,text; expected testset_id,text"),
        ("a,b\n", "header is a,b"),
        ("id\ttext\na\tb\n", "header is id\ttext"),
        ("testset_id,text\n", "no rows"),
        ("", "is empty (0 bytes)"),
        ("\n", "header is absent"),
        ("testset_id,text\na,\nb, \n", "all 2 texts are empty"),
        ("testset_id,text\n,b\n", "1 rows without an id, the first in line 2"),
        ("testset_id,text\na,b\n".encode("utf-16"), "no CSV file in UTF-8"),
        ("testset_id,text\na,caf\xe9\n".encode("latin-1"), "no CSV file in UTF-8"),
        ('testset_id,text\na,"b\n', "no CSV file in UTF-8"),
    ],
)
def test_the_file_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | bytes, problem: str | None
) -> None:
    status = check(tmp_path, content)
    printed = "".join(capsys.readouterr())
    assert status == (problem is not None)
    assert ("no problem found" if problem is None else problem) in printed
    assert "Traceback" not in printed


def test_a_sign_of_wrong_decoding_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, "testset_id,text\na,caf\ufffd\nb,c\n") == 0  # a model may write it
    assert "note: 1 rows with the sign � of text that was decoded wrongly: a" in capsys.readouterr().out


def test_ids_and_empty_texts_as_the_contest_asks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = "testset_id,text\ntest0000,a dog\ntest1,\n"
    assert check(tmp_path, content) == 0
    assert "2 rows, 1 of them empty; give its annotation file to check ids" in capsys.readouterr().out
    assert check(tmp_path, content, "--ids", r"test\d{4}", "--no-empty") == 1
    out = capsys.readouterr().out
    assert r"1 ids that are not as --ids test\d{4}: test1" in out and "1 empty texts: test1" in out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--task", "asr"], "choose clips of annotation files"),
        (["--prefix", "x"], "choose clips of annotation files"),
        (["--ids", "test("], "--ids test(: no regular expression"),
        (["nowhere.json"], "nowhere.json: no such annotation file"),
    ],
)
def test_mistaken_arguments_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    assert check(tmp_path, "testset_id,text\na,b\n", *arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and problem in err and err.count("\n") == 1
    assert check_submission.main([str(tmp_path / "absent.csv")]) == 1
    assert "absent.csv" in capsys.readouterr().err
    assert check_submission.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_long_text_is_no_broken_file(tmp_path: Path) -> None:
    """A text may be longer than csv's limit for a field."""
    assert check(tmp_path, f"testset_id,text\na,{'word ' * 40_000}\n") == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git-lfs pointer"),
        (b"PK\x03\x04" + bytes(90), "zip archive"),
        (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
    ],
)
def test_a_file_that_is_something_else(tmp_path: Path, capsys, content: bytes, words: str) -> None:
    assert check(tmp_path, content) == 1
    assert words in capsys.readouterr().err

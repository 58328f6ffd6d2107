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

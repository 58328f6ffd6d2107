"""`--mode test_all`: every task of a test file in one run, with or without texts, and one CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

import evaluate
from tests import tiny
from tools import check_submission


def hidden(project: tiny.TinyProject, entries: list[dict], **datasets: object) -> Path:
    """Write a test file of these tasks, and make it the only one of the YAML."""
    clips = [entry["path"] for entry in json.loads(project.test_asr.read_text())["annotation"]]
    rows = [{"path": clips[number % len(clips)], **entry} for number, entry in enumerate(entries)]
    file = tiny.write_annotations(project.test_asr.with_name("hidden.json"), rows)
    content = yaml.safe_load(project.config.read_text())
    for key in ("test_ann_path_asr", "test_ann_path_aac"):
        content["datasets"].pop(key)
    content["datasets"] |= {"test_ann_path": str(file), **datasets}
    project.config.write_text(yaml.safe_dump(content))
    return file


def rows_of(project: tiny.TinyProject, mode: str = "test_all") -> list[list[str]]:
    with open(project.output / "eval" / mode / "submission.csv", encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def run(project: tiny.TinyProject, *arguments: str) -> int:
    return evaluate.main(["--cfg-path", str(project.config), "--no-java", *arguments])


MIXED = [
    {"testset_id": "test0003", "task": "asr"},
    {"testset_id": "test0000", "task": "QA", "Q": "What is said?"},
    {"testset_id": "test0002", "task": "audiocaption"},
    {"testset_id": "test0001", "task": "asr"},
]


def test_one_csv_in_the_file_s_order(project: tiny.TinyProject, capsys: pytest.CaptureFixture[str]) -> None:
    file = hidden(project, MIXED)
    assert run(project, "--mode", "test_all") == 0
    rows = rows_of(project)
    assert rows[0] == ["testset_id", "text"]
    assert [row[0] for row in rows[1:]] == [entry["testset_id"] for entry in MIXED]
    assert check_submission.main([str(project.output / "eval/test_all/submission.csv"), str(file)]) == 0
    lines = (project.output / "eval" / "test_all" / "predictions.jsonl").read_text().splitlines()
    predictions = [json.loads(line) for line in lines]
    assert [line["task"] for line in predictions] == [entry["task"] for entry in MIXED]
    assert "What is said?" in predictions[1]["prompt"]
    scores = json.loads((project.output / "eval" / "test_all" / "scores.json").read_text())
    assert set(scores["tasks"]) == {"asr", "QA", "audiocaption"} and scores["clips"] == 4
    assert all(task["scores"][task["primary"]] is None for task in scores["tasks"].values())  # no texts to score by
    assert "have no reference" in capsys.readouterr().out


def test_it_is_what_a_yaml_with_one_test_file_means(project: tiny.TinyProject) -> None:
    hidden(project, MIXED)
    assert run(project) == 0
    assert len(rows_of(project)) == 5


def test_texts_are_scored_task_by_task(project: tiny.TinyProject) -> None:
    hidden(project, [{**entry, "text": "one two"} for entry in MIXED])
    assert run(project, "--mode", "test_all") == 0
    scores = json.loads((project.output / "eval" / "test_all" / "scores.json").read_text())["scores"]
    assert {"asr.wer", "QA.accuracy", "audiocaption.cider_d"} <= set(scores)
    assert not {"wer", "accuracy"} & set(scores)  # of no family


def test_without_such_a_file_it_is_all_that_the_yaml_names(
    project: tiny.TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    """The contest's two files both count from test0000: the file's name tells their rows apart."""
    files = []
    for task, file in (("asr", project.test_asr), ("audiocaption", project.test_aac)):
        clips = json.loads(file.read_text())["annotation"][:2]
        rows = [{"path": clip["path"], "task": task, "testset_id": f"test{n:04d}"} for n, clip in enumerate(clips)]
        files.append(str(tiny.write_annotations(file, rows)))
    assert run(project, "--mode", "test_all") == 0
    assert [row[0] for row in rows_of(project)[1:]] == [
        f"{Path(file).stem}/test{number:04d}" for file in files for number in range(2)
    ]
    assert "their rows are named FILE/ID" in capsys.readouterr().out
    assert check_submission.main([str(project.output / "eval/test_all/submission.csv"), *files]) == 0


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"testset_id": "test0004", "task": "age_QA"}, "age_QA"),
        ({"testset_id": "test0000", "task": "asr"}, "'test0000' was used before"),
        ({"testset_id": "test0004"}, "'task' is missing"),
    ],
)
def test_what_is_wrong_with_the_file_is_said_before_the_model_loads(
    project: tiny.TinyProject, capsys: pytest.CaptureFixture[str], generated: list[int], entry: dict, problem: str
) -> None:
    hidden(project, [*MIXED, entry])
    assert run(project, "--mode", "test_all") == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and problem in err and err.count("\n") == 1 and "hidden.json" in err
    assert generated == []


def test_a_new_task_needs_a_prompt_and_no_metric(project: tiny.TinyProject, tmp_path: Path) -> None:
    hidden(project, [*MIXED, {"testset_id": "test0004", "task": "age_group", "text": "adult"}])
    prompts = json.loads(Path(project.test_prompts).read_text())
    mine = tmp_path / "prompts.json"
    mine.write_text(json.dumps({**prompts, "age_group": "<Speech><SpeechHere></Speech> How old is the speaker?"}))
    assert run(project, "--mode", "test_all", "--options", f"model.test_prompt_path={mine}") == 0
    assert rows_of(project)[-1][0] == "test0004"
    task = json.loads((project.output / "eval/test_all/scores.json").read_text())["tasks"]["age_group"]
    assert task["primary"] is None and "no metric for task 'age_group'" in task["reasons"]["score"]

"""Figures by task and by file, and clips without a reference."""

import json
from pathlib import Path

import pytest

from configs.schema import load_config
from evaluation import hypotheses, modes
from tests import tiny
from tests.evaluations import Echo, entries, outputs, run


def test_clips_without_reference_or_name(project: tiny.TinyProject) -> None:
    annotations = [{"path": entry["path"], "task": "asr"} for entry in entries(project.test_asr)]
    tiny.write_annotations(project.test_asr, annotations)
    assert run(project, "--mode", "submission_asr") == 0
    rows, lines, scores = outputs(project, "submission_asr")
    assert [row["testset_id"] for row in rows] == [Path(entry["path"]).stem for entry in annotations]
    assert lines[0]["reference"] is None
    assert scores["scores"] == {"wer": None, "asr.wer": None}
    assert "5 of 5 clips have no reference" in scores["tasks"]["asr"]["reasons"]["wer"]


def test_an_empty_text_among_others_is_an_empty_reference(project: tiny.TinyProject) -> None:
    annotations = entries(project.test_asr)
    annotations[0]["text"] = ""
    tiny.write_annotations(project.test_asr, annotations)
    assert run(project, "--mode", "submission_asr") == 0
    _, lines, scores = outputs(project, "submission_asr")
    assert lines[0]["references"] == [""]
    assert scores["scores"]["wer"] is not None
    tiny.write_annotations(project.test_asr, [{**entry, "text": ""} for entry in annotations])
    assert run(project, "--mode", "submission_asr") == 0
    assert outputs(project, "submission_asr")[2]["scores"] == {"wer": None, "asr.wer": None}


def test_every_task_has_its_own_scores(project: tiny.TinyProject) -> None:
    assert run(project, "--mode", "valid_all") == 0
    _, lines, scores = outputs(project, "valid_all")
    assert [line["id"] for line in lines] == [entry["testset_id"] for entry in entries(project.valid)]
    assert set(scores["tasks"]) == {"asr", "audiocaption"}
    assert {"asr.wer", "audiocaption.cider_d"} <= set(scores["scores"])
    assert run(project, "--mode", "test_all", "--skip_scoring") == 0
    rows, _, scores = outputs(project, "test_all")
    assert len(rows) == len(entries(project.test_asr)) + len(entries(project.test_aac))


def test_names_of_figures_do_not_depend_on_what_else_is_in_the_file(project: tiny.TinyProject) -> None:
    """`wer` is that of task asr, whatever other tasks the file has."""
    clips = entries(project.test_asr)
    found = []
    for tasks in (["asr"], ["asr", "asr_zh"], ["asr", "QA"]):
        further = [
            {**clip, "task": task, "Q": "Who speaks?", "testset_id": f"{task}{number}"}
            for task in tasks[1:]
            for number, clip in enumerate(clips)
        ]
        tiny.write_annotations(project.test_asr, [*clips, *further])
        prompts = json.loads(project.test_prompts.read_text()) | {"asr_zh": "<Speech><SpeechHere></Speech> Write it."}
        project.test_prompts.write_text(json.dumps(prompts))
        assert run(project, "--mode", "submission_asr", "--no-java") == 0
        scores = outputs(project, "submission_asr")[2]
        assert "by_file" not in scores and set(scores["tasks"]) == set(tasks)
        found.append({name: value for name, value in scores["scores"].items() if not name.startswith(("asr_zh", "QA"))})
        assert scores["scores"]["wer"] == scores["scores"]["asr.wer"] == scores["tasks"]["asr"]["scores"]["wer"]
    assert found[0] == found[1] == found[2]


def test_scores_of_each_file_stand_beside_those_of_all(
    project: tiny.TinyProject, capsys: pytest.CaptureFixture
) -> None:
    clips = entries(project.test_asr)
    further = tiny.write_annotations(project.test_asr.with_name("further.json"), [{**clips[0], "testset_id": "again"}])
    files = f"datasets.test_ann_path_asr=[{json.dumps(str(project.test_asr))}, {json.dumps(str(further))}]"
    assert run(project, "--mode", "submission_asr", "--options", files) == 0
    scores = outputs(project, "submission_asr")[2]
    parts = scores["by_file"]
    assert {file: part["clips"] for file, part in parts.items()} == {str(project.test_asr): 5, str(further): 1}
    for count in ("substitutions", "deletions", "insertions", "reference_words"):
        assert sum(part["scores"][f"asr.{count}"] for part in parts.values()) == scores["scores"][f"asr.{count}"]
    assert parts[str(further)]["scores"]["wer"] == parts[str(further)]["scores"]["asr.wer"] is not None
    assert f"{further} (1 clips): asr.wer " in capsys.readouterr().out


def test_a_task_without_a_metric_is_not_scored(project: tiny.TinyProject) -> None:
    tiny.write_annotations(project.test_asr, [entry | {"task": "juggling"} for entry in entries(project.test_asr)])
    config = load_config(project.config)
    annotations = modes.select_annotations(config, "submission_asr")
    prompts = {"juggling": "<Speech><SpeechHere></Speech> Count."}
    result = hypotheses.evaluate_annotations(Echo(), annotations, prompts, config)
    assert result.tasks["juggling"].primary is None and "add a row" in result.tasks["juggling"].reasons["score"]

"""Which clips a mode evaluates, and under which names."""

import json

import pytest

from configs.parsing import ConfigError
from configs.schema import load_config
from data.annotations import AnnotationError
from evaluation import modes
from tests import tiny
from tests.evaluations import entries


def test_a_file_without_the_family_is_an_error(project: tiny.TinyProject) -> None:
    config = load_config(project.config, [f"datasets.valid_ann_path={project.test_aac}"])
    with pytest.raises(ConfigError, match=r"no clip for --mode valid_asr.*audiocaption \(4\)"):
        modes.select_annotations(config, "valid_asr")


def test_ids_that_two_test_files_share_make_a_row_each(
    project: tiny.TinyProject, capsys: pytest.CaptureFixture
) -> None:
    for path in (project.test_asr, project.test_aac):
        numbered = [entry | {"testset_id": number} for number, entry in enumerate(entries(path))]
        tiny.write_annotations(path, numbered)
    chosen = modes.select_annotations(load_config(project.config), "test_all", announce=True)
    said = capsys.readouterr().out
    assert f"{project.test_asr}#0 and {project.test_aac}#0; their rows are named FILE/ID" in said
    names = [clip.testset_id for clip in chosen]
    assert len(set(names)) == len(names) == len(entries(project.test_asr)) + len(entries(project.test_aac))
    assert {f"{project.test_asr.stem}/0", f"{project.test_aac.stem}/0"} <= set(names)


def test_an_id_that_two_files_of_a_submission_share_is_an_error(project: tiny.TinyProject) -> None:
    further = project.test_asr.with_name("further.json")
    config = load_config(
        project.config,
        [f"datasets.test_ann_path_asr=[{json.dumps(str(project.test_asr))}, {json.dumps(str(further))}]"],
    )
    clips = entries(project.test_asr)
    tiny.write_annotations(project.test_asr, [clip | {"testset_id": i} for i, clip in enumerate(clips)])
    tiny.write_annotations(further, [clip | {"testset_id": i + 4} for i, clip in enumerate(clips)])
    with pytest.raises(AnnotationError) as caught:
        modes.select_annotations(config, "submission_asr")
    assert str(caught.value).startswith(
        f"{further}#0: field 'testset_id': '4' was used before, at {project.test_asr}#4 (1 such in all)"
    )
    tiny.write_annotations(further, [{**clip, "testset_id": None} for clip in clips])  # names of ours are made unique
    names = [clip.testset_id for clip in modes.select_annotations(config, "submission_asr")]
    assert len(set(names)) == len(names) == 2 * len(clips)

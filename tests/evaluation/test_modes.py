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


@pytest.mark.parametrize(
    ("mode", "options", "keys"),
    [
        ("valid_asr", ["datasets.valid_ann_path="], ["datasets.test_ann_path_asr"]),
        ("valid_aac", ["datasets.valid_ann_path="], ["datasets.test_ann_path_aac"]),
        ("valid_all", ["datasets.valid_ann_path="], ["datasets.test_ann_path_asr", "datasets.test_ann_path_aac"]),
        ("valid_aac", [], ["datasets.valid_ann_path"]),
        ("valid_asr", ["datasets.valid_ann_path=", "datasets.test_ann_path_asr="], []),
        ("submission_asr", ["datasets.test_ann_path_asr="], []),
        ("test_all", [], ["datasets.test_ann_path_asr", "datasets.test_ann_path_aac"]),
    ],
)
def test_the_files_of_a_mode(project: tiny.TinyProject, mode: str, options: list[str], keys: list[str]) -> None:
    assert modes.annotation_keys(load_config(project.config, options), mode) == keys


@pytest.mark.parametrize("family", ["asr", "aac"])
def test_validation_falls_back_to_the_test_file(project: tiny.TinyProject, family: str, capsys) -> None:
    config = load_config(project.config, ["datasets.valid_ann_path="])
    chosen = modes.select_annotations(config, f"valid_{family}", announce=True)
    own = {"asr": project.test_asr, "aac": project.test_aac}[family]
    assert len(chosen) == len(entries(own))
    said = f"valid_{family}: datasets.valid_ann_path is not given; the clips of datasets.test_ann_path_{family}"
    assert said in capsys.readouterr().out


def test_validation_falls_back_to_the_familys_clips_of_a_common_file(project: tiny.TinyProject) -> None:
    both = tiny.write_annotations(project.test_asr.with_name("both.json"), entries(project.train))
    nothing = [f"datasets.{name}=" for name in ("valid_ann_path", "test_ann_path_asr", "test_ann_path_aac")]
    config = load_config(project.config, [*nothing, f"datasets.test_ann_path={both}"])
    assert {clip.task for clip in modes.select_annotations(config, "valid_asr")} == {"asr"}
    assert {clip.task for clip in modes.select_annotations(config, "valid_all")} == {"asr", "audiocaption"}


def test_a_validation_mode_needs_texts(project: tiny.TinyProject) -> None:
    tiny.write_annotations(
        project.test_asr, [{k: v for k, v in e.items() if k != "text"} for e in entries(project.test_asr)]
    )
    config = load_config(project.config, ["datasets.valid_ann_path="])
    with pytest.raises(AnnotationError, match="text"):
        modes.select_annotations(config, "valid_asr")


def test_no_file_for_a_mode_is_an_error(project: tiny.TinyProject) -> None:
    nothing = [f"datasets.{name}=" for name in ("valid_ann_path", "test_ann_path_asr", "test_ann_path_aac")]
    for mode, key in (
        ("valid_asr", "valid_ann_path"),
        ("submission_aac", "test_ann_path_aac"),
        ("test_all", "test_ann_path"),
    ):
        with pytest.raises(ConfigError, match=rf"datasets\.{key}: not given"):
            modes.select_annotations(load_config(project.config, nothing), mode)


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

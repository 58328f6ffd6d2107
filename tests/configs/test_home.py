"""`~` is the home folder in every path of a YAML, and never a folder of that name."""

import dataclasses

import pytest

from configs.schema import load_config
from configs.sections import DatasetsConfig, ModelConfig, RunConfig, WandbConfig
from support.command_line import UserError
from tests import tiny

SECTIONS = (DatasetsConfig, ModelConfig, RunConfig, WandbConfig)
PATHS = [(cls, field.name) for cls in SECTIONS for field in dataclasses.fields(cls) if "path" in field.metadata]


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("section", "key"), PATHS)
def test_every_path_knows_it(section, key, home):
    assert getattr(section(**{key: "~/x"}), key) == f"{home}/x"


def test_lists_of_paths_too(home):
    assert DatasetsConfig(train_ann_path=("~/a.json", "b.json")).train_ann_path == (f"{home}/a.json", "b.json")


def test_in_a_file_and_in_options(home, tmp_path):
    project = tiny.write_project(tmp_path / "project")
    config = load_config(project.config, ["run.output_dir=~/run", "model.llama_path=~/llm", "datasets.prefix=~/data"])
    assert config.run.output_dir == f"{home}/run" and config.model.llama_path == f"{home}/llm"
    assert config.datasets.prefix == f"{home}/data"


def test_a_home_that_is_not_there_is_an_error():
    with pytest.raises(UserError, match=r"output_dir: '~nobody_here/run': no such home folder"):
        RunConfig(output_dir="~nobody_here/run")


def test_every_key_that_names_a_file_or_folder_is_marked_as_a_path():
    for section in SECTIONS:
        for field in dataclasses.fields(section):
            if field.name.endswith(("_path", "_dir", "ckpt", "prefix", "dir_stage2")) or field.name == "dir":
                assert "path" in field.metadata, (section, field.name)

"""A small YAML of every shape in the family trains two steps and evaluates, on stand-ins for its networks and data."""

from __future__ import annotations

from pathlib import Path

import pytest

import evaluate
import train
from configs.schema import load_config
from tests.standins import StandIns

FILES = sorted((Path(__file__).parent / "families").glob("*.yaml"))
QUICK = ("cv13_train", "cv16_audiomentations", "nota_evaluate", "recsys08_qlora")
"""One of each kind; the others are slow together."""


@pytest.fixture(scope="module")
def standins(tmp_path_factory) -> StandIns:
    return StandIns.write(tmp_path_factory.mktemp("standins"))


def cases() -> list:
    return [pytest.param(file, id=file.stem, marks=[] if file.stem in QUICK else pytest.mark.slow) for file in FILES]


@pytest.mark.parametrize("file", cases())
def test_a_file_trains_and_evaluates(file: Path, standins: StandIns, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # so that its prompts are found next to the program alone
    options = ["--options", *standins.options(file, tmp_path / "out")]
    datasets = load_config(file).datasets
    adapter = []
    if datasets.train_ann_path:
        assert train.main(["--cfg-path", str(file), *options]) == 0, capsys.readouterr().err
        best = tmp_path / "out" / "best"  # there is one where there is a validation file
        newest = max((tmp_path / "out").glob("checkpoint_*"))
        adapter = ["--ckpt", str(best if best.exists() else newest)]
    mode = "valid_all" if datasets.valid_ann_path else "valid_aac"
    tested = datasets.test_ann_path or datasets.test_ann_path_asr or datasets.test_ann_path_aac
    if not (tested or datasets.valid_ann_path):
        options.append(f"datasets.test_ann_path={standins.project.test_aac}")
    assert not evaluate.main(["--cfg-path", str(file), "--mode", mode, "--no-java", *adapter, *options])
    assert (tmp_path / "out" / "eval" / mode / "submission.csv").is_file()

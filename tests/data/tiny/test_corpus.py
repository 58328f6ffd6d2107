"""The tiny recipe's corpus: its files, their tasks, its command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data import prepare
from data.annotations import load_annotations
from data.tiny.corpus import write_corpus
from scoring.tasks import task_metrics
from support.command_line import UserError

STAGE2 = {"asr", "audiocaption", "gender_recognition", "QA", "speaker_verification", "phone_recognition"}


def entries(folder: Path, name: str) -> list[dict]:
    return json.loads((folder / name).read_text(encoding="utf-8"))["annotation"]


def test_each_stage_has_its_tasks_and_every_task_a_score_and_prompts(recordings: Path, tmp_path: Path) -> None:
    write_corpus(recordings, tmp_path / "out", shipped=None)
    for name, tasks in {"align": {"asr"}, "stage1": {"asr", "audiocaption"}, "stage2": STAGE2}.items():
        read = load_annotations(tmp_path / "out" / f"{name}.json")  # finds no clip unless paths are right
        assert {annotation.task for annotation in read} == tasks
        assert all(Path(path).is_file() for annotation in read for path in (annotation.path, *annotation.expand_wav))
    for part in ("train", "test"):
        prompts = json.loads((Path(prepare.__file__).parents[1] / "prompts" / f"{part}.json").read_text("utf-8"))
        assert set(prompts) >= STAGE2
    assert all(task_metrics(task) for task in STAGE2)


def test_dev_and_test_files_of_every_task(recordings: Path, tmp_path: Path) -> None:
    write_corpus(recordings, tmp_path, shipped=None)
    names = {path.stem for path in tmp_path.glob("*_*.json")}
    both = {"asr", "asr_librispeech", "asr_speechocean", "aac", "gender", "qa", "speaker", "phone"}
    assert names >= {f"{part}_{name}" for part in ("dev", "test") for name in both}
    assert {"test_asr_kathleen", "test_asr_ljspeech", "test_asr_misc", "test_phone_kathleen"} <= names
    assert {entry["source"] for entry in entries(tmp_path, "test_asr_speechocean.json")} == {"speechocean762"}
    trained = {entry["path"] for entry in entries(tmp_path, "stage2.json")}
    for file in tmp_path.glob("*_*.json"):
        assert entries(tmp_path, file.name)
        assert trained.isdisjoint(entry["path"] for entry in entries(tmp_path, file.name))


def test_the_same_seed_gives_the_same_files(recordings: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_corpus(recordings, tmp_path / name, seed=seed, shipped=None)
    files = [path.name for path in (tmp_path / "a").iterdir()]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    assert (tmp_path / "a" / "stage2.json").read_bytes() != (tmp_path / "c" / "stage2.json").read_bytes()


def test_a_task_without_clips_is_an_error(recordings: Path, tmp_path: Path) -> None:
    file = recordings / "asr_en_many" / "annotation_dev.json"
    men = [entry for entry in entries(file.parent, file.name) if entry["gender"] == "male"]
    file.write_text(json.dumps({"annotation": men}), encoding="utf-8")
    with pytest.raises(UserError, match=r"real: no clip fits dev_gender.json; expected"):
        write_corpus(recordings, tmp_path / "out", shipped=None)


def test_the_command_says_what_it_wrote(recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["tiny", "--from", str(recordings), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "| align.json" in said
    assert "none is trained on" in said
    assert "the voice of kathleen is in train and test" in said
    sources = (tmp_path / "out" / "SOURCES.md").read_text(encoding="utf-8")
    assert "| librispeech_train-clean-5 | CC BY 4.0 | 12 " in sources
    assert "- Sound 101 by somebody, http" in sources  # CC BY; the one of CC0 need not be named
    assert "Sound 100 by" not in sources


def test_the_real_recordings(real_dir: Path, tmp_path: Path) -> None:
    write_corpus(real_dir, tmp_path)
    asr = entries(tmp_path, "align.json")
    assert len(asr) == len({entry["path"] for entry in asr}) == 4266
    assert "'em" in " ".join(entry["text"] for entry in asr)
    assert {entry["task"] for entry in entries(tmp_path, "stage2.json")} == STAGE2
    assert len(entries(tmp_path, "test_asr_librispeech.json")) == 192

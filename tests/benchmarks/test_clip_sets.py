"""Sets of clips: parts of files by a field, names, and samples that are parts of one another."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.clip_sets import read_sets
from support.command_line import UserError
from tests.tiny import write_annotations


def file_of(folder: Path, count: int = 40) -> str:
    entries = [
        {"path": f"{n}.wav", "text": f"w{n}", "task": "asr", "source": "a" if n % 4 else "b", "speaker": n // 10}
        for n in range(count)
    ]
    return str(
        write_annotations(folder / "test.json", [*entries, {"path": "s.wav", "text": "s", "task": "audiocaption"}])
    )


def test_a_file_and_parts_of_it(tmp_path: Path) -> None:
    file = file_of(tmp_path / "speech")
    whole, part, both = read_sets([file, f"{file}:source=b", f"{file}:source=b,speaker=1"], [])
    assert (whole.name, len(whole.clips)) == ("speech/test", 40)
    assert (part.name, len(part.clips)) == ("speech/test source=b", 10)
    assert [clip.text for clip in both.clips] == ["w12", "w16"] and both.given == f"{file}:source=b,speaker=1"
    captions, *_ = read_sets([], [file])
    assert [clip.text for clip in captions.clips] == ["s"] and captions.family == "aac"


def test_files_of_one_name_have_their_whole_paths(tmp_path: Path) -> None:
    files = [file_of(tmp_path / place / "speech") for place in ("x", "y")]
    assert [clips.name for clips in read_sets([*files, files[0]], [])] == files


def test_a_smaller_sample_is_part_of_a_larger_one(tmp_path: Path) -> None:
    (whole,) = read_sets([file_of(tmp_path)], [])
    small, large = whole.sample(5), whole.sample(20)
    texts = [[clip.text for clip in clips.clips] for clips in (small, large, whole)]
    assert set(texts[0]) < set(texts[1]) < set(texts[2]) and len(texts[1]) == 20
    assert texts[1] == sorted(texts[1], key=texts[2].index) and texts[1] != texts[2][:20]
    assert whole.sample(None) is whole and whole.sample(400) is whole and small.of == 40


@pytest.mark.parametrize(
    ("named", "problem"),
    [
        ("FILE:source=c", r"no clip of the 40 fits; their values of 'source' are a \(30\), b \(10\)"),
        ("FILE:colour=red", r"their values of 'colour' are None \(40\)"),
        ("FILE:source", "write FILE:field=value"),
        ("absent.json", "no such annotation file"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, named: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        read_sets([named.replace("FILE", file_of(tmp_path))], [])


def test_one_file_twice_is_one_table_only(tmp_path: Path) -> None:
    file = file_of(tmp_path)
    with pytest.raises(UserError, match="no clips to measure on"):
        read_sets([], [])
    assert [clips.family for clips in read_sets([file, file], [])] == ["asr"]

"""A language model that reads true transcripts in place of audio."""

import json
from pathlib import Path

from benchmarks import readable_pieces
from tests.tiny import write_project


def test_each_spelling_has_a_row_and_none_reads_nothing(tmp_path: Path, capsys) -> None:
    project = write_project(tmp_path / "project")
    out = tmp_path / "result.json"
    command = ["--cfg-path", str(project.config), "--counts", "1", "4", "--clips", "3", "--out", str(out)]
    assert readable_pieces.main(command) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [row["spelling"] for row in rows] == ["no transcript", "the tokenizer's own", "met 1 times", "met 4 times"]
    assert rows[0]["pieces_a_word"] == 0
    assert rows[2]["pieces"] > rows[3]["pieces"]
    assert rows[2]["pieces_a_word"] <= rows[3]["pieces_a_word"]
    assert all(row["cross_entropy"] > 0 for row in rows)
    assert "met 4 times" in capsys.readouterr().out


def test_the_tokenizers_own_spelling_has_the_tokens_of_the_text(tmp_path: Path) -> None:
    from configs.schema import load_config

    project = write_project(tmp_path / "project")
    config = load_config(project.config)
    first, again = (readable_pieces.measure(config, [1], 2) for _ in range(2))
    assert first == again

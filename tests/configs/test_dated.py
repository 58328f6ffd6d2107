"""Placeholders in folders' names: what they are, which folders they stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs import dated
from configs.schema import ConfigError, load_config

MOMENT = {"date": "2025-01-31", "time": "2025-01-31_18-05-59"}


@pytest.mark.parametrize(
    ("path", "filled"),
    [
        ("outputs/{date}", "outputs/2025-01-31"),
        ("outputs/{time}_mine", "outputs/2025-01-31_18-05-59_mine"),
        ("{date}/{time}/{date}", "2025-01-31/2025-01-31_18-05-59/2025-01-31"),
        ("outputs/[x].*+", "outputs/[x].*+"),
    ],
)
def test_a_folder_is_found_again_by_its_pattern(path: str, filled: str) -> None:
    assert dated.fill(path, MOMENT) == filled
    assert dated.moment_of(filled, path) == {name: MOMENT[name] for name in dated.placeholders(path)}
    assert dated.moment_of(f"{filled}2", path) is None and dated.moment_of(f"other/{filled}", path) is None


def test_a_repeated_placeholder_is_one_moment() -> None:
    assert dated.moment_of("2025-01-31/2025-02-01", "{date}/{date}") is None


def test_existing_folders_come_newest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("2025-01-31", "2024-12-31", "2025-02-01", "2025-02-01_stage2", "notes"):
        (tmp_path / "outputs [1]" / name).mkdir(parents=True)
    (tmp_path / "outputs [1]" / "2026-01-01").write_text("a file")
    assert [moment["date"] for moment in dated.existing("outputs [1]/{date}")] == [
        "2025-02-01",
        "2025-01-31",
        "2024-12-31",
    ]
    assert dated.existing("elsewhere/{date}") == []


def test_this_moment_is_of_the_documented_form() -> None:
    moment = dated.this_moment()
    assert dated.moment_of(f"a/{moment['date']}/{moment['time']}", "a/{date}/{time}") == moment


@pytest.mark.parametrize("wrong", ["{day}", "{}", "{date:%Y}", "{Date}", "{ date }"])
@pytest.mark.parametrize("key", ["output_dir", "output_dir_stage2"])
def test_an_unknown_placeholder_is_an_error(tmp_path: Path, wrong: str, key: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"run:\n  {key}: 'outputs/{{date}}/{wrong}'\n  output_dir_stage2: 'x'\n"
        if key == "output_dir"
        else f"run:\n  output_dir: 'outputs/{{date}}'\n  {key}: 'outputs/{wrong}'\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    message = str(caught.value)
    assert str(file) in message and f"run.{key}" in message and f"{wrong} is no placeholder" in message
    assert "{date}, {time}" in message


def test_both_stages_have_the_same_placeholders(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("run: {output_dir: 'outputs/{date}', output_dir_stage2: 'outputs/{time}'}\n")
    with pytest.raises(ConfigError, match=r"output_dir_stage2 has \{time\}, which run.output_dir has not"):
        load_config(file)


def test_a_placeholder_may_come_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("run: {seed: 1}\n")
    assert load_config(file, ["run.output_dir=outputs/{time}"]).run.output_dir == "outputs/{time}"

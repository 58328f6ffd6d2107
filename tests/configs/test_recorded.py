"""An adapter is used by the rules that its own folder records."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.recorded import legacy_to_use, recorded_legacy, require_recorded_rules
from configs.schema import load_config
from support.command_line import UserError
from tests import tiny


def record(folder: Path, legacy: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(f"model:\n  legacy: {legacy}\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("written", "read"), [("weights", "weights"), ("'off'", "off"), ("off", "off"), ("true", "exact"), ("null", None)]
)
def test_the_record_is_read(tmp_path: Path, written: str, read: str | None) -> None:
    assert recorded_legacy(str(record(tmp_path, written))) == read


def test_a_record_is_found_through_files_runs_and_pointers(tmp_path: Path) -> None:
    folder = record(tmp_path / "run" / "checkpoint_000003", "weights")
    (tmp_path / "run" / "last").write_text("checkpoint_000003\n")
    for name in ("checkpoint_000003", "checkpoint_000003/adapter.safetensors", "last", ""):
        assert recorded_legacy(str(tmp_path / "run" / name)) == "weights", name
    (folder / "config.yaml").write_text("- [")
    assert recorded_legacy(str(folder)) is None and recorded_legacy(str(tmp_path / "nowhere")) is None


def test_the_record_wins_but_exact_may_be_asked_for(tmp_path: Path) -> None:
    released, ours = str(record(tmp_path / "released", "weights")), str(record(tmp_path / "ours", "'off'"))
    wanted = ("off", "weights", "exact")
    assert [legacy_to_use(released, legacy) for legacy in wanted] == ["weights", "weights", "exact"]
    assert [legacy_to_use(ours, legacy) for legacy in wanted] == ["off", "off", "off"]
    assert legacy_to_use(str(tmp_path / "x.pth"), "weights") == "weights"
    require_recorded_rules(released, "exact")
    with pytest.raises(UserError, match=r"model\.legacy is off, but .*released was .* set model\.legacy: weights"):
        require_recorded_rules(released, "off")


def test_another_adapter_brings_its_own_rules(shared_tiny_project: tiny.TinyProject, tmp_path: Path) -> None:
    config = load_config(shared_tiny_project.config)
    released, ours = str(record(tmp_path / "released", "weights")), str(record(tmp_path / "ours", "'off'"))
    assert config.with_adapter(released).model.legacy == "weights"
    assert config.with_adapter(released).with_adapter(ours).model.legacy == "off"
    assert load_config(shared_tiny_project.config, ["model.legacy=exact"]).with_adapter(ours).model.legacy == "off"

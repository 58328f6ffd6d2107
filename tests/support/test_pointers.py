"""Names that stand for a folder: links, and small files where there are no links."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from support.pointers import point, pointed

NO_LINKS = (OSError(errno.EOPNOTSUPP, "no"), PermissionError(errno.EPERM, "no"), NotImplementedError("no"))


def refuse_links(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*arguments, **options) -> None:
        raise error

    monkeypatch.setattr(os, "symlink", refuse)


def folders(root: Path) -> tuple[Path, Path]:
    first, second = root / "checkpoint_1", root / "checkpoint_2"
    (first / "state").mkdir(parents=True)
    second.mkdir()
    return first, second


def test_a_link_is_set_and_moved(tmp_path: Path) -> None:
    first, second = folders(tmp_path)
    point(tmp_path / "best", first)
    assert (tmp_path / "best").is_symlink() and pointed(tmp_path / "best" / "state") == first / "state"
    point(tmp_path / "best", second)
    assert pointed(tmp_path / "best") == second and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("error", NO_LINKS)
def test_a_file_takes_the_place_of_the_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    refuse_links(monkeypatch, error)
    first, second = folders(tmp_path)
    for target in (first, second):
        point(tmp_path / "best", target)
        assert (tmp_path / "best").read_text() == f"{target.name}\n" and pointed(tmp_path / "best") == target
    point(tmp_path / "best", first)
    assert pointed(tmp_path / "best" / "state") == first / "state"
    assert not list(tmp_path.glob(".*"))


def test_a_link_from_before_is_replaced_and_its_target_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = folders(tmp_path)
    point(tmp_path / "best", first)
    refuse_links(monkeypatch, NO_LINKS[0])
    point(tmp_path / "best", second)
    assert pointed(tmp_path / "best") == second and (tmp_path / "best").is_file()
    assert sorted(path.name for path in first.iterdir()) == ["state"]


def test_a_link_takes_the_place_of_the_file(tmp_path: Path) -> None:
    _, second = folders(tmp_path)
    (tmp_path / "best").write_text("checkpoint_1\n")
    point(tmp_path / "best", second)
    assert (tmp_path / "best").is_symlink() and pointed(tmp_path / "best") == second


@pytest.mark.parametrize("content", ["checkpoint_1", "checkpoint_1\r\n", "./checkpoint_1\n"])
def test_links_that_became_files_are_read(tmp_path: Path, content: str) -> None:
    """Of an archive, or of git where it may not make links: no line's end, or Windows' own."""
    first, _ = folders(tmp_path)
    (tmp_path / "last").write_bytes(content.encode())
    assert pointed(tmp_path / "last") == first


@pytest.mark.parametrize("content", [b"", b"\n", b"no_such_name", b"two\nlines", b"\xff\xfe", b"last", b"x" * 5000])
def test_other_files_are_no_pointers(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last").write_bytes(content)
    assert pointed(tmp_path / "last") == tmp_path / "last"
    assert pointed(tmp_path / "nowhere") == tmp_path / "nowhere"


def test_a_link_is_moved_where_renaming_does_not_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()

    def only_to_free_names(source, target, **_options):
        if os.path.lexists(target):
            raise FileExistsError(17, "File exists")
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", only_to_free_names)
    for name in ("one", "two", "one"):
        point(tmp_path / "best", tmp_path / name)
        assert pointed(tmp_path / "best") == tmp_path / name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "one", "two"]

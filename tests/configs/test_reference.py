"""`docs/configuration.md` is what the schema says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from configs import reference, sections

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
SECTIONS = [cls for cls in vars(sections).values() if dataclasses.is_dataclass(cls)]


@pytest.mark.parametrize("cls", SECTIONS, ids=lambda cls: cls.__name__)
def test_every_field_has_a_docstring(cls: type) -> None:
    assert set(reference.docstrings(cls)) == {field.name for field in dataclasses.fields(cls)}


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference.markdown(), (
        "run: python -m configs.reference > docs/configuration.md"
    )


@pytest.mark.parametrize("cls", SECTIONS, ids=lambda cls: cls.__name__)
def test_every_section_and_mapping_is_on_the_page(cls: type) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert " ".join(cls.__doc__.split()) in page
    assert all(f"| `{field.name}` |" in page for field in dataclasses.fields(cls))

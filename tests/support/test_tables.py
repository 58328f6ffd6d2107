"""Tables: aligned, with a dash for what is missing."""

from support.tables import format_table


def test_table_is_aligned() -> None:
    table = format_table(["a", "long header"], [["x", None], ["wide cell", 1.5]])
    assert len({len(line) for line in table.splitlines()}) == 1
    assert "–" in table and "1.5" in table

"""Tables for a terminal."""

from support.tables import format_table


def test_columns_are_aligned_and_none_is_a_dash() -> None:
    assert format_table(["part", "MiB"], [["whisper", 12.5], ["x", None]]).splitlines() == [
        "| part    | MiB  |",
        "|---------|------|",
        "| whisper | 12.5 |",
        "| x       | –    |",
    ]

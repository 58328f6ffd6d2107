"""Tables of what was written and what is trained on."""

from __future__ import annotations

from data.tiny.sources import sources_text, table_of_files

CLIP = {"source": "kathleen", "license": "CC0 1.0", "speaker": "kathleen", "duration": 1800.0, "task": "asr"}


def test_a_row_counts_entries_files_hours_and_speakers() -> None:
    pair = {
        "path": "a",
        "expand_wav": ["b"],
        "speakers": ["x", "y"],
        "duration": 1800.0,
        "task": "speaker_verification",
    }
    table = table_of_files({"stage2.json": [{**CLIP, "path": "a"}, pair]})
    assert [cell.strip() for cell in table.splitlines()[-1].split("|")[1:-1]] == [
        "stage2.json", "2", "2", "1.00", "3", "asr 1, speaker_verification 1",
    ]  # fmt: skip


def test_sources_have_licences_hours_and_credits() -> None:
    text = sources_text([{**CLIP, "path": "a"}, {**CLIP, "path": "b"}, {**CLIP, "path": "b"}])
    assert "| kathleen | CC0 1.0 | 2     | 1.00  | 1        |" in text
    assert "- kathleen: one voice reading" in text

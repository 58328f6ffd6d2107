"""What the corpus is made of: a table of its files, and the licences and authors of what is trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from data.tiny.held_out import paths_of, speakers_of
from data.tiny.recordings import Clip
from support.tables import format_table

SECONDS_AN_HOUR = 3600
CREDITS = {
    "librispeech_train-clean-5": "Mini LibriSpeech, train-clean-5; V. Panayotov, G. Chen, D. Povey, S. Khudanpur, "
    "ICASSP 2015, openslr.org/31",
    "librispeech_dev-clean": "LibriSpeech, 20 speakers of dev-clean; V. Panayotov et al., ICASSP 2015, openslr.org/12",
    "speechocean762": "speechocean762; J. Zhang et al., Interspeech 2021, openslr.org/101",
    "kathleen": "one voice reading CMU Arctic's sentences; github.com/rhasspy/dataset-voice-kathleen",
    "esc-10": "ESC-10; K. J. Piczak, ACM Multimedia 2015 (as a whole CC BY 3.0); the recordings of Freesound are "
    "listed below; captions were written from the recordists' titles and the class",
}


def table_of_files(files: Mapping[str, Sequence[Clip]]) -> str:
    """One row for each annotation file."""
    rows = []
    for name, entries in files.items():
        tasks = sorted({entry["task"] for entry in entries})
        counts = ", ".join(f"{task} {sum(entry['task'] == task for entry in entries):,}" for task in tasks)
        speakers = {speaker for entry in entries for speaker in speakers_of(entry)}
        clips = {path for entry in entries for path in paths_of(entry)}
        seconds = sum(entry["duration"] for entry in entries)
        rows.append(
            (name, f"{len(entries):,}", f"{len(clips):,}", f"{seconds / SECONDS_AN_HOUR:.2f}", len(speakers), counts)
        )
    return format_table(("file", "entries", "clips", "hours", "speakers", "tasks"), rows)


def sources_text(trained: Sequence[Clip]) -> str:
    """SOURCES.md: what is trained on, whose it is, under which licence."""
    clips = {entry["path"]: entry for entry in trained}
    groups: dict[tuple[str, str], list[Clip]] = defaultdict(list)
    for clip in clips.values():
        groups[clip["source"], clip["license"]].append(clip)
    rows = []
    for (source, licence), members in sorted(groups.items()):
        hours = sum(clip["duration"] for clip in members) / SECONDS_AN_HOUR
        speakers = {speaker for clip in members for speaker in speakers_of(clip)}
        rows.append((source, licence, f"{len(members):,}", f"{hours:.2f}", len(speakers) or None))
    lines = [
        "# What is trained on",
        "",
        format_table(("source", "licence", "clips", "hours", "speakers"), rows),
        "",
        *(f"- {source}: {CREDITS[source]}" for source in sorted({source for source, _ in groups})),
        "- Phones: looked up in CMUdict (BSD-2), not checked against the audio.",
        "",
        "## Recordings of Freesound under CC BY",
        "",
        *sorted({f"- {clip['attribution']}" for clip in clips.values() if clip["license"] == "CC-BY"}),
    ]
    return "\n".join(lines) + "\n"

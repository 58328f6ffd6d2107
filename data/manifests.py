"""NeMo manifests, Lhotse cuts and Kaldi data folders -> entries as our annotation files have them.

They have no `task`: it is `asr` where the entry names none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.annotation_error import AnnotationError

TASK = "asr"
KALDI_FILES = ("wav.scp", "segments", "text")
KALDI_TO_END = -1
LHOTSE_CUTS = ("MonoCut", "MultiCut", "Cut", "DataCut")
LHOTSE_OTHERS = ("MixedCut", "PaddingCut")
WHOLE_S = 1e-3
"""A cut that lacks less than this of its recording is all of it."""


def our_entry(entry: dict[str, Any], place: str) -> dict[str, Any]:
    """The entry with our field names; unchanged where it has a `path` or is of no known form.

    Raises:
        AnnotationError: it is of a known form, but names no file, or more than a part of one file.
    """
    if "path" in entry:
        return entry
    if "audio_filepath" in entry:
        return _from_nemo(entry, place)
    if entry.get("type") in (*LHOTSE_CUTS, *LHOTSE_OTHERS) or isinstance(entry.get("recording"), dict):
        return _from_lhotse(entry, place)
    if "recording_id" in entry or ("sources" in entry and "sampling_rate" in entry):
        kind = "supervision" if "recording_id" in entry else "recording"
        raise AnnotationError(
            f"{place}: a Lhotse {kind}, which has only half of what is needed; write cuts: `lhotse cut simple -r "
            "RECORDINGS -s SUPERVISIONS CUTS.jsonl`, then `lhotse cut trim-to-supervisions`"
        )
    return entry


def _from_nemo(entry: Mapping[str, Any], place: str) -> dict[str, Any]:
    if "shard_id" in entry:
        raise AnnotationError(
            f"{place}: field 'shard_id': the clips of a tarred NeMo manifest are inside tar files; unpack them, and "
            "drop the field"
        )
    if not isinstance(entry["audio_filepath"], str):
        raise AnnotationError(
            f"{place}: field 'audio_filepath': expected the path of one file, found {entry['audio_filepath']!r}"
        )
    rest = {name: value for name, value in entry.items() if name != "audio_filepath"}
    return {"path": entry["audio_filepath"], "task": entry.get("taskname") or TASK, **rest}


def _from_lhotse(cut: Mapping[str, Any], place: str) -> dict[str, Any]:
    recording, kind = cut.get("recording"), cut.get("type")
    if kind in LHOTSE_OTHERS or "tracks" in cut:
        raise AnnotationError(
            f"{place}: a Lhotse {kind or 'MixedCut'}, which is mixed from several; save its audio first "
            "(`cuts.save_audios`), and write those cuts"
        )
    if not isinstance(recording, dict):
        raise AnnotationError(
            f"{place}: a Lhotse cut without its recording; expected one with audio, not features alone"
        )
    sources = recording.get("sources")
    source = sources[0] if isinstance(sources, list) and len(sources) == 1 else None
    if not isinstance(source, dict) or source.get("type") != "file" or not isinstance(source.get("source"), str):
        raise AnnotationError(
            f"{place}: a Lhotse cut whose recording is not one file; save its audio first (`cuts.save_audios`)"
        )
    changes = [name for where in (recording, cut) for name in ("transforms", "tempo", "speed") if where.get(name)]
    if changes:
        raise AnnotationError(
            f"{place}: a Lhotse cut with {changes[0]} ({recording.get(changes[0]) or cut.get(changes[0])}), not "
            "applied here; save its audio first (`cuts.save_audios`), or drop them"
        )
    custom = cut["custom"] if isinstance(cut.get("custom"), dict) else {}
    entry: dict[str, Any] = {"path": source["source"], "task": custom.get("task") or TASK, **_lhotse_text(cut)}
    start, duration, whole = cut.get("start") or 0, cut.get("duration"), recording.get("duration")
    numbers = all(isinstance(value, int | float) for value in (start, duration, whole))
    if not (numbers and start == 0 and abs(whole - duration) < WHOLE_S):
        entry |= {"start": start, "duration": duration}
    elif duration:
        entry["duration"] = duration
    channels = recording.get("channel_ids") or source.get("channels") or [0]
    if cut.get("channel") not in (None, channels, channels[0] if len(channels) == 1 else None):
        entry["channel"] = cut["channel"]
    if recording.get("sampling_rate") is not None:
        entry["sampling_rate"] = recording["sampling_rate"]
    return entry | {"testset_id": cut.get("id")} | ({"custom": custom} if custom else {})


def _lhotse_text(cut: Mapping[str, Any]) -> dict[str, Any]:
    """The text of all supervisions, in the order of their starts, and the speaker where there is one."""
    said = [one for one in cut.get("supervisions") or () if isinstance(one, dict)]
    said.sort(key=lambda one: one.get("start") if isinstance(one.get("start"), int | float) else 0)
    texts = [one["text"] for one in said if isinstance(one.get("text"), str)]
    speakers = {one.get("speaker") for one in said if isinstance(one.get("speaker"), str)}
    return ({"text": " ".join(texts)} if texts else {}) | ({"speaker": speakers.pop()} if len(speakers) == 1 else {})


# -- Kaldi -----------------------------------------------------------------------------------------------------------


def kaldi_folder(path: Path) -> Path | None:
    """The Kaldi data folder that a path means: the folder itself, or one of its files; None: neither."""
    folder = path.parent if path.name in KALDI_FILES else path
    return folder if (folder / "wav.scp").is_file() else None


def read_kaldi(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """An entry for each utterance of `segments`, else for each recording of `wav.scp`, with its text, and its place.

    Raises:
        AnnotationError: a broken line, a pipe in place of a file, a segment of a recording that is not there, a text of
            an utterance that is not there.
    """
    files = {name: (place, path) for place, name, path in _rows(folder / "wav.scp", 2)}
    for place, path in files.values():
        if path.endswith("|"):
            raise AnnotationError(
                f"{place}: a command in place of a file ({path}); run it, and write the name of the file that it gives"
            )
    has_text = (folder / "text").is_file()
    texts = dict(_utterance(row) for row in _rows(folder / "text", 2, rest_may_be_empty=True)) if has_text else {}
    entries = []
    if (folder / "segments").is_file():
        for place, utterance, rest in _rows(folder / "segments", 4):
            recording, start, end = rest.split()
            if recording not in files:
                raise AnnotationError(f"{place}: recording {recording!r} is not in {folder / 'wav.scp'}")
            times = {"start": _number(start, place), "end": _number(end, place)}
            if times["end"] == KALDI_TO_END:
                del times["end"]
            entries.append((place, utterance, files[recording][1], times))
    else:
        entries = [(place, name, path, {}) for name, (place, path) in files.items()]
    known = {utterance for _, utterance, _, _ in entries}
    missing = [utterance for utterance in texts if utterance not in known]
    if missing:
        raise AnnotationError(
            f"{folder / 'text'}: utterance {missing[0]!r} is not in "
            f"{folder / ('segments' if (folder / 'segments').is_file() else 'wav.scp')} ({len(missing)} such); run "
            "utils/fix_data_dir.sh"
        )
    return [
        (
            place,
            {"path": path, "task": TASK, "testset_id": name, **times}
            | ({"text": texts[name]} if name in texts else {}),
        )
        for place, name, path, times in entries
    ]


def _rows(file: Path, columns: int, rest_may_be_empty: bool = False) -> list[tuple[str, str, str]]:
    """(place, first column, the others) of each line; of `columns` > 2, exactly so many."""
    try:
        content = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(f"{file}: cannot be read ({error}); expected lines of text in UTF-8") from None
    rows, first = [], {}
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        name, _, rest = line.strip().replace("\t", " ").partition(" ")
        rest = rest.strip()
        count = 1 + (len(rest.split()) if columns > 2 else bool(rest))
        if count != columns and not (rest_may_be_empty and not rest):
            raise AnnotationError(f"{file}, line {number}: expected {columns} columns, found {line.strip()!r}")
        place = f"{file}, line {number}"
        if name in first:
            raise AnnotationError(f"{place}: {name!r} is there twice, first in line {first[name]}; keep one of them")
        first[name] = number
        rows.append((place, name, rest))
    return rows


def _utterance(row: tuple[str, str, str]) -> tuple[str, str]:
    return row[1], row[2]


def _number(text: str, place: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise AnnotationError(f"{place}: expected a time in seconds, found {text!r}") from None

"""Nothing held out is trained on: speakers, sentences, recordings and files of all test and dev annotations."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.annotation_error import AnnotationError
from support.command_line import UserError

SAME_VOICE = frozenset({"kathleen"})
"""Speakers of train and test; their sentences are still kept apart."""


@dataclass
class HeldOut:
    """What must not be trained on; each with the annotation file that holds it out."""

    files: list[str] = field(default_factory=list)
    sentences: dict[str, str] = field(default_factory=dict)
    speakers: dict[str, str] = field(default_factory=dict)
    recordings: dict[str, str] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)

    def add(self, file: Path, entries: Iterable[Mapping[str, Any]]) -> None:
        """Take up the entries of an annotation file.

        Raises:
            AnnotationError: an entry has nothing by which training clips can be compared with it.
        """
        name = f"{file.parent.name}/{file.name}"
        self.files.append(name)
        for entry in entries:
            known = sentences_of(entry), speakers_of(entry), recordings_of(entry)
            if not any(known):
                raise AnnotationError(
                    f"{file}: {entry['path']} has no transcript, speaker, src_file or Freesound address, so nothing "
                    "tells whether it is trained on; add one of these fields"
                )
            paths = {str((file.parent / path).resolve()) for path in paths_of(entry)}
            for held, found in zip(
                (self.sentences, self.speakers, self.recordings, self.paths), (*known, paths), strict=True
            ):
                held.update({item: held.get(item, name) for item in found})

    def check(self, entries: Iterable[Mapping[str, Any]], trained: str) -> None:
        """Refuse training entries that are held out.

        Raises:
            UserError: names the clip, what it shares, and with which annotation file.
        """
        for entry in entries:
            shared = [
                *((self.paths, "file", path) for path in paths_of(entry)),
                *((self.recordings, "recording", recording) for recording in recordings_of(entry)),
                *((self.speakers, "speaker", speaker) for speaker in speakers_of(entry) if speaker not in SAME_VOICE),
                *((self.sentences, "sentence", sentence) for sentence in sentences_of(entry)),
            ]
            for held, what, found in shared:
                if found in held:
                    raise UserError(
                        f"{trained}: {entry['path']} has the {what} {found!r}, which {held[found]} holds out; "
                        "remove the clip from the training part or the entry from the held-out one"
                    )


def read_held_out(root: Path, shipped: Path | None) -> HeldOut:
    """All that the test and dev annotations in the folders of `root` hold out, and the clips that the program ships.

    Raises:
        UserError: there is no such annotation, or one is broken.
    """
    held_out = HeldOut()
    files = sorted(file for file in root.glob("*/annotation*.json") if re.search("test|dev|valid", file.name))
    if not files:
        raise UserError(f"{root}: no folder with an annotation_test.json; expected the folder of the recordings")
    for file in [*files, *([shipped] if shipped is not None and shipped.is_file() else [])]:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            entries = content["annotation"] if isinstance(content, dict) else content
            held_out.add(file, entries)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AnnotationError(f"{file}: expected {{'annotation': [{{'path', ...}}]}}; found {error!r}") from error
    return held_out


def sentences_of(entry: Mapping[str, Any]) -> set[str]:
    """What is said in an entry's clips, in plain letters; captions and answers are no sentences."""
    said = [entry.get("words"), *entry.get("sentences", [])]
    if str(entry.get("task")).startswith("asr"):
        said += [entry.get("text"), entry.get("text_norm"), entry.get("text_original")]
    return {letters(text) for text in said if text} - {""}


def letters(text: str) -> str:
    """A text in lower case without punctuation, for comparison: `Don't` is `dont`, a hyphen is a space."""
    text = re.sub(r"['\u2019]", "", text.lower())
    return " ".join(re.sub(r"[^\w]|_", " ", text).split())


def speakers_of(entry: Mapping[str, Any]) -> set[str]:
    """The speakers of an entry's clips."""
    return {str(name) for name in [entry.get("speaker"), *entry.get("speakers", [])] if name is not None}


def recordings_of(entry: Mapping[str, Any]) -> set[str]:
    """The numbers of an entry's recordings on Freesound: the field `src_file`, or the address of the attribution."""
    addressed = re.findall(r"freesound\.org/people/[^/]+/sounds/(\d+)", str(entry.get("attribution")))
    return {str(entry["src_file"])} if entry.get("src_file") is not None else set(addressed)


def paths_of(entry: Mapping[str, Any]) -> list[str]:
    """The files of an entry."""
    return [entry["path"], *entry.get("expand_wav", [])]

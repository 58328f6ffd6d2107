"""Clips that cannot be used: listed in a file and counted; too many of them stop the run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from data.batch import BadClip
from support.command_line import UserError

NAMED_IN_ERROR = 3


class TooManyBadClips(UserError):
    """More clips than `datasets.max_bad_fraction` allows cannot be used."""


class Quarantine:
    """Bad clips of a run. Each is written once, as a line `{index, path, reason}`, and counted once.

    With `path=None` a process only counts: with several processes, each adds every clip (gathered by the caller), so
    that all stop together, and one writes. An existing file is continued: its clips are not written again. Clips of
    another set are written by `note`, with its name as `split`, and not counted. The count before a restart is not read
    from the file, which may have more clips than the checkpoint that the run continues from: `take_up` restores it.
    """

    def __init__(self, path: str | Path | None, total: int, max_bad_fraction: float) -> None:
        self.path = None if path is None else Path(path)
        self.total = total
        self.max_bad_fraction = max_bad_fraction
        self.clips: dict[int, BadClip] = {}
        self._written = self._read() if self.path is not None else set()

    def __len__(self) -> int:
        return len(self.clips)

    def add(self, clip: BadClip) -> None:
        """Write and count a clip.

        Raises:
            TooManyBadClips: now there are more than `max_bad_fraction * total` of them.
        """
        if clip.index in self.clips:
            return
        self.clips[clip.index] = clip
        self._write(clip, {})
        if len(self.clips) > self.max_bad_fraction * self.total:
            raise TooManyBadClips(self._too_many())

    def take_up(self, clips: Iterable[BadClip]) -> None:
        """Count the clips that the run had counted when it stopped, so that the limit applies to the whole run."""
        for clip in clips:
            if clip.index not in self.clips:
                self.clips[clip.index] = clip
                self._write(clip, {})

    def note(self, clip: BadClip, split: str) -> None:
        """Write a clip of another set, without counting it."""
        self._write(clip, {"split": split})

    def _write(self, clip: BadClip, mark: dict[str, str]) -> None:
        key = (clip.index, clip.path, mark.get("split"))
        if self.path is None or key in self._written:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(clip) | mark, ensure_ascii=False) + "\n")
        self._written.add(key)

    def _too_many(self) -> str:
        named = [f"  {clip.path}: {clip.reason}" for clip in list(self.clips.values())[:NAMED_IN_ERROR]]
        if len(self.clips) > NAMED_IN_ERROR:
            named.append(f"  … and {len(self.clips) - NAMED_IN_ERROR} more")
        listed = f" (all in {self.path})" if self.path is not None else ""
        return "\n".join(
            [
                f"{len(self.clips)} of {self.total} clips cannot be used, more than datasets.max_bad_fraction = "
                f"{self.max_bad_fraction:g} allows{listed}; fix or remove them, or allow more:",
                *named,
            ]
        )

    def _read(self) -> set[tuple[int, str, str | None]]:
        if not self.path.exists():
            return set()
        text = self.path.read_text(encoding="utf-8", errors="replace")
        if text and not text.endswith("\n"):  # a line cut off by a kill: end it before the next one
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")
        written = set()
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                written.add((entry["index"], entry["path"], entry.get("split")))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
        return written

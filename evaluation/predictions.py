"""What a model said about each clip: one JSON line a clip, written as it comes, and the CSV made from it.

A folder of predictions survives being killed at any moment: lines are appended and flushed one by one, a last line that
was cut off is dropped on reading, and `run.json` holds the hashes of everything that the lines depend on. A restart
keeps the lines only where all hashes are equal.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from data.annotations import Annotation
from support.files import jsonable, write_json, write_whole

PREDICTIONS = "predictions.jsonl"
SUBMISSION = "submission.csv"
SCORES = "scores.json"
HASHES = "run.json"
SUBMISSION_HEADER = ("testset_id", "text")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One clip, what was asked and what the model answered."""

    index: int
    """Position among the annotations evaluated."""
    id: str
    """The row's name in the submission."""
    path: str
    task: str
    prompt: str
    hypothesis: str
    """Without special tokens; empty where the clip could not be used."""
    references: tuple[str, ...] = ()
    seconds: float = 0.0
    """Length of the audio that the model was given."""
    cut: bool = False
    """Whether `datasets.max_audio_s` ended it before the clip's own end."""
    audio_path: str | None = None
    """The clip whose audio was used, where it is another one (swapped audio)."""
    tokens: int = 0
    """Generated tokens, the end included."""
    stop_reason: str | None = None
    """`end`, `stop_string` or `length`; None for a failed clip."""
    error: str | None = None
    """Why the clip could not be used."""
    extra: dict[str, Any] = field(default_factory=dict)
    """The annotation's further fields."""

    def to_json(self) -> dict[str, Any]:
        """The line: our fields first, then the annotation's own (`annotation_x` where one is called like our `x`)."""
        row = {
            "index": self.index,
            "id": self.id,
            "path": self.path,
            "task": self.task,
            "prompt": self.prompt,
            "hypothesis": self.hypothesis,
            "reference": self.references[0] if self.references else None,
            "references": list(self.references),
            "seconds": round(self.seconds, 4),
            "cut": self.cut,
            "tokens": self.tokens,
            "stop_reason": self.stop_reason,
            "error": self.error,
        }
        if self.audio_path is not None:
            row["audio_path"] = self.audio_path
        taken = {*row, "audio_path"}  # in a line without one too, or it would be read back as ours
        return row | {f"annotation_{name}" if name in taken else name: value for name, value in self.extra.items()}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Prediction:
        own = {name: row[name] for name in cls.__dataclass_fields__ if name in row and name != "extra"}
        further = {name: value for name, value in row.items() if name not in own and name != "reference"}
        return cls(**(own | {"references": tuple(row["references"])}), extra=further)


def row_ids(annotations: Sequence[Annotation]) -> list[str]:
    """A name for every row, no two alike.

    It is the clip's `testset_id`, with the annotation file's name before it (`test_asr/0`) where another file has the
    same; else the clip's file stem, else its path (with the part, where it means one), else path and position.
    """
    given = _given_ids(annotations)
    taken = {name for name in given if name is not None}
    nameless = [annotation for annotation in annotations if annotation.testset_id is None]
    stems = Counter(Path(annotation.path).stem for annotation in nameless)
    clips = Counter(annotation.clip for annotation in nameless)

    def name(position: int, annotation: Annotation) -> str:
        if given[position] is not None:
            return given[position]
        stem = Path(annotation.path).stem
        if stems[stem] == 1 and stem not in taken:
            return stem
        return annotation.clip if clips[annotation.clip] == 1 else f"{annotation.clip}#{position}"

    return [name(position, annotation) for position, annotation in enumerate(annotations)]


def shared_ids(annotations: Sequence[Annotation]) -> list[tuple[Annotation, Annotation]]:
    """Clips whose `testset_id` another one had before: that one, and this one."""
    first: dict[str, Annotation] = {}
    pairs = []
    for annotation in annotations:
        if annotation.testset_id is not None:
            before = first.setdefault(annotation.testset_id, annotation)
            if before is not annotation:
                pairs.append((before, annotation))
    return pairs


def _given_ids(annotations: Sequence[Annotation]) -> list[str | None]:
    """Each `testset_id`; those that several files have get the file's stem, or all of its path, before them."""
    files = [annotation.source.rpartition("#")[0] for annotation in annotations]
    stems = {file: Path(file).stem for file in files}
    several = len(set(stems.values())) < len(stems)  # files of one name in several folders
    counts = Counter(annotation.testset_id for annotation in annotations)
    names: list[str | None] = []
    for annotation, file in zip(annotations, files, strict=True):
        name = annotation.testset_id
        if name is not None and counts[name] > 1:
            name = f"{file if several else stems[file]}/{name}"
        names.append(name)
    return names


class PredictionStore:
    """The predictions of one evaluation in a folder, shared by several processes.

    Process 0 appends to `predictions.jsonl`, the others to files of their own; `finish` joins them in order.
    """

    def __init__(self, folder: str | Path, rank: int = 0) -> None:
        self.folder = Path(folder)
        self.rank = rank
        self._file: IO[str] | None = None

    def open_run(self, hashes: Mapping[str, str]) -> list[str]:
        """Prepare the folder for a run (process 0 only). Returns the names of hashes that differ from the last run's.

        With equal hashes, or in a new folder, nothing differs; else the last run's files are deleted.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        before = self._read_hashes()
        changed = [name for name in sorted({*before, *hashes}) if before.get(name) != hashes.get(name)]
        if changed:
            had_lines = any(True for _ in self._files())
            for path in [*self._files(), self.folder / SUBMISSION, self.folder / SCORES]:
                path.unlink(missing_ok=True)
            write_json(self.folder / HASHES, dict(hashes))
            return changed if had_lines else []
        return []

    def done(self, count: int) -> dict[int, Prediction]:
        """Predictions on disk, by position; failed clips are left out, to be tried again."""
        found: dict[int, Prediction] = {}
        for path in self._files():
            for row in _complete_lines(path):
                prediction = Prediction.from_json(row)
                if prediction.error is None and prediction.index < count:
                    found[prediction.index] = prediction
        return found

    def append(self, predictions: Iterable[Prediction]) -> None:
        """Add lines, flushed so that a killed process loses none of them."""
        if self._file is None:
            path = self._own_file()
            _drop_cut_line(path)
            self._file = path.open("a", encoding="utf-8")
        for prediction in predictions:
            self._file.write(json.dumps(jsonable(prediction.to_json()), ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish(self, predictions: Sequence[Prediction]) -> None:
        """Write all predictions in order, and the CSV; the other processes' files go (process 0 only)."""
        self.close()
        lines = [json.dumps(jsonable(prediction.to_json()), ensure_ascii=False) + "\n" for prediction in predictions]
        write_whole(self.folder / PREDICTIONS, "".join(lines))
        write_whole(self.folder / SUBMISSION, submission_csv(predictions))
        for path in self._files():
            if path.name != PREDICTIONS:
                path.unlink(missing_ok=True)

    def _own_file(self) -> Path:
        return self.folder / (PREDICTIONS if self.rank == 0 else f"predictions.rank{self.rank}.jsonl")

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("predictions*.jsonl"))

    def _read_hashes(self) -> dict[str, str]:
        try:
            hashes = json.loads((self.folder / HASHES).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return hashes if isinstance(hashes, dict) else {}


def submission_csv(predictions: Sequence[Prediction]) -> str:
    """`testset_id,text`, a row for each prediction, in their order."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SUBMISSION_HEADER)
    writer.writerows((prediction.id, prediction.hypothesis) for prediction in predictions)
    return text.getvalue()


def _complete_lines(path: Path) -> Iterable[dict[str, Any]]:
    """The rows of a file up to its first broken line; a line without its end was cut off by a kill."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            try:
                row = json.loads(line)
            except ValueError:
                return
            if not isinstance(row, dict):
                return
            yield row


def _drop_cut_line(path: Path) -> None:
    """Cut a file after its last whole line, so that the next line does not continue a broken one."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)

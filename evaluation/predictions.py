"""What a model said about each clip: one JSON line a clip, written as it comes, and the CSV made from it.

A folder of predictions survives being killed at any moment, and a full disk: lines are appended one by one, and a last
line that was cut off is dropped on reading. Each line has the digest of all that its text depends on, and a restart
keeps the lines whose digests are still right. `run.json` names what the digests cover, for messages. Results of another
adapter are put aside in a folder of their own, and come back when that adapter is evaluated again.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.annotations import Annotation
from support.command_line import UserError, disk_problem
from support.files import jsonable, replace, write_json, write_whole
from support.folder_lock import require_held

PREDICTIONS = "predictions.jsonl"
SUBMISSION = "submission.csv"
SCORES = "scores.json"
RUN = "run.json"
QUARANTINE = "quarantine.jsonl"
CHANGED_SHOWN = {"clips": "content of clips, or of their entries"}
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
    digest: str | None = None
    """Of all that the text depends on, see `evaluation/restart.py`."""
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
        if self.digest is not None:
            row["digest"] = self.digest
        taken = {*row, "audio_path", "digest"}  # in a line without them too, or they would be read back as ours
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


class CannotKeepPredictions(UserError):
    """The disk is full, or takes no more for another reason."""


class PredictionStore:
    """The predictions of one evaluation in a folder, shared by several processes.

    Process 0 appends to `predictions.jsonl`, the others to files of their own; `finish` joins them in order.
    """

    def __init__(self, folder: str | Path, digests: Sequence[str], rank: int = 0) -> None:
        """`digests` are those of the lines to come, in the order of the annotations."""
        self.folder = Path(folder)
        self.digests = list(digests)
        self.rank = rank
        self._descriptor: int | None = None

    def open_run(self, parts: Mapping[str, str], checkpoint: str | None = None) -> list[str]:
        """Prepare the folder for a run (process 0 only); returns messages for the user.

        `parts` are digests of what the lines depend on, by name; `checkpoint` is where the adapter comes from.
        """
        with self.writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            before, notes = self._read_run(), []
            if before and before.get("adapter") != parts.get("adapter"):
                notes += self._exchange(before, parts)
                before = self._read_run()
            if not before and self._files():  # nobody knows what the lines are of
                notes.append(f"{self.folder}: no {RUN} says what its predictions depend on; they are made again")
                self._delete(self._files())
            notes += self._what_is_made_anew(before, parts)
            write_json(self.folder / RUN, {**parts, "checkpoint": checkpoint})
        return notes

    def done(self) -> dict[int, Prediction]:
        """Predictions on disk, by position in this run; failed clips are left out, to be tried again."""
        positions: dict[str, list[int]] = defaultdict(list)
        for position, digest in enumerate(self.digests):
            positions[digest].append(position)
        return {
            position: prediction
            for prediction in self._on_disk()
            if prediction.digest is not None
            for position in positions.get(prediction.digest, ())
        }

    def append(self, predictions: Iterable[Prediction]) -> None:
        """Add lines, each written whole before the next one, so that a killed process loses none of them."""
        require_held(self.folder)
        with self.writing():
            if self._descriptor is None:
                self._delete([self.folder / SUBMISSION, self.folder / SCORES])  # they are of other lines
                self._descriptor = _opened_at_a_lines_end(self._own_file())
            for prediction in predictions:
                _append_whole(self._descriptor, self._line(prediction))

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def finish(self, predictions: Sequence[Prediction]) -> str:
        """Write all predictions in order, and the CSV; the other processes' files go (process 0 only).

        Returns the SHA-256 of `predictions.jsonl`, by which scores say which lines they are of.
        """
        require_held(self.folder)
        self.close()
        lines = b"".join(map(self._line, predictions))
        with self.writing():
            self._delete([self.folder / SCORES])
            write_whole(self.folder / PREDICTIONS, lines)
            write_whole(self.folder / SUBMISSION, submission_csv(predictions))
            self._delete(path for path in self._files() if path.name != PREDICTIONS)
        return hashlib.sha256(lines).hexdigest()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Name an error of the disk, and say that nothing is lost."""
        try:
            yield
        except OSError as error:
            raise CannotKeepPredictions(
                f"{self.folder}: {disk_problem(error)}; the predictions that {PREDICTIONS} has are kept, and the same "
                "command continues from there"
            ) from error

    def _line(self, prediction: Prediction) -> bytes:
        row = dataclasses.replace(prediction, digest=self.digests[prediction.index]).to_json()
        return (json.dumps(jsonable(row), ensure_ascii=False) + "\n").encode()

    def _own_file(self) -> Path:
        return self.folder / (PREDICTIONS if self.rank == 0 else f"predictions.rank{self.rank}.jsonl")

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("predictions*.jsonl"))

    def _on_disk(self) -> Iterator[Prediction]:
        for path in self._files():
            for row in _complete_lines(path):
                prediction = Prediction.from_json(row)
                if prediction.error is None:
                    yield prediction

    def _what_is_made_anew(self, before: Mapping[str, str], parts: Mapping[str, str]) -> list[str]:
        wanted, there = set(self.digests), [prediction.digest for prediction in self._on_disk()]
        old = [digest for digest in there if digest not in wanted]
        changed = [name for name in parts if before.get(name) != parts[name]]
        if not old or not changed or wanted <= set(there):
            return []
        made_with = " and another ".join(CHANGED_SHOWN.get(name, name) for name in changed)
        if len(old) == len(there):
            how = "starting from the beginning; the predictions there were made"
        else:
            how = f"{len(old)} of the {len(there)} predictions there are made again; they were made"
        return [f"{self.folder}: {how} with another {made_with}"]

    def _exchange(self, before: Mapping[str, str], parts: Mapping[str, str]) -> list[str]:
        """Put the results of another adapter aside, and bring back this one's, where they were put aside."""
        aside, back = (self._of_adapter(of["adapter"]) for of in (before, parts))
        notes = []
        if self._results():
            notes = [
                f"{self.folder}: the results there are another adapter's"
                f"{', ' + before['checkpoint'] if before.get('checkpoint') else ''}; they are kept in {aside.name}/"
            ]
            aside.mkdir(exist_ok=True)
            for path in self._results():
                replace(path, aside / path.name)
        if back.is_dir():
            for path in sorted(back.iterdir()):
                replace(path, self.folder / path.name)
            with suppress(OSError):
                back.rmdir()
        return notes

    def _of_adapter(self, digest: str) -> Path:
        return self.folder / f"adapter_{digest[:12]}"

    def _results(self) -> list[Path]:
        """All files of an evaluation; the one that says whose they are comes last, since a kill may fall between."""
        others = [self.folder / name for name in (SUBMISSION, SCORES, QUARANTINE, RUN)]
        return [path for path in (*self._files(), *others) if path.exists()]

    @staticmethod
    def _delete(paths: Iterable[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)

    def _read_run(self) -> dict[str, str]:
        try:
            run = json.loads((self.folder / RUN).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return run if isinstance(run, dict) and isinstance(run.get("adapter"), str) else {}


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


def _opened_at_a_lines_end(path: Path) -> int:
    """A file to append to, cut after its last whole line, so that the next one does not continue a broken one."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.ftruncate(descriptor, whole)
    return descriptor


def _append_whole(descriptor: int, line: bytes) -> None:
    """Write all of a line, or nothing of it."""
    size = os.fstat(descriptor).st_size
    written = 0
    try:
        while written < len(line):
            written += os.write(descriptor, line[written:])
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise

"""Is a submission's CSV well formed, and has it exactly one row for every clip of an annotation file, in its order?

    python -m tools.check_submission submission.csv                                    # the file alone
    python -m tools.check_submission submission.csv test_asr.json [more.json …] [--prefix FOLDER]
    python -m tools.check_submission submission.csv test.json --task asr               # of a file with several tasks
    python -m tools.check_submission submission.csv --ids 'test\\d{4}'                  # what every id must look like

Prints the problems, one per line, and ends with status 1. Empty texts are counted, and are problems where every text is
empty; the contest's own validator takes an empty text for a missing one, so `--no-empty` refuses them all.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data.annotations import load_annotations
from evaluation.modes import FAMILIES, in_family
from evaluation.predictions import SUBMISSION_HEADER, row_ids
from support import command_line
from support.command_line import UserError
from support.file_kinds import mistaken

SHOWN = 5  # ids listed in a message
DAMAGED = "\ufffd"  # what a program writes in the place of bytes that it could not decode


def read_submission(path: str | Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV file; lines without any field are no rows.

    Raises:
        UserError: it is empty, something else than its name says, no text in UTF-8, or no CSV.
    """
    found = mistaken(path, text_is_right=True)
    if found:
        raise UserError(f"{path}: {found}")
    limit = csv.field_size_limit(sys.maxsize)  # a model that repeats itself writes long texts
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file, strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path}: no CSV file in UTF-8 ({error}); expected the submission.csv of evaluate.py"
        ) from error
    finally:
        csv.field_size_limit(limit)
    return (rows[0], rows[1:]) if rows else ([], [])


def find_problems(header: Sequence[str], rows: Sequence[Sequence[str]], expected: Sequence[str]) -> list[str]:
    """The problems of a submission, in words; none if it is valid. `expected` are the ids in order."""
    problems = form_problems(header, rows)
    ids = [row[0] for row in rows if row]
    counts = Counter(ids)
    problems += _named("ids missing", [name for name in expected if name not in counts])
    known = set(expected)
    problems += _named("ids that no annotation has", [name for name in counts if name not in known])
    if not problems and ids != list(expected):
        first = next(i for i, (got, want) in enumerate(zip(ids, expected, strict=True)) if got != want)
        problems.append(f"rows are in another order: row {first + 1} is {ids[first]}, expected {expected[first]}")
    return problems


def form_problems(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """What is wrong with a CSV whatever it answers: header, fields, ids."""
    problems = []
    if tuple(header) != SUBMISSION_HEADER:
        problems.append(f"header is {','.join(header) or 'absent'}; expected {','.join(SUBMISSION_HEADER)}")
    short = [number for number, row in enumerate(rows, start=2) if len(row) != len(SUBMISSION_HEADER)]
    if short:
        problems.append(f"{len(short)} rows without exactly two fields, the first in line {short[0]}; quote commas")
    counts = Counter(row[0] for row in rows if row)
    problems += _named("ids given more than once", [name for name, count in counts.items() if count > 1])
    nameless = [number for number, row in enumerate(rows, start=2) if row and not row[0].strip()]
    if nameless:
        problems.append(f"{len(nameless)} rows without an id, the first in line {nameless[0]}")
    return problems


def text_problems(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """What is wrong with the texts, and with a file that has none."""
    if not rows:
        return ["no rows" if header else "the file is empty"]
    texts = [row[1] for row in rows if len(row) > 1]
    return [f"all {len(texts)} texts are empty"] if texts and not any(text.strip() for text in texts) else []


def _named(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f" … and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{len(names)} {what}: {', '.join(names[:SHOWN])}{more}"]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m tools.check_submission", description=__doc__.splitlines()[0])
    result.add_argument("submission", help="the CSV file")
    result.add_argument("annotations", nargs="*", help="the annotation files it answers (default: the CSV alone)")
    result.add_argument("--prefix", help="folder that relative annotation files are under")
    result.add_argument("--task", choices=tuple(FAMILIES), help="only the clips of submission_TASK, of a mixed file")
    result.add_argument("--ids", metavar="PATTERN", help=r"regular expression that every id must match, as test\d{4}")
    result.add_argument("--no-empty", action="store_true", help="an empty text is a problem")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status."""
    return command_line.run(work, parser(), argv)


def work(arguments: argparse.Namespace) -> int:
    """Print what is wrong with the submission; 1 where something is."""
    pattern = _pattern(arguments.ids)
    if arguments.annotations:
        clips = load_annotations(arguments.annotations, arguments.prefix, require_text=False)
        if arguments.task:
            clips = [clip for clip in clips if in_family(clip.task, arguments.task)]
    elif arguments.task or arguments.prefix:
        raise UserError("--task and --prefix choose clips of annotation files; name one after the CSV file")
    header, rows = read_submission(arguments.submission)
    if arguments.annotations:
        problems = find_problems(header, rows, row_ids(clips))
    else:
        problems = form_problems(header, rows)
    problems += text_problems(header, rows)
    if pattern is not None:
        other = [row[0] for row in rows if row and not pattern.fullmatch(row[0])]
        problems += _named(f"ids that are not as --ids {arguments.ids}", other)
    empty = [row[0] for row in rows if len(row) > 1 and not row[1].strip()]
    if arguments.no_empty:
        problems += _named("empty texts", empty)
    for problem in problems:
        print(f"{arguments.submission}: {problem}")
    damaged = [row[0] for row in rows if DAMAGED in "".join(row)]  # a model may also write it
    for note in _named("rows with the sign � of text that was decoded wrongly", damaged):
        print(f"{arguments.submission}: note: {note}")
    if not problems:
        alone = "" if arguments.annotations else "; give its annotation file to check ids and their order"
        print(f"{arguments.submission}: no problem found, {len(rows)} rows, {len(empty)} of them empty{alone}")
    return int(bool(problems))


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise UserError(rf"--ids {text}: no regular expression ({error}); expected such as test\d{{4}}") from None


if __name__ == "__main__":
    sys.exit(main())

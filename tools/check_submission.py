"""Does a submission have exactly one row for every clip of an annotation file, in its order?

    python -m tools.check_submission outputs/…/submission.csv test_asr.json [more.json …] [--prefix FOLDER]
    python -m tools.check_submission outputs/…/submission.csv test.json --task asr     # of a file with several tasks

Prints the problems, one per line, and ends with status 1; empty hypotheses are counted, not errors.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data.annotations import load_annotations
from evaluation.modes import FAMILIES, in_family
from evaluation.predictions import SUBMISSION_HEADER, row_ids
from support import command_line
from support.command_line import UserError

SHOWN = 5  # ids listed in a message


def read_submission(path: str | Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV file.

    Raises:
        UserError: it is no text in UTF-8, or no CSV.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path}: no CSV file in UTF-8 ({error}); expected the submission.csv of evaluate.py"
        ) from error
    return (rows[0], rows[1:]) if rows else ([], [])


def find_problems(header: Sequence[str], rows: Sequence[Sequence[str]], expected: Sequence[str]) -> list[str]:
    """The problems of a submission, in words; none if it is valid. `expected` are the ids in order."""
    problems = []
    if tuple(header) != SUBMISSION_HEADER:
        problems.append(f"header is {','.join(header) or 'absent'}; expected {','.join(SUBMISSION_HEADER)}")
    short = [number for number, row in enumerate(rows, start=2) if len(row) != len(SUBMISSION_HEADER)]
    if short:
        problems.append(f"{len(short)} rows without exactly two fields, the first in line {short[0]}; quote commas")
    ids = [row[0] for row in rows if row]
    counts = Counter(ids)
    problems += _named("ids given more than once", [name for name, count in counts.items() if count > 1])
    problems += _named("ids missing", [name for name in expected if name not in counts])
    known = set(expected)
    problems += _named("ids that no annotation has", [name for name in counts if name not in known])
    if not problems and ids != list(expected):
        first = next(i for i, (got, want) in enumerate(zip(ids, expected, strict=True)) if got != want)
        problems.append(f"rows are in another order: row {first + 1} is {ids[first]}, expected {expected[first]}")
    return problems


def _named(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f" … and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{len(names)} {what}: {', '.join(names[:SHOWN])}{more}"]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m tools.check_submission", description=__doc__.splitlines()[0])
    result.add_argument("submission", help="the CSV file")
    result.add_argument("annotations", nargs="+", help="the annotation files it answers")
    result.add_argument("--prefix", help="folder that relative annotation files are under")
    result.add_argument("--task", choices=tuple(FAMILIES), help="only the clips of submission_TASK, of a mixed file")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status."""
    return command_line.run(work, parser(), argv)


def work(arguments: argparse.Namespace) -> int:
    """Print what is wrong with the submission; 1 where something is."""
    clips = load_annotations(arguments.annotations, arguments.prefix, require_text=False)
    if arguments.task:
        clips = [clip for clip in clips if in_family(clip.task, arguments.task)]
    header, rows = read_submission(arguments.submission)
    problems = find_problems(header, rows, row_ids(clips))
    for problem in problems:
        print(f"{arguments.submission}: {problem}")
    if not problems:
        empty = sum(not row[1].strip() for row in rows)
        print(f"{arguments.submission}: no problem found, {len(rows)} rows, {empty} of them empty")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())

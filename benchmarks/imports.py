"""Processor seconds that commands need before they work: what importing costs `--help`, a mistyped path, a small check.

    python -m benchmarks.imports [--json FILE] [--runs 5] [--against FOLDER]

Every command runs in fresh processes, several times; the table has the median of user and system time, which other
programs on the machine change little. `--against` runs another checkout's commands in turns with this one's.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from support import command_line, provenance
from support.files import write_json
from support.tables import format_table

ROOT = provenance.ROOT
MISTYPED = ("train.py", "--cfg-path", "absent.yaml")
HELP_ASKED_S = 1.0
CHECK_ASKED_S = 0.5
ROOMS = ("data", "tools", "benchmarks")
"""Folders with commands, besides the root."""


def commands() -> dict[tuple[str, ...], float | None]:
    """Arguments for Python -> the most processor seconds asked."""
    found = {("-c", "import torch"): None, ("-c", "import models.qformer"): 1.6, MISTYPED: 1.5}
    for file in (*sorted(ROOT.glob("*.py")), *(f for room in ROOMS for f in sorted((ROOT / room).glob("*.py")))):
        if "command_line.run(" in file.read_text(encoding="utf-8"):
            room = file.parent.name
            words = (file.name,) if file.parent == ROOT else ("-m", f"{room}.{file.stem}")
            found[*words, "--help"] = None if room == "benchmarks" else HELP_ASKED_S
    return found


def seconds(words: Sequence[str], folder: Path) -> float | None:
    """User and system time of one run in `folder`; None where it ends in another way than it should."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != int(tuple(words) == MISTYPED):
        return None
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def median_seconds(words: Sequence[str], folders: Sequence[Path], runs: int) -> list[float | None]:
    """The median of each folder's runs, taken in turns; None where a run failed."""
    taken = [[seconds(words, folder) for folder in folders] for _ in range(runs)]
    return [None if None in times else round(statistics.median(times), 3) for times in zip(*taken, strict=True)]


def small_check(folder: Path) -> tuple[str, ...]:
    """A submission of ten rows and its annotations, and the command that checks it."""
    clips = [{"path": f"{number}.wav", "task": "asr", "testset_id": str(number)} for number in range(10)]
    (folder / "test.json").write_text(json.dumps({"annotation": clips}), encoding="utf-8")
    rows = "".join(f"{number},a text\n" for number in range(10))
    (folder / "submission.csv").write_text(f"testset_id,text\n{rows}", encoding="utf-8")
    return ("-m", "tools.check_submission", str(folder / "submission.csv"), str(folder / "test.json"))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.imports", description=__doc__.splitlines()[0])
    result.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    result.add_argument("--runs", type=command_line.number(int, 1), default=5, help="of each command (default: 5)")
    result.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout, measured in turns")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status."""
    return command_line.run(work, parser(), argv)


def work(arguments: argparse.Namespace) -> None:
    """Measure every command and print the table."""
    folders = [ROOT] + ([arguments.against.resolve()] if arguments.against else [])
    rows = []
    with tempfile.TemporaryDirectory(prefix="imports_") as folder:
        asked = commands() | {small_check(Path(folder)): CHECK_ASKED_S}
        for words, limit in asked.items():
            shown = " ".join(word if "/" not in word else Path(word).name for word in words)
            rows.append([shown, limit, *median_seconds(words, folders, arguments.runs)])
    header = ["python …", "asked, s", "this checkout, s", *(str(folder) for folder in folders[1:])]
    print(format_table(header, rows))
    if arguments.json:
        figures = [dict(zip(("command", "asked_s", "s", "against_s"), row, strict=False)) for row in rows]
        content = {"processor_seconds": figures, "runs": arguments.runs, "commit": provenance.commit()}
        write_json(arguments.json, {**content, "machine": provenance.processor_name()})


if __name__ == "__main__":
    sys.exit(main())

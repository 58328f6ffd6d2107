"""Describe annotation files and their clips: tasks, lengths, texts, sample rates, what is missing.

    python -m tools.describe_corpus train.json valid.json --prefix /data
    python -m tools.describe_corpus --cfg-path configs/mine.yaml        # every annotation file that it names

Headers alone are read, no clip is decoded. Ends with status 1 where a clip cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from configs.sections import ANNOTATION_PATHS
from support import command_line
from support.command_line import UserError
from support.files import write_json
from support.tables import format_table

if TYPE_CHECKING:
    from configs.schema import Config
    from data.describe import Corpus, Group, Spread

LISTED = 12  # folders, rates or formats in a line


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m tools.describe_corpus",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("annotations", nargs="*", help="annotation files, described together")
    result.add_argument("--prefix", help="folder of relative clip paths")
    result.add_argument("--cfg-path", metavar="FILE", help="describe the annotation files of a YAML, one by one")
    result.add_argument("--json", metavar="FILE", help="also write the figures there")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status, 1 where a clip cannot be read."""
    return command_line.run(work, parser(), argv)


def work(arguments: argparse.Namespace) -> int:
    """Describe every set of files that the arguments name."""
    if bool(arguments.annotations) == bool(arguments.cfg_path):
        raise UserError("name annotation files, or a YAML with --cfg-path; expected one of the two")
    prefix, sets = arguments.prefix, {", ".join(arguments.annotations): arguments.annotations}
    if arguments.cfg_path:
        from configs.schema import load_config

        config = load_config(arguments.cfg_path)
        prefix, sets = prefix or config.datasets.prefix, _named(config)
    from data.annotations import load_annotations
    from data.describe import describe

    figures = {}
    for name, files in sets.items():
        corpus = describe(load_annotations(files, prefix, require_text=False))
        print(f"{name}\n\n{_shown(corpus)}\n")
        figures[name] = asdict(corpus)
    if arguments.json:
        write_json(Path(arguments.json), figures)
    return int(any(corpus["unreadable"] for corpus in figures.values()))


def _named(config: Config) -> dict[str, list[str]]:
    """The annotation files of a YAML by their keys."""
    found = {}
    for key in ANNOTATION_PATHS:
        value = getattr(config.datasets, key)
        if value:
            found[f"datasets.{key}"] = [value] if isinstance(value, str) else list(value)
    if not found:
        raise UserError(f"{config.path}: it names no annotation file; expected datasets.train_ann_path or another")
    return found


def _shown(corpus: Corpus) -> str:
    groups = {"all": corpus.whole, **(corpus.tasks if len(corpus.tasks) > 1 else {})}
    if len(corpus.tasks) == 1:
        groups = dict.fromkeys(corpus.tasks, corpus.whole)
    header = ["task", "clips", "hours", "seconds: least", "median", "mean", "most", "< 1 s", "> 30 s"]
    header += ["words: median", "most", "without text"]
    lines = [format_table(header, [_row(task, group) for task, group in groups.items()]), ""]
    for name, counts in (
        ("folders", corpus.folders),
        ("sample rates, Hz", corpus.rates_hz),
        ("channels", corpus.channels),
        ("formats", corpus.formats),
    ):
        lines.append(f"{name}: {_counts(counts)}")
    lines.append(f"repeated within a task: {corpus.repeated_clips:,} clips, {corpus.repeated_texts:,} texts")
    if corpus.unreadable:
        lines.append(f"cannot be read: {corpus.unreadable:,} clips, such as {', '.join(corpus.examples)}")
    return "\n".join(lines)


def _row(task: str, group: Group) -> list[object]:
    seconds, words = group.seconds, group.words

    def figure(spread: Spread | None, name: str, form: str) -> str | None:
        return None if spread is None else format(getattr(spread, name), form)

    hours = None if seconds is None else f"{seconds.total / 3600:.2f}"
    lengths = [figure(seconds, name, ".2f") for name in ("least", "median", "mean", "most")]
    texts = [figure(words, name, "g") for name in ("median", "most")]
    return [task, f"{group.clips:,}", hours, *lengths, group.short, group.long, *texts, group.without_text]


def _counts(counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{name} ({count:,})" for name, count in list(counts.items())[:LISTED])
    return f"{shown} … and {len(counts) - LISTED} more" if len(counts) > LISTED else shown or "–"


if __name__ == "__main__":
    sys.exit(main())

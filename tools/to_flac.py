"""Convert a folder of wav files to flac, sample for sample: half the bytes, nothing lost.

    python -m tools.to_flac /data/wav /data/flac
    python -m tools.to_flac /data/clips /data/clips        # next to the wav files, which are kept

Folders below are converted too. A run that was interrupted continues where it stopped. Wav files are never changed or
deleted; in annotation files, paths are changed with: sed 's/\\.wav"/.flac"/' train.json > train_flac.json
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from support import command_line
from support.command_line import UserError, number, require_writable

SHOWN = 20  # failed files that are named


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m tools.to_flac", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("source", help="folder with wav files")
    result.add_argument("target", help="folder to write to; made if it is not there")
    result.add_argument("--round", action="store_true", help="allow 24 bits for samples of 32 bits, or floats")
    result.add_argument(
        "--threads", type=number(int, 1), default=os.cpu_count() or 1, help="files at once (default: one a core)"
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status, 1 where a file was not converted."""
    return command_line.run(work, parser(), argv)


def work(arguments: argparse.Namespace) -> int:
    """Convert, and say how many, and what failed."""
    source, target = Path(arguments.source).expanduser(), Path(arguments.target).expanduser()
    if not source.is_dir():
        raise UserError(f"{arguments.source}: no such folder; expected one with wav files")
    require_writable(str(target), "target")
    from tqdm import tqdm

    from data.flac import convert_folder

    def progress(steps, total):
        return tqdm(steps, total=total, unit="file", disable=None)  # none where stderr is no terminal

    done = convert_folder(source, target, rounded=arguments.round, threads=arguments.threads, progress=progress)
    if not done.converted + done.kept + len(done.failed):
        raise UserError(f"{arguments.source}: no .wav file there, nor in the folders below")
    for note in done.notes:
        print(f"note: {note}")
    for failure in done.failed[:SHOWN]:
        print(f"not converted: {failure}", file=sys.stderr)
    if len(done.failed) > SHOWN:
        print(f"not converted: {len(done.failed) - SHOWN} more", file=sys.stderr)
    saved = f", {done.flac_bytes / done.wav_bytes:.0%} of their bytes" if done.wav_bytes else ""
    print(
        f"{target}: {done.converted} files converted, {done.kept} there already{saved}; {len(done.failed)} not "
        "converted"
    )
    return int(bool(done.failed))


if __name__ == "__main__":
    sys.exit(main())

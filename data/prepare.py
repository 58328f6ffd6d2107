"""Prepare corpora from the command line.

python -m data.prepare demo --out outputs/demo/corpus --seed 0
"""

import argparse
import sys
from collections.abc import Sequence

from data.demo import corpus
from data.demo.speech import SpeechError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one preparation; 0 when it succeeded."""
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description=__doc__.split("\n", 1)[0])
    corpora = parser.add_subparsers(dest="corpus", required=True, metavar="corpus")
    demo_parser = corpora.add_parser("demo", help="synthetic speech, sounds and music with exact annotations")
    corpus.add_arguments(demo_parser)
    demo_parser.set_defaults(run=corpus.run)
    parsed = parser.parse_args(arguments)
    try:
        return parsed.run(parsed)
    except (SpeechError, OSError) as error:
        print(f"data.prepare: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())

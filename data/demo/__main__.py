"""`python -m data.demo`, the same as `python -m data.prepare demo`."""

import sys

from data.prepare import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))

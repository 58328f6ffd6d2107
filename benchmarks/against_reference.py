"""The command of cpu_comparison.py: python -m benchmarks.against_reference --out FILE"""

import sys

from benchmarks.cpu_comparison import main

if __name__ == "__main__":
    sys.exit(main())

"""torchrun for our own commands: without its trace, which stands below the one sentence that says what is wrong."""

import logging
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

if __name__ == "__main__":
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run.main()
    except ChildFailedError as error:
        sys.exit(max(failure.exitcode for failure in error.failures.values()) or 1)

"""The lock of a run's folder, taken by the first of the processes that train together."""

from contextlib import AbstractContextManager

from accelerate import Accelerator
from accelerate.utils import gather_object

from support.folder_lock import locked_by_first
from training.run_folder import RunFolder


def lock_run(folder: RunFolder, accelerator: Accelerator) -> AbstractContextManager[None]:
    """Hold a run's folder against other runs; every process of this one must call it.

    Raises:
        FolderInUse: another run works there.
    """
    return locked_by_first(
        folder.path,
        "training",
        "wait until it has ended, or choose another run.output_dir",
        first=accelerator.is_main_process,
        exchange=lambda value: gather_object([value]),
    )

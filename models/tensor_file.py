"""Files of `torch.save`, read as tensors and plain containers. Code in them is never run."""

import re
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from support.command_line import UserError
from support.file_kinds import mistaken

_FORBIDDEN = re.compile(r"GLOBAL (\S+)")  # in torch's message: what a pickle asked for


class TensorFileError(UserError):
    """A file that cannot be read; the message continues a sentence that starts with its name."""


def read_tensor_file(path: str | Path, *, device: str | torch.device = "cpu", mmap: bool = False) -> Any:
    """The content of a file of `torch.save`.

    Args:
        device: of the tensors; on `meta` they are shapes alone.
        mmap: leave the tensors' bytes in the file until they are needed; not for files of PyTorch before 1.6.

    Raises:
        TensorFileError: the file does not exist, is damaged, has objects that need code to be made, or is compressed.
    """
    path = Path(path)
    if not path.is_file():
        raise TensorFileError("does not exist; expected a file of torch.save.")
    found = mistaken(path, zip_is_right=True)
    if found:
        raise TensorFileError(found)
    _refuse_compressed(path)
    try:
        return torch.load(path, map_location=device, weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except UnpicklingError as error:
        forbidden = _FORBIDDEN.search(str(error))
        what = f"asks for {forbidden[1]}" if forbidden else "is no plain pickle"
        raise TensorFileError(
            f"{what}: only tensors and plain containers are read, and nothing was run. Ask its owner to save only the "
            "state dict: torch.save({'model': state_dict}, path)."
        ) from error
    except Exception as error:  # torch raises many types for a damaged file
        reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise TensorFileError(f"is truncated, or no file of torch.save: {reason}") from error


def _refuse_compressed(path: Path) -> None:
    """`torch.save` does not compress its entries, so a small file cannot fill the memory; a compressed one could."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError):  # of an old version of PyTorch, or damaged: reading it decides
        return
    size = path.stat().st_size
    if unpacked > size:
        raise TensorFileError(
            f"is compressed: {size:,} bytes that unpack to {unpacked:,}. torch.save writes no such file; unpack it "
            "and save it again if you trust it."
        )

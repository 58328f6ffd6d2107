"""Which device, and which number type on it, a configuration names."""

import logging

import torch

from support.command_line import UserError

META = torch.device("meta")  # tensors there have a shape and a type, and no memory
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

logger = logging.getLogger(__name__)


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The device that a configuration names; `auto` and None mean CUDA where there is one.

    Where CUDA is named and PyTorch finds none, it is the CPU, with a warning.

    Raises:
        UserError: no such kind of device.
    """
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"run.device = {name!r}: no such device; expected cpu, cuda, cuda:N or auto.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        logger.warning("run.device is %s, but PyTorch finds no CUDA device: continuing on the CPU.", name)
        return torch.device("cpu")
    return device


def named_dtype(choice: str, device: torch.device) -> torch.dtype:
    """The type that `model.dtype` means on a device; `auto` is float16 on CUDA, float32 elsewhere."""
    return PRECISIONS.get(choice, torch.float16 if device.type == "cuda" else torch.float32)

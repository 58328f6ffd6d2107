"""Devices, processes and number types of a training run."""

import os
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from configs.schema import Config
from configs.sections import ModelConfig
from models.device import pick_device
from models.salmonn import SALMONN
from support.command_line import UserError

OTHER_PARALLELISM = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
"""Variables of `accelerate launch`, and of the family's scripts, that split a model over processes."""


def make_accelerator(config: Config) -> Accelerator:
    """Devices, processes and precision of a run: fp16 with loss scaling on CUDA where `run.amp` is set, else fp32.

    With `model.dtype: bfloat16`, mixed precision is that, on a CPU too.

    Raises:
        UserError: fewer processes are running than the launcher asked for.
    """
    for variable, name in OTHER_PARALLELISM.items():
        asked = os.environ.pop(variable, "0").lower() in ("1", "true", "yes", "y", "t", "on")
        if asked and os.environ.get("RANK", "0") == "0":
            print(f"{variable}: ignored, every process has the whole model, and {name} would save nothing here")
    on_cpu = pick_device(config.run.device).type != "cuda"
    # Autocast to fp16 would also cast bfloat16 weights down, on every call; bfloat16 needs no loss scaling.
    half = "bf16" if config.model.dtype == "bfloat16" else "fp16"
    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not on_cpu and not distributed and ":" in config.run.device:
        torch.cuda.set_device(torch.device(config.run.device))
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=half if config.run.amp and (half == "bf16" or not on_cpu) else "no",
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],  # training changes no buffer
    )
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked:
        raise UserError(
            f"the launcher asked for {asked} processes, but {accelerator.num_processes} came up; "
            "launch with torchrun --nproc-per-node N train.py …"
        )
    return accelerator


def training_model_config(config: Config, device: torch.device) -> ModelConfig:
    """`config.model` with the type of frozen weights that training takes: fp16 only where the loss is scaled.

    Gradients flow through the frozen language model, and unscaled ones vanish in fp16.

    Raises:
        UserError: fp16 is asked for where the loss is not scaled: without `run.amp`, or on a CPU.
    """
    on_cuda = device.type == "cuda"
    if on_cuda and config.run.amp:
        return config.model
    if config.model.dtype == "float16":
        why, fix = ("run.amp is false", "run.amp=true, or ") if on_cuda else (f"training is on the {device.type}", "")
        raise UserError(
            f"model.dtype is float16 and {why}: without loss scaling small gradients become zero. Set "
            f"{fix}model.dtype=float32."
        )
    return replace(config.model, dtype="float32") if on_cuda and config.model.dtype == "auto" else config.model


def prepare_trained_parameters(model: SALMONN, accelerator: Accelerator) -> list[tuple[str, torch.nn.Parameter]]:
    """Name and parameter of all that is trained; in float32 where a loss scaler will unscale the gradients."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if accelerator.scaler is not None:
        for _, parameter in trained:
            parameter.data = parameter.data.float()
    return trained

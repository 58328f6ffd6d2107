"""Make a folder to hand on of a trained adapter: 16-bit numbers, and a configuration without this machine's paths.

    python -m tools.pack_adapter outputs/tiny/stage2/best assets/adapters/tiny \
        --options model.quantization=nf4 model.encoder_quantization=int8

The tensors are rounded to `--dtype`: float16 has eight times bfloat16's precision, and an error names a tensor that
does not fit in it; int8 rounds the connector's matrices to 8 bits with a scale a row, and the rest to float16.
`config.yaml` keeps the model and how text is generated, with the changes of `--options`; data, run and checkpoint paths
are left out. Scores of the source are kept, and a README.md that the target has. `models.load_model(OUT)` reads the
result as it reads the source.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import Config, load_config
from support import command_line
from support.command_line import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DTYPES = ("float16", "bfloat16", "float32", "int8")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m tools.pack_adapter",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("source", type=Path, help="adapter folder, or a run's folder (its best, else its last)")
    result.add_argument("target", type=Path, help="folder to write; it must not exist, or be an adapter of this form")
    result.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the tensors (default: %(default)s)")
    result.add_argument("--options", nargs="+", default=[], metavar="section.key=value", help="changes to the YAML")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status."""
    return command_line.run(work, parser(), argv)


def work(arguments: argparse.Namespace) -> None:
    """Write the folder and say how large it is."""
    import torch

    from configs.recorded import CONFIG_FILE
    from models.checkpoint.adapter_folder import ADAPTER_FILE, METRICS_FILE, checkpoint_of, read_adapter, write_adapter
    from models.checkpoint.rounded_rows import round_rows

    source, target = checkpoint_of(arguments.source.expanduser()), arguments.target.expanduser()
    if target.exists() and not (target / ADAPTER_FILE).is_file():
        raise UserError(f"{target} exists and is no adapter folder; give a new name")
    if not (source / CONFIG_FILE).is_file():
        raise UserError(f"{source} has no {CONFIG_FILE}, which says what model the adapter belongs to")
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in read_adapter(source).items():
        if arguments.dtype == "int8" and name.startswith("connector."):
            tensors |= round_rows(name, tensor)
        else:
            dtype = torch.float16 if arguments.dtype == "int8" else getattr(torch, arguments.dtype)
            tensors[name] = rounded(name, tensor, dtype)
    config = portable(load_config(source / CONFIG_FILE, [*arguments.options, "model.ckpt="]))
    scores = source / METRICS_FILE
    card = target / "README.md"
    kept_card = card.read_text(encoding="utf-8") if card.is_file() else None

    def with_card(draft: Path) -> None:
        if kept_card is not None:
            (draft / card.name).write_text(kept_card, encoding="utf-8")

    metrics = json.loads(scores.read_text(encoding="utf-8")) if scores.is_file() else None
    write_adapter(tensors, target, config=config, metrics=metrics, extra=with_card)
    size = sum(file.stat().st_size for file in target.iterdir())
    parameters = sum(tensor.numel() for tensor in tensors.values())
    print(f"{target}: {len(tensors)} tensors, {parameters:,} numbers in {arguments.dtype}, {size / 1e6:.1f} MB")


def rounded(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype`; integers stay as they are.

    Raises:
        UserError: a number becomes infinite.
    """
    if not tensor.is_floating_point():
        return tensor
    result = tensor.to(dtype)
    if not result.isfinite().all():
        raise UserError(
            f"{name} has numbers up to {tensor.abs().max():.3g}, too large for {dtype}; use --dtype bfloat16"
        )
    return result


def portable(config: Config) -> Config:
    """The configuration without what belongs to one machine: data, run, and where anything lies."""
    from configs.sections import DatasetsConfig, RunConfig, WandbConfig

    return dataclasses.replace(
        config,
        datasets=DatasetsConfig(),
        run=RunConfig(stage=config.run.stage),
        wandb=WandbConfig(),
    )


if __name__ == "__main__":
    sys.exit(main())

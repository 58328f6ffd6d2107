"""Turn a `.pth` of SALMONN's public code, or of a trainer made from it, into an adapter folder, and back.

    python -m tools.convert_checkpoint checkpoint_best.pth outputs/salmonn --cfg-path configs/salmonn_3b/evaluate.yaml
    python -m tools.convert_checkpoint outputs/salmonn checkpoint_again.pth

The folder loads by itself (`models.load_model`), and evaluates with `--ckpt`; its config.yaml has `legacy: weights` and
the layers on which the file has low-rank adapters, whatever the YAML says. Every tensor is copied bit for bit. What an
adapter does not contain (buffers, optimiser, epoch) is kept in `released.pt`, so that converting back gives the same
file; secrets in its configuration are left out. An adapter that was trained here has no such file: it gives a `.pth` of
the trained parameters alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.schema import load_config
from support import command_line


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m tools.convert_checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("source", type=Path, help=".pth file, or adapter folder")
    result.add_argument("target", type=Path, help="adapter folder, or .pth file")
    result.add_argument("--cfg-path", metavar="FILE", help="YAML that the .pth was trained with; not needed back")
    result.add_argument("--options", nargs="+", default=[], metavar="section.key=value", help="changes to the YAML")
    result.add_argument("--pad-rows", type=Path, metavar="FILE", help="safetensors with the vocabulary's [PAD] rows")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status."""
    return command_line.run(work, parser(), argv)


def work(arguments: argparse.Namespace) -> None:
    """Convert, one way or the other."""
    to_folder = arguments.target.suffix != ".pth"
    if to_folder and arguments.cfg_path is None:
        parser().error("--cfg-path is needed: the folder holds the configuration that its adapter belongs to")
    config = load_config(arguments.cfg_path, [*arguments.options, "model.ckpt="]) if to_folder else None
    from conversion import salmonn_pth

    if config is None:
        count = salmonn_pth.to_released(arguments.source, arguments.target)
    else:
        count = salmonn_pth.to_folder(arguments.source, arguments.target, config, arguments.pad_rows)
    print(f"{arguments.target}: {count} tensors")


if __name__ == "__main__":
    sys.exit(main())

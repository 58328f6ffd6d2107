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

from configs.parsing import ConfigError
from configs.schema import load_config
from conversion.salmonn_pth import to_folder, to_released
from models.checkpoint.adapter_tensors import CheckpointError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help=".pth file, or adapter folder")
    parser.add_argument("target", type=Path, help="adapter folder, or .pth file")
    parser.add_argument("--cfg-path", metavar="FILE", help="YAML that the .pth was trained with; not needed back")
    parser.add_argument("--options", nargs="+", default=[], metavar="section.key=value", help="changes to the YAML")
    parser.add_argument("--pad-rows", type=Path, metavar="FILE", help="safetensors with the vocabulary's [PAD] rows")
    options = parser.parse_args(arguments)
    try:
        if options.target.suffix == ".pth":
            count = to_released(options.source, options.target)
        elif options.cfg_path is None:
            parser.error("--cfg-path is needed: the folder holds the configuration that its adapter belongs to")
        else:
            config = load_config(options.cfg_path, [*options.options, "model.ckpt="])
            count = to_folder(options.source, options.target, config, options.pad_rows)
    except (CheckpointError, ConfigError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{options.target}: {count} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())

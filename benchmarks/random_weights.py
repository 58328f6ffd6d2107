"""Writes a system's files with random weights (weights.py), at full shape.

python -m benchmarks.random_weights --cfg-path configs/nlp07/evaluate.yaml --out FOLDER [--dtype float16] [--small]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from configs.schema import load_config
from support import command_line


def work(arguments: argparse.Namespace) -> None:
    import torch

    from benchmarks.weights import write_weights
    from models.encoders.table import ENCODERS

    config = load_config(arguments.cfg_path).model
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    written = write_weights(config, arguments.out, small=arguments.small, dtype=dtype, device=arguments.device)
    for key in ("llama_path", *(entry.path_key for entry in ENCODERS.values()), "ckpt"):
        if getattr(written, key):
            print(f"model.{key}: {getattr(written, key)}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.random_weights", description="Write a system's files with random weights."
    )
    parser.add_argument("--cfg-path", required=True, help="YAML of the system")
    parser.add_argument("--out", required=True, help="folder to write to")
    types = ("float32", "float16", "bfloat16")
    parser.add_argument("--dtype", choices=types, help="of all files (default: as published)")
    parser.add_argument("--small", action="store_true", help="two layers of width 64, for trying out")
    parser.add_argument("--device", default="cpu", help="where numbers are drawn")
    return command_line.run(work, parser, argv)


if __name__ == "__main__":
    sys.exit(main())

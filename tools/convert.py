"""Turn a model of another program into a folder that transformers and Smolt read.

    python -m tools.convert faster-whisper-tiny.en models/whisper-tiny.en
    python -m tools.convert ~/.cache/whisper/small.pt models/whisper-small
    python -m tools.convert ggml-base.en-q5_1.bin models/whisper-base.en --dtype float16
    python -m tools.convert SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2 --dtype float16

The format of the source is recognised by its content: Whisper as a folder of CTranslate2 (faster-whisper's), as
OpenAI's .pt, as a ggml-*.bin of whisper.cpp (float32, float16, q4_0 to q8_0, q2_k to q6_k); a language model (Llama,
Qwen 2 and 3, Gemma 2 and 3) as a .gguf of llama.cpp. Nothing in it is run. The folder has the whole model, its
configuration, and its tokenizer (with its chat template) where the source has one; it appears once it is complete.
Without --dtype, weights are float16 or bfloat16 where that changes no value, else float32: those that were quantised
become float32. docs/weights.md has more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from support import command_line

DTYPES = ("float32", "float16", "bfloat16")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m tools.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("source", type=Path, metavar="SOURCE", help="file or folder of another program")
    result.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    result.add_argument("--dtype", choices=DTYPES, help="of the weights (default: see above)")
    result.add_argument("--overwrite", action="store_true", help="replace a folder that is already there")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status."""
    return command_line.run(work, parser(), argv)


def work(arguments: argparse.Namespace) -> None:
    """Recognise the source and convert it."""
    if not arguments.source.exists():  # before the libraries are loaded
        raise command_line.UserError(f"{arguments.source} does not exist; expected a model of another program")
    from conversion import formats

    folder = formats.convert(arguments.source, arguments.out, dtype=arguments.dtype, overwrite=arguments.overwrite)
    print(f"{folder}: complete")


if __name__ == "__main__":
    sys.exit(main())

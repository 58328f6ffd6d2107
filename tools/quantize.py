"""Quantise a language model to a GPTQ folder, calibrated on its real input, and measure the cost.

    python -m tools.quantize --cfg-path configs/demo/stage2.yaml --out outputs/demo/llm-gptq --group-size 64 \\
        --options model.ckpt=outputs/demo/stage2/best --compare nf4 torchao_int8 int8-encoders
    python -m tools.quantize --cfg-path … --out … --lora both

Calibrates on audio tokens, prompts and answers of `datasets.train_ann_path` as the model joins them, and on plain text.
Prints, for every layer, how much its outputs change and the loss once it is rounded; then, before and after, the loss
and the share of tokens that change on held-out clips, the task score and the bytes. `--out` becomes a folder in the
AutoGPTQ format (v1), for `model.llama_path`, with `report.json`; it is read back and must give equal outputs.

`--lora beside` rounds the base and keeps LoRA apart, calibrated with LoRA applied; the adapter stays as it is.
`--lora merge` adds LoRA into the weights before rounding; the adapter without it goes to `<out>/adapter`. `--lora both`
does both (the second in `<out>-merged`), so that the report says which measures better.

`--compare` also measures other choices: a back-end (`nf4`, `int8`, `torchao_int8`), `int8-encoders`, or options,
such as `model.whisper_layers=24`, several joined by commas.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

from configs.schema import add_config_arguments
from support import command_line
from support.command_line import number


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m tools.quantize", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(result)
    result.add_argument("--out", required=True, metavar="FOLDER", help="where the GPTQ folder goes")
    result.add_argument("--overwrite", action="store_true", help="replace models that are already there")
    result.add_argument("--bits", type=int, default=4, choices=(2, 4, 8))
    result.add_argument("--group-size", type=int, default=128, help="inputs that share a scale; -1: all (default: 128)")
    result.add_argument("--act-order", action="store_true", help="round inputs in the order of falling activations")
    result.add_argument("--asym", action="store_true", help="a zero point for each group instead of the middle")
    result.add_argument("--damp", type=float, default=0.01, help="of the mean, added to the second moments' diagonal")
    result.add_argument(
        "--samples", type=number(int, 1), default=128, help="training clips to calibrate on (default: 128)"
    )
    result.add_argument("--text-samples", type=number(int, 0), default=32, help="plain texts in addition (default: 32)")
    result.add_argument("--text-length", type=number(int, 2), default=256, help="tokens of each (default: 256)")
    result.add_argument("--text", metavar="FILE", help="where they come from; else the clips' own texts")
    result.add_argument("--held-out", type=number(int, 1), default=16, help="clips for loss and flips (default: 16)")
    result.add_argument("--score-on", metavar="FILE", help="annotations to score on (default: datasets.valid_ann_path)")
    result.add_argument(
        "--score-samples", type=number(int, 0), default=64, help="clips of it to score; 0: none (default: 64)"
    )
    result.add_argument("--lora", choices=("beside", "merge", "both"), default="beside")
    result.add_argument("--compare", nargs="+", action="extend", default=[], metavar="CHOICE", help="see above")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status."""
    return command_line.run(work, parser(), argv, error_status=2)


def work(arguments: argparse.Namespace) -> None:
    """Round, and measure what that costs."""
    if not 0 < arguments.damp < math.inf:
        parser().error(f"argument --damp: {arguments.damp:g}; expected more than 0, such as 0.01")
    from tools import rounding

    rounding.run(arguments)


if __name__ == "__main__":
    sys.exit(main())

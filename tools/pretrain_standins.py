"""Pretrain the stand-in checkpoints of `assets/standins` from scratch: small Whisper, BEATs and LLM in real formats.

    python -m tools.pretrain_standins --out assets/standins
    python -m tools.pretrain_standins --parts llm --scale 0.01 --out outputs/try       # a few steps of one part

About two and a half hours on one CPU core with bfloat16 instructions, more without; the amount of training is counted
in steps. The parts are independent and may run in parallel. All randomness comes from `--seed`; test voices, test
sentences and test pairs of events are excluded, and every clip and every line of text is checked against them.

Needs espeak-ng's package (`pip install espeakng-loader`). The results are in `docs/standins.md`.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from support import command_line

WHISPER_SPEECH = 0.94
BEATS_CLIPS, BEATS_SPEECH = 6_000, 0.2
HELD_OUT = 200
"""Clips held out from training, for the figures printed meanwhile."""
LIMIT_BYTES = 12 * 2**20


def _log(part: str, started: float):
    def log(**figures: float) -> None:
        shown = "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
        print(f"{part}  {time.monotonic() - started:6.0f} s  {shown}", flush=True)

    return log


def _clips(arguments: argparse.Namespace, features: str, count: int, *, further: int = 0, **how: float):
    """The clips of a set; `further` sets share no draw with the first."""
    from tools.standins.clips import load_clips, read_shard

    count = max(2 * HELD_OUT, int(count * arguments.scale))
    seed, processes = arguments.seed + further, arguments.processes
    shards = load_clips(arguments.work, count, features=features, seed=seed, processes=processes, **how)
    return [clip for shard in shards for clip in read_shard(shard)]


def pretrain_llm(arguments: argparse.Namespace) -> None:
    from tools.standins import llm
    from tools.standins.tokenizer import build_tokenizer

    log = _log("llm", time.monotonic())
    recipe = llm.LlamaRecipe(seed=arguments.seed)
    recipe = replace(recipe, steps=max(1, int(recipe.steps * arguments.scale)))
    tokenizer = build_tokenizer()
    model = llm.build(recipe, tokenizer)
    for _ in llm.train(recipe, model, llm.Lines(tokenizer, Path("prompts"), arguments.seed), log):
        llm.save(model, tokenizer, arguments.out / "llm")


def pretrain_whisper(arguments: argparse.Namespace) -> None:
    from tools.standins import whisper

    log = _log("whisper", time.monotonic())
    recipe = whisper.WhisperRecipe(seed=arguments.seed)
    recipe = replace(
        recipe,
        rounds=tuple(replace(each, steps=max(1, int(each.steps * arguments.scale))) for each in recipe.rounds),
        alignment_steps=max(1, int(recipe.alignment_steps * arguments.scale)),
    )
    states = [
        arguments.work / f"whisper_{recipe.seed}_{number}_{each.steps}.pt" for number, each in enumerate(recipe.rounds)
    ]
    table: dict[str, int] = {}
    for number, each in enumerate(recipe.rounds):
        clips = _clips(arguments, "log_mel", each.clips, further=number, speech=WHISPER_SPEECH, invented=each.invented)
        table = table or whisper.phoneme_table(clips)
        examples = [whisper.example(clip, table) for clip in clips]
        training = whisper.train(recipe, number, examples[:-HELD_OUT], len(table) + 1, log, states)
        for step, model in training:
            log(round=number, step=step, held_out_wer=whisper.word_error_rate(model, examples[-HELD_OUT:]))
            whisper.save(model, arguments.out / "whisper")


def pretrain_beats(arguments: argparse.Namespace) -> None:
    from tools.standins import beats

    log = _log("beats", time.monotonic())
    recipe = beats.BEATsRecipe(seed=arguments.seed)
    recipe = replace(recipe, steps=max(1, int(recipe.steps * arguments.scale)))
    # Its targets have each speaker's gender, which invented speakers do not have.
    clips = _clips(arguments, "fbank", BEATS_CLIPS, speech=BEATS_SPEECH, invented=0.0)
    examples = [beats.example(clip) for clip in clips]
    for step, model in beats.train(recipe, examples[:-HELD_OUT], log):
        recall, precision = beats.detection_scores(model, examples[-HELD_OUT:])
        log(step=step, held_out_recall=recall, held_out_precision=precision)
        beats.save(model, arguments.out / "beats.pt")


PARTS = {"llm": pretrain_llm, "whisper": pretrain_whisper, "beats": pretrain_beats}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m tools.pretrain_standins",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--out", type=Path, required=True, help="folder for whisper/, beats.pt and llm/")
    result.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=tuple(PARTS), help="default: all")
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--scale", type=float, default=1.0, help="share of the clips and steps, for a quick look")
    result.add_argument("--work", type=Path, default=Path("outputs/standins"), help="rendered clips are kept here")
    result.add_argument("--processes", type=int, default=1, help="to render clips; the result does not depend on it")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status."""
    return command_line.run(work, parser(), argv)


def work(arguments: argparse.Namespace) -> int:
    """Pretrain the parts that the arguments name; 1 where they are too large to be shipped."""
    import torch

    torch.set_num_threads(1)  # layers this small are faster on one core than on two
    for part in arguments.parts:
        PARTS[part](arguments)
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(f"{arguments.out}: {size / 2**20:.1f} MiB")
    return 0 if size <= LIMIT_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())

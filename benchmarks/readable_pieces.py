"""How well a language model reads transcripts that are spelled in few or many pieces, untrained.

    python -m benchmarks.readable_pieces --cfg-path configs/tiny/align.yaml [--counts 1 3 20 100] [--out FILE]

Alignment puts audio tokens where pieces' embeddings are; `model.alignment_min_count` decides which pieces. Small pieces
are met often in few hours of speech, but a language model knows words in its own tokenizer's pieces. Here it gets the
true transcript's embeddings in place of audio, spelled in the pieces that each count gives, and the figure is its
cross-entropy of that transcript, in nats a token: what is left for LoRA to learn about reading alone. For comparison,
its own tokenizer's spelling, and no transcript at all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.suite import RESULTS, origin, write_report
from configs.schema import Config, add_config_arguments, config_from_arguments
from support import command_line
from support.tables import format_table

if TYPE_CHECKING:
    from models.salmonn import SALMONN

COUNTS = (1, 2, 3, 5, 10, 20, 100)
CLIPS = 64
RESULT = RESULTS / "readable_pieces.json"


def measure(config: Config, counts: Sequence[int], clips: int) -> list[dict[str, object]]:
    """A row for each way to spell: pieces in all, pieces a word, cross-entropy."""
    import torch

    from data.annotations import load_annotations
    from models.alignment.pieces import Pieces
    from models.build import build_model
    from scoring.tasks import is_transcript

    torch.manual_seed(config.run.seed)
    model = build_model(config.model, "cpu")
    texts, heard = (
        [clip.text for clip in load_annotations(paths, config.datasets.prefix) if is_transcript(clip.task)]
        for paths in (config.datasets.train_ann_path, config.datasets.valid_ann_path)
    )
    heard = heard[:clips]
    own = model.text.plain.ids
    rows = [
        _row(model, "no transcript", None, heard, lambda text: []),
        _row(model, "the tokenizer's own", model.llm.vocab_size, heard, lambda text: own(f" {text}")),
    ]
    for count in counts:
        pieces = Pieces.from_texts(model.text.tokenizer, texts, count)

        def spelled(text: str, pieces: Pieces = pieces) -> list[int]:
            return [pieces.ids[position] for position in pieces.spell(text)]

        rows.append(_row(model, f"met {count} times", len(pieces), heard, spelled))
    return rows


def _row(
    model: SALMONN, spelling: str, pieces: int | None, texts: Sequence[str], ids_of: Callable[[str], Sequence[int]]
) -> dict[str, object]:
    import torch

    prompt = "<Speech><SpeechHere></Speech> Write down what is said."
    loss, tokens, length = 0.0, 0, 0
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([list(ids_of(text))], dtype=torch.long)
            audio = model.llm.embed(ids)
            batch = model.text.batch([prompt], [text])
            assembled = model.assemble(audio, torch.ones(ids.shape, dtype=torch.bool), batch)
            hidden = model.llm(assembled.embeds, assembled.mask, assembled.positions)
            wanted = assembled.labels[0, 1:]
            logits = model.llm.logits(hidden[0, :-1][wanted >= 0])
            loss += torch.nn.functional.cross_entropy(logits, wanted[wanted >= 0], reduction="sum").item()
            tokens += batch.target_tokens
            length += ids.shape[1]
    words = sum(len(text.split()) for text in texts)
    return {"spelling": spelling, "pieces": pieces, "pieces_a_word": length / words, "cross_entropy": loss / tokens}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.readable_pieces",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(result)
    result.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="of model.alignment_min_count")
    result.add_argument("--clips", type=int, default=CLIPS, help="validation transcripts (default: %(default)s)")
    result.add_argument("--out", type=Path, default=RESULT, help="JSON to write (default: %(default)s)")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status."""
    return command_line.run(work, parser(), argv)


def work(arguments: argparse.Namespace) -> None:
    """Measure, write, and print the table."""
    config = config_from_arguments(arguments)
    rows = measure(config, arguments.counts, arguments.clips)
    write_report(arguments.out, {"origin": origin("cpu"), "clips": arguments.clips, "rows": rows})
    print(
        format_table(
            ["spelled in pieces", "pieces", "a word", "nats a token"],
            [
                [
                    str(row["spelling"]),
                    f"{row['pieces']:,}" if row["pieces"] else "–",
                    f"{row['pieces_a_word']:.2f}",
                    f"{row['cross_entropy']:.2f}",
                ]
                for row in rows
            ],
        )
    )


if __name__ == "__main__":
    sys.exit(main())

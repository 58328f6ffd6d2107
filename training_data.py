"""The clips of a run, for training and validation, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import Config
from data.annotations import load_annotations
from data.prompts import load_prompts
from data.usable import require_files, require_texts
from support.command_line import UserError

if TYPE_CHECKING:
    from dataset import AudioTextDataset
    from models.salmonn import SALMONN


def load_data(config: Config) -> tuple[AudioTextDataset, AudioTextDataset | None]:
    """Training clips, and validation clips where the file names any."""
    from dataset import AudioTextDataset
    from models.released_rules import rules_of

    datasets = config.datasets
    train_clips = load_annotations(datasets.train_ann_path, datasets.prefix)
    require_files(train_clips, datasets.prefix, "datasets.train_ann_path")
    require_texts(train_clips, "datasets.train_ann_path")
    train_data = AudioTextDataset(
        train_clips,
        load_prompts(config.model.prompt_path),
        seed=config.run.seed,
        training=True,
        augment=datasets.augmentation,
        join=datasets.join_clips,
        max_audio_s=datasets.max_audio_s,
        long_clips=datasets.long_clips,
        first_channel=rules_of(config.model).first_channel,
    )
    if datasets.valid_ann_path is None:
        return train_data, None
    valid_clips = load_annotations(datasets.valid_ann_path, datasets.prefix)
    require_files(valid_clips, datasets.prefix, "datasets.valid_ann_path")
    valid_data = AudioTextDataset(
        valid_clips,
        load_prompts(config.model.test_prompt_path or config.model.prompt_path),
        seed=config.run.seed,
        max_audio_s=datasets.max_audio_s,
    )
    return train_data, valid_data


def without_long_clips(config: Config, train_data: AudioTextDataset, say: Callable[[str], None]) -> AudioTextDataset:
    """The training clips that `datasets.long_clips` leaves; says what it does to the others."""
    from models.released_rules import rules_of
    from training.content_limits import clips_cut_by_rules, clips_to_skip

    durations_s = train_data.whole_durations()
    skipped, notes = clips_to_skip(train_data.annotations, durations_s, config.datasets)
    for note in notes + clips_cut_by_rules(train_data.annotations, durations_s, rules_of(config.model).cuts_at_s):
        say(note)
    return train_data.without(skipped) if skipped else train_data


def require_no_teacher(config: Config) -> None:
    """Raise UserError where a run that trains an alignment has a teacher: `distillation` has no such loss."""
    if config.distillation.teacher is None:
        return
    if config.run.stage == "align" or config.model.ctc_weight:
        asked = "run.stage is align" if config.run.stage == "align" else "model.ctc_weight is above 0"
        raise UserError(
            f"{asked}, and distillation.teacher is set: training with a teacher has no alignment loss; set "
            "distillation.teacher to null, or model.ctc_weight to 0 and run.stage to train"
        )


def transcripts_to_align(
    config: Config, train_data: AudioTextDataset, valid_data: AudioTextDataset | None, say: Callable[[str], None]
) -> tuple[AudioTextDataset, AudioTextDataset | None]:
    """What `run.stage: align` trains and validates on, the clips with a transcript; of another stage, all clips.

    Raises:
        UserError: no clip has a transcript.
    """
    if config.run.stage != "align":
        return train_data, valid_data
    from scoring.tasks import is_transcript

    kept: list[AudioTextDataset | None] = []
    for key, data in (("datasets.train_ann_path", train_data), ("datasets.valid_ann_path", valid_data)):
        tasks = [] if data is None else data.tasks
        others = [place for place, task in enumerate(tasks) if not is_transcript(task)]
        if others and len(others) == len(tasks):
            raise UserError(
                f"{key}: run.stage: align needs transcripts, clips with the task asr, or asr_ and a language; found "
                f"the tasks {', '.join(sorted(set(tasks)))}"
            )
        if others:
            names = ", ".join(sorted({tasks[place] for place in others}))
            say(f"note: {len(others):,} of {len(tasks):,} clips of {key} are no transcripts ({names}); left out")
        kept.append(data.without(others) if others else data)
    return kept[0], kept[1]


def prepare_alignment(
    config: Config,
    model: SALMONN,
    train_data: AudioTextDataset,
    valid_data: AudioTextDataset | None,
    say: Callable[[str], None],
    *,
    resume: Path | None = None,
) -> None:
    """Give the model a CTC head where the run trains one, and say what its pieces are.

    Pieces are chosen from the training transcripts, but for those of the checkpoint to `resume` from. A stage that goes
    through the language model also keeps those of the adapter that it starts from.

    Raises:
        UserError: a transcript cannot be spelled, or no clip has enough audio tokens for its own.
    """
    from models.checkpoint.adapter_folder import align_as
    from training.alignment import choose_pieces, describe_alignment, require_spelled

    if config.run.stage != "align" and not config.model.ctc_weight:
        return
    if resume is not None:
        align_as(model, resume)
    if model.alignment is None or (config.run.stage == "align" and resume is None):
        choose_pieces(model, train_data.annotations, config.model.alignment_min_count)
    require_spelled(model, train_data.annotations)
    if config.run.stage == "align" and valid_data is not None:
        require_spelled(model, valid_data.annotations)
    say(describe_alignment(model, train_data.annotations, train_data.durations()))


def check_content(
    config: Config,
    model: SALMONN,
    train_data: AudioTextDataset,
    valid_data: AudioTextDataset | None,
    say: Callable[[str], None],
) -> None:
    """Say what limits and the tokenizer take away from texts.

    Raises:
        UserError: a sequence has more tokens than the language model has positions.
    """
    from training.content_limits import lost_text, require_positions

    for note in lost_text(train_data.annotations, model.text):
        say(note)
    for data in filter(None, (train_data, valid_data)):
        require_positions(model, data.annotations, data.durations(), data.prompts_of, training=True)
    if valid_data is not None and config.run.valid_scoring:
        new_tokens = config.generate.max_new_tokens
        clips, durations_s = valid_data.annotations, valid_data.durations()
        require_positions(model, clips, durations_s, valid_data.prompts_of, training=False, new_tokens=new_tokens)

"""The clips of a run, for training and validation, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from configs.schema import Config
from data.annotations import load_annotations
from data.prompts import load_prompts
from data.usable import require_files, require_texts

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

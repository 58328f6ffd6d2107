"""Encode the clips of a YAML once, in several processes, so that training and evaluation find them in the cache.

    python -m tools.cache_encoder_outputs --cfg-path configs/demo/stage1.yaml --processes 2

Training fills `datasets.cache_encoder_outputs` by itself, one clip after another in its own process; this does the same
work on all cores beforehand. What is already cached is skipped, so a run that was stopped continues. Clips that
cannot be read are left for training and evaluation to name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from configs import augmentation
from configs.parsing import ConfigError
from configs.schema import Config, add_config_arguments, config_from_arguments
from data.annotations import load_annotations
from data.parts import Part
from support import command_line

if TYPE_CHECKING:
    from models.encoders.frame_cache import FrameCache

CLIPS_A_JOB = 64
ANNOTATIONS = ("train_ann_path", "valid_ann_path", "train_stage2_path", "valid_stage2_path")
"""Keys of the annotation files to encode, in addition to the test files."""
TEST_ANNOTATIONS = ("test_ann_path", "test_ann_path_asr", "test_ann_path_aac")

Clip = tuple[str, tuple[str, ...], Part | None]
"""The paths of a clip and of those appended to it, and the part of the first that is meant."""


_cache: FrameCache
"""A process' own, from job to job."""
_max_audio_s: float | None


def _start(config: Config) -> None:
    import torch

    from models.device import pick_device
    from models.encoders.frame_cache import FrameCache
    from models.encoders.stack import EncoderStack
    from models.released_rules import rules_of
    from training.precision import training_model_config

    global _cache, _max_audio_s
    torch.set_num_threads(1)  # the processes share the cores
    device = pick_device(config.run.device)
    model = training_model_config(config, device)  # the precision of training
    stack = EncoderStack.from_config(model, device, rules=rules_of(model).encoders).eval()
    _cache = FrameCache(config.datasets.cache_encoder_outputs, stack)
    _max_audio_s = config.datasets.max_audio_s


def _encode(clips: Sequence[Clip]) -> tuple[int, int]:
    """Clips that are in the cache now, and clips that could not be read."""
    import torch

    from data.audio import AudioError, load_clip

    encoded = 0
    for path, expand, part in clips:
        try:
            waveform, _ = load_clip(path, expand=expand, max_audio_s=_max_audio_s, part=part)
        except AudioError:
            continue
        with torch.no_grad():
            _cache.encode(waveform[None], torch.tensor([len(waveform)]))
        encoded += 1
    return encoded, len(clips) - encoded


def clips_of(config: Config) -> list[Clip]:
    """Every clip that the configuration names, once, in a fixed order."""
    datasets = config.datasets
    clips: dict[Clip, None] = {}
    for names, require_text in ((ANNOTATIONS, True), (TEST_ANNOTATIONS, False)):
        for name in names:
            if getattr(datasets, name):
                entries = load_annotations(getattr(datasets, name), datasets.prefix, require_text=require_text)
                clips.update({(entry.path, entry.expand_wav, entry.part): None for entry in entries})
    return list(clips)


def fill_cache(config: Config, processes: int) -> tuple[int, int]:
    """Encode every clip; returns how many are in the cache and how many could not be read.

    Raises:
        ConfigError: the configuration has no cache, encoders whose outputs cannot be cached, or augments its
            training clips.
    """
    datasets = config.datasets
    if not datasets.cache_encoder_outputs:
        raise ConfigError(f"{config.path}: datasets.cache_encoder_outputs is null; give it a folder to fill")
    if augmentation.read(datasets.augmentation or {}).steps:
        raise ConfigError(
            f"{config.path}: datasets.augmentation makes another clip of each clip every time, so the cache would not "
            "be used; drop one of the two"
        )
    from models.encoders.frame_cache import why_not_cached
    from models.encoders.table import frozen_encoders
    from models.released_rules import rules_of

    reason = why_not_cached(frozen_encoders(config.model), rules_of(config.model).encoders)
    if reason is not None:  # checked before processes start
        raise ConfigError(f"{config.path}: {reason}")
    clips = clips_of(config)
    jobs = [clips[start : start + CLIPS_A_JOB] for start in range(0, len(clips), CLIPS_A_JOB)]
    encoded = unreadable = 0
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_start, initargs=(config,))
    with pool, tqdm(total=len(clips), desc="encoder outputs", unit="clip") as progress:
        for done, bad in pool.map(_encode, jobs):
            encoded, unreadable = encoded + done, unreadable + bad
            progress.update(done + bad)
    return encoded, unreadable


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m tools.cache_encoder_outputs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(result)
    result.add_argument("--processes", type=int, default=2, help="processes that encode in parallel (default: 2)")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status."""
    return command_line.run(work, parser(), argv, error_status=2)


def work(arguments: argparse.Namespace) -> None:
    """Fill the cache and say what is in it."""
    config = config_from_arguments(arguments)
    encoded, unreadable = fill_cache(config, max(1, arguments.processes))
    folder = Path(config.datasets.cache_encoder_outputs)
    print(f"{folder}: {encoded:,} clips, {unreadable:,} that cannot be read")


if __name__ == "__main__":
    sys.exit(main())

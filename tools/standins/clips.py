"""Clips for pretraining the stand-in encoders: rendered like the demo corpus, stored as spectra.

Only training voices, training sentences and training pairs of events are drawn, from seeds that no corpus uses; every
clip is checked against the test split before it is used.
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soxr
import torch

from data.demo.captions import is_test_pair
from data.demo.clips import Clip, draw_event, draw_sound_clip, draw_speech_clip, render
from data.demo.language import DIGITS, WORDS, Sentence, is_test_sentence
from data.demo.sounds import CONTINUOUS, INSTRUMENTS
from data.demo.speech import FEMALE_TEST, MALE_TEST, invent_speaker
from models.encoders.features import kaldi_fbank, log_mel
from support.files import write_whole
from support.units import SAMPLE_RATE
from tools.standins.timed_speech import TimedSynthesiser

SEED_SPACE = 7_919
"""First part of every pretraining seed; corpora use small numbers."""
SHARD_CLIPS = 500
RANDOM_WORDS = 0.25
"""Share of spoken clips with random words instead of a sentence, so that the encoder cannot rely on grammar."""
RANDOM_DIGITS = 0.08
OVER_SOUND = 0.12
"""Share of spoken clips with a background sound."""


@dataclass(frozen=True)
class PretrainingClip:
    """One clip's spectra and the times of its events."""

    log_mel: np.ndarray | None  # [80, F] float16
    fbank: np.ndarray | None  # [F, 128] float16
    words: tuple[tuple[str, float, float], ...]
    phonemes: tuple[tuple[str, float], ...]
    events: tuple[tuple[str, float, float], ...]
    gender: str | None
    melody: tuple[str, str] | None
    """Contour and tempo, of clips with one instrument."""


def draw_pretraining_clip(number: int, *, speech: float, seed: int) -> Clip:
    """Clip `number` of the endless pretraining set; `speech` is the share of spoken clips."""
    key = (SEED_SPACE, seed, number)
    rng = np.random.default_rng((*key, 2))
    if rng.random() >= speech:
        return draw_sound_clip(key, test=False, single=0.35)
    clip = draw_speech_clip(key, test=False)
    kind = rng.random()
    if kind < RANDOM_WORDS + RANDOM_DIGITS:
        pool = WORDS if kind < RANDOM_WORDS else DIGITS
        while True:
            text = " ".join(pool[i] for i in rng.integers(len(pool), size=int(rng.integers(1, 9))))
            if not is_test_sentence(text):
                break
        clip = replace(clip, sentence=Sentence(text=text))
    if rng.random() < OVER_SOUND:
        clip = replace(clip, events=(draw_event(rng, CONTINUOUS[int(rng.integers(len(CONTINUOUS)))], 1.0),))
    return clip


def assert_training_only(clip: Clip) -> None:
    """Check that a clip has no voice, sentence or pair of events of the demo's test set."""
    if clip.sentence is not None:
        assert not is_test_sentence(clip.sentence.text), clip.sentence.text
        assert clip.voice.speaker not in (*FEMALE_TEST, *MALE_TEST), clip.voice
    elif len(clip.events) == 2:
        assert not is_test_pair(clip.events[0].kind, clip.events[1].kind), clip.events


def load_clips(
    folder: Path, count: int, *, features: str, speech: float, invented: float, seed: int, processes: int
) -> Iterator[Path]:
    """Render `count` clips in shards, each in a new process, and yield the shards' files; existing ones are reused.

    `features` is `log_mel` or `fbank`; `invented` the share of spoken clips whose speaker is drawn for that clip alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        (path, range(start, min(start + SHARD_CLIPS, count)), features, speech, invented, seed)
        for start in range(0, count, SHARD_CLIPS)
        for path in [folder / f"{features}_{seed}_{start:06d}.pt"]
    ]
    missing = [job for job in jobs if not job[0].exists()]
    # espeak's output depends on earlier calls in its process: one process per shard.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for path in pool.map(_render_shard, missing):
            print(f"rendered {path}", flush=True)
    yield from (path for path, *_ in jobs)


def _render_shard(job: tuple[Path, range, str, float, float, int]) -> Path:
    path, numbers, *how = job
    torch.set_num_threads(1)
    synthesiser = TimedSynthesiser()
    clips = [_prepare(number, *how, synthesiser) for number in numbers]
    write_whole(path, lambda draft: torch.save([vars(clip) for clip in clips], draft))
    return path


def _prepare(
    number: int, features: str, speech: float, invented: float, seed: int, synthesiser: TimedSynthesiser
) -> PretrainingClip:
    clip = draw_pretraining_clip(number, speech=speech, seed=seed)
    assert_training_only(clip)
    rng = np.random.default_rng((SEED_SPACE, seed, number, 3))
    if clip.voice is not None and rng.random() < invented:
        clip = replace(clip, voice=invent_speaker(clip.voice, f"invented{number}", rng))
    rendered = render(clip, synthesiser)
    mono = rendered.waveform.mean(axis=0)
    if clip.channel.rate_hz != SAMPLE_RATE:
        mono = soxr.resample(mono, clip.channel.rate_hz, SAMPLE_RATE)
    waveform = torch.from_numpy(np.ascontiguousarray(mono, dtype=np.float32))[None]
    length = torch.tensor([waveform.shape[1]])
    return PretrainingClip(
        log_mel=log_mel(waveform, length, bins=80)[0][0].half().numpy() if features == "log_mel" else None,
        fbank=kaldi_fbank(waveform, length)[0].half().numpy() if features == "fbank" else None,
        words=synthesiser.words if clip.sentence is not None else (),
        phonemes=synthesiser.phonemes if clip.sentence is not None else (),
        events=rendered.events,
        gender=None if clip.voice is None else clip.voice.gender,
        melody=next(((e.contour, e.tempo) for e in clip.events[:1] if e.kind in INSTRUMENTS), None),
    )


def read_shard(path: Path) -> list[PretrainingClip]:
    return [PretrainingClip(**fields) for fields in torch.load(path, weights_only=False)]

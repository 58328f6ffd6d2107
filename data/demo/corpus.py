"""The demo corpus: synthetic speech, sounds and music with exact annotations, for every stage of the recipe.

    python -m data.prepare demo --out outputs/demo/corpus --seed 0

Writes clips and annotation files in the project's format: `train_stage1.json` (asr, audiocaption),
`train_stage2.json` (those and the instruction tasks), `valid.json`, `test_asr.json`, `test_aac.json` (five references)
and `test_tasks.json`. Paths are relative to the corpus folder. The same seed gives the same bytes, with any number
of processes.

Test clips have voices, sentences and pairs of events that no training clip of any seed has (`data.demo.speech`,
`data.demo.language`, `data.demo.captions`).
"""

import argparse
import io
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from data.demo.captions import draw_references
from data.demo.clips import Clip, draw_event, draw_sound_clip, draw_speech_clip, render
from data.demo.sounds import CONTINUOUS, INSTRUMENTS
from data.demo.speech import Synthesiser, invent_speaker
from data.demo.tasks import Answer, mixed_answer, music_answer, sound_answers, speech_answers
from support.files import write_json

SHARD_CLIPS = 360
"""Clips rendered by one fresh process; fixed, so that the bytes do not depend on the machine."""

INVENTED_SPEAKERS = 0.5
"""Share of the training speech whose speaker is drawn for that clip alone."""

_GROUPS = ("speech_train", "sound_train", "music_train", "mixed_train", "speech_valid", "sound_valid", "speech_test",
           "sound_test", "music_test", "mixed_test")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DemoSizes:
    """Clips of each group; one clip may serve several tasks."""

    speech_train: int = 10000
    sound_train: int = 1400
    music_train: int = 100
    mixed_train: int = 120
    speech_valid: int = 80
    sound_valid: int = 60
    speech_test: int = 200
    sound_test: int = 160
    music_test: int = 20
    mixed_test: int = 20
    answers: int = 120
    """Training entries of each instruction task; test entries are a sixth of that."""

    @classmethod
    def small(cls) -> "DemoSizes":
        """Enough to run all code in seconds."""
        return cls(
            speech_train=48, sound_train=40, music_train=8, mixed_train=8, speech_valid=6, sound_valid=6,
            speech_test=10, sound_test=10, music_test=4, mixed_test=4, answers=12,
        )  # fmt: skip


@dataclass(frozen=True)
class Written:
    """One clip on disk."""

    clip: Clip
    path: str  # relative to the corpus folder
    duration_s: float
    phonemes: str  # IPA; empty without speech


@dataclass(frozen=True)
class CorpusReport:
    """What was written."""

    folder: Path
    clips: int
    hours: float
    entries: dict[str, int]  # annotation file -> entries
    seconds: float


def write_corpus(
    folder: str | Path, *, seed: int = 0, sizes: DemoSizes | None = None, processes: int | None = None
) -> CorpusReport:
    """Render every clip and write the annotation files.

    Raises:
        data.demo.speech.SpeechError: espeak-ng's package is missing.
    """
    started = time.monotonic()
    folder, sizes = Path(folder), sizes or DemoSizes()
    clips = {group: [_draw(group, seed, i) for i in range(getattr(sizes, group))] for group in _GROUPS}
    jobs = _shards(folder, clips)
    # espeak-ng's output depends on earlier calls in its process, so every shard has a process of its own.
    with ProcessPoolExecutor(
        processes or len(os.sched_getaffinity(0)), mp_context=get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        rendered = dict(pair for part in pool.map(_render_shard, jobs) for pair in part)
    written = {
        group: [Written(clip, path, *rendered[path]) for clip, path in _paths(group, members)]
        for group, members in clips.items()
    }
    entries = {}
    for name, annotation in _annotations(written, sizes, seed).items():
        write_json(folder / name, {"annotation": annotation})
        entries[name] = len(annotation)
    total_s = sum(item.duration_s for members in written.values() for item in members)
    return CorpusReport(folder, len(rendered), total_s / 3600, entries, time.monotonic() - started)


def _draw(group: str, seed: int, number: int) -> Clip:
    kind, split = group.split("_")
    key = (seed, _GROUPS.index(group), number)
    test = split == "test"
    if kind == "speech":
        clip = draw_speech_clip(key, test=test)
        rng = np.random.default_rng((*key, 4))
        if split == "train" and rng.random() < INVENTED_SPEAKERS:
            clip = replace(clip, voice=invent_speaker(clip.voice, f"invented{number}", rng))
        return clip
    if kind == "music":
        return draw_sound_clip(key, test=test, kinds=tuple(INSTRUMENTS))
    if kind == "mixed":
        rng = np.random.default_rng((*key, 3))
        behind = draw_event(rng, CONTINUOUS[int(rng.integers(len(CONTINUOUS)))], 1.0)
        return replace(draw_speech_clip(key, test=test), events=(behind,))
    return draw_sound_clip(key, test=test, single=0.15 if test else 0.3)


def _paths(group: str, clips: list[Clip]) -> list[tuple[Clip, str]]:
    return [(clip, f"{group}/{number:04d}{clip.channel.suffix}") for number, clip in enumerate(clips)]


def _shards(folder: Path, clips: dict[str, list[Clip]]) -> list[tuple[Path, list[tuple[Clip, str]]]]:
    everything = [item for group, members in clips.items() for item in _paths(group, members)]
    for group in clips:
        (folder / group).mkdir(parents=True, exist_ok=True)
    count = -(-len(everything) // SHARD_CLIPS)
    return [(folder, everything[shard::count]) for shard in range(count)]


def _render_shard(job: tuple[Path, list[tuple[Clip, str]]]) -> list[tuple[str, tuple[float, str]]]:
    folder, items = job
    synthesiser = Synthesiser()
    facts = []
    for clip, path in items:
        waveform = render(clip, synthesiser).waveform
        buffer = io.BytesIO()  # written to a file, libsndfile would wait for the disk after each clip
        soundfile.write(buffer, waveform.T, clip.channel.rate_hz, subtype="PCM_16", format=Path(path).suffix[1:])
        (folder / path).write_bytes(buffer.getvalue())
        phonemes = "" if clip.sentence is None else synthesiser.phonemes(clip.sentence.text, clip.voice)
        facts.append((path, (waveform.shape[1] / clip.channel.rate_hz, phonemes)))
    return facts


# ------------------------------------------------------------------------------------------------------ annotations


def _annotations(written: dict[str, list[Written]], sizes: DemoSizes, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Every annotation file's entries."""
    rng = np.random.default_rng((seed, len(_GROUPS)))
    stage1 = [_asr(item) for item in written["speech_train"]] + [_caption(rng, i) for i in written["sound_train"]]
    stage2 = stage1 + _instructions(rng, written, "train", sizes.answers)
    files = {
        "train_stage1.json": [stage1[i] for i in rng.permutation(len(stage1))],
        "train_stage2.json": [stage2[i] for i in rng.permutation(len(stage2))],
        "valid.json": [
            *(_asr(item) for item in written["speech_valid"]),
            *(_caption(rng, item, references=True) for item in written["sound_valid"]),
        ],
        "test_asr.json": [_asr(item) for item in written["speech_test"]],
        "test_aac.json": [_caption(rng, item, references=True) for item in written["sound_test"]],
        "test_tasks.json": _instructions(rng, written, "test", max(2, sizes.answers // 6)),
    }
    for name, entries in files.items():
        if not name.startswith("train"):
            for number, entry in enumerate(entries):
                entry["testset_id"] = f"{name.removesuffix('.json')}_{number:04d}"
    return files


def _entry(item: Written, answer: Answer) -> dict[str, Any]:
    entry: dict[str, Any] = {"path": item.path, "text": answer.text, "task": answer.task}
    if answer.question is not None:
        entry["Q"] = answer.question
    entry["duration"] = round(item.duration_s, 3)
    if item.clip.voice is not None:
        entry["speaker"] = item.clip.voice.name
        if item.clip.voice.gender is not None:
            entry["gender"] = item.clip.voice.gender
    return entry


def _asr(item: Written) -> dict[str, Any]:
    return _entry(item, Answer("asr", item.clip.sentence.text))


def _caption(rng: np.random.Generator, item: Written, references: bool = False) -> dict[str, Any]:
    if not references:
        return _entry(item, sound_answers(rng, item.clip)[0])
    kinds = tuple(event.kind for event in item.clip.events)
    texts = draw_references(rng, item.clip.relation, kinds)
    return _entry(item, Answer("audiocaption", texts[0])) | {"texts": texts}


def _instructions(
    rng: np.random.Generator, written: dict[str, list[Written]], split: str, count: int
) -> list[dict[str, Any]]:
    """Up to `count` entries of every instruction task, on the split's existing clips."""
    found: dict[str, list[dict[str, Any]]] = {}
    for item in written[f"speech_{split}"]:
        for answer in speech_answers(rng, item.clip):
            found.setdefault(answer.task, []).append(_entry(item, answer))
        found.setdefault("phone_recognition", []).append(_entry(item, Answer("phone_recognition", item.phonemes)))
    for item in written[f"sound_{split}"]:
        for answer in sound_answers(rng, item.clip)[1:]:
            found.setdefault(answer.task, []).append(_entry(item, answer))
    found["music_description"] = [_entry(item, music_answer(item.clip.events[0])) for item in written[f"music_{split}"]]
    found["audio_speech_description"] = [_entry(item, mixed_answer(item.clip)) for item in written[f"mixed_{split}"]]
    found["speaker_verification"] = _verifications(rng, written[f"speech_{split}"], count)
    chosen = []
    for entries in found.values():
        chosen += [entries[i] for i in rng.permutation(len(entries))[:count]]
    return chosen


def _verifications(rng: np.random.Generator, items: list[Written], count: int) -> list[dict[str, Any]]:
    """Two clips in a row: one speaker or two? Half and half."""
    speakers: dict[str, list[Written]] = {}
    for item in items:
        if item.clip.voice.variant:
            continue  # has one clip only: such a speaker alone would give the answer away
        speakers.setdefault(item.clip.voice.speaker, []).append(item)
    repeated = [name for name in speakers if len(speakers[name]) > 1]
    entries = []
    for number in range(count if repeated and len(speakers) > 1 else 0):
        same = number % 2 == 0
        names = (
            [repeated[int(rng.integers(len(repeated)))]] * 2 if same else rng.choice(sorted(speakers), 2, replace=False)
        )
        if same:
            members = speakers[names[0]]
            first, second = (members[i] for i in rng.permutation(len(members))[:2])
        else:
            first, second = (speakers[name][int(rng.integers(len(speakers[name])))] for name in names)
        entry = _entry(first, Answer("speaker_verification", "yes" if same else "no"))
        entry["expand_wav"] = [second.path]
        entry["duration"] = round(first.duration_s + second.duration_s + 0.1, 3)
        entries.append(entry)
    return entries


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The corpus' options, for this module's command and for `data.prepare`."""
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: 0)")
    parser.add_argument("--small", action="store_true", help="a few clips of every kind")
    parser.add_argument("--processes", type=int, default=None, help="default: one per CPU core")


def run(arguments: argparse.Namespace) -> None:
    """Write the corpus and say what was written."""
    sizes = DemoSizes.small() if arguments.small else DemoSizes()
    report = write_corpus(arguments.out, seed=arguments.seed, sizes=sizes, processes=arguments.processes)
    print(f"{report.clips} clips, {report.hours:.2f} h of audio, in {report.folder} after {report.seconds:.0f} s")
    for name, entries in report.entries.items():
        print(f"  {name:<20} {entries:>5} entries")

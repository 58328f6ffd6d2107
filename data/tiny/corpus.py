"""The corpus of the tiny recipe: annotation files over real, openly licensed recordings.

    python -m data.prepare tiny --from /path/to/recordings --out outputs/tiny/corpus

Writes `align.json` (asr), `stage1.json` (asr, audiocaption), `stage2.json` (these and gender_recognition, QA,
phone_recognition, speaker_verification), a `dev_*.json` and a `test_*.json` for each task, and `SOURCES.md`. Paths are
absolute and no audio is copied. Nothing is written unless no speaker, sentence, recording or file of any test or dev
annotation is trained on (`data.tiny.held_out`). The same seed gives the same files.
"""

from __future__ import annotations

import argparse
import random
import re
from pathlib import Path

from data.tiny.held_out import SAME_VOICE, read_held_out
from data.tiny.pronunciations import phonetic, read_dictionary
from data.tiny.questions import on_both, on_sounds, on_speech
from data.tiny.recordings import LICENCES, Clip, phones, require_open, sounds, speech
from data.tiny.sources import sources_text, table_of_files
from data.tiny.voices import genders, verifications
from support.command_line import UserError
from support.files import write_json, write_whole

SHIPPED = Path(__file__).resolve().parents[2] / "assets" / "clips" / "annotation.json"
"""The clips that the program ships: they were taken from test parts."""
MOST = {"train": 400, "dev": 60, "test": 200}
"""About so many entries of each kind: genders and pairs of a source, questions."""
ASKED_S = 10.0
"""Longest clip of speech that further tasks ask about, in seconds: more of a clip only takes longer."""
Files = dict[str, list[Clip]]


def training_files(root: Path, seed: int) -> Files:
    """The three files to train on, each with the clips of the one before."""
    spoken, heard = speech(root, "train"), sounds(root, "train")
    further = _further(root, "train", spoken, heard, seed)
    stage1 = spoken + heard
    return {
        "align.json": spoken,
        "stage1.json": stage1,
        "stage2.json": [*stage1, *(entry for entries in further.values() for entry in entries)],
    }


def scored_files(root: Path, part: str, seed: int) -> Files:
    """The files of the dev or test part."""
    spoken, heard = speech(root, part), sounds(root, part)
    files = {"asr": spoken, **_by_source("asr", spoken), "aac": heard}
    for name, entries in _further(root, part, spoken, heard, seed).items():
        files |= {name: entries} | (_by_source(name, entries) if name == "phone" else {})
    return {f"{part}_{name}.json": entries for name, entries in files.items()}


def _by_source(name: str, clips: list[Clip]) -> Files:
    """`asr_librispeech`, `asr_speechocean` and so on."""
    names = {source: re.sub("_.*|[0-9]+$", "", source) for source in sorted({clip["source"] for clip in clips})}
    return {f"{name}_{names[source]}": [clip for clip in clips if clip["source"] == source] for source in names}


def _further(root: Path, part: str, spoken: list[Clip], heard: list[Clip], seed: int) -> Files:
    """The further tasks of stage 2; each has a random order of its own."""
    rngs = {name: random.Random(f"{seed} {part} {name}") for name in ("gender", "qa", "speaker", "phone")}
    many = [clip for clip in spoken if clip["source"] in LICENCES and clip["duration"] <= ASKED_S]
    most = MOST[part]
    return {
        "gender": genders(many, most // 2, rngs["gender"]),
        "qa": [
            *on_speech(many, most, rngs["qa"]),
            *on_sounds(heard, rngs["qa"]),
            *on_both(many, heard, rngs["qa"]),
        ],
        "speaker": verifications(many, most // 2, rngs["speaker"]),
        "phone": [
            *phonetic(many, read_dictionary(root), most // 4, rngs["phone"]),
            *(phones(root, part) if part != "dev" else []),
        ],
    }


def write_corpus(root: Path, out: Path, seed: int = 0, shipped: Path | None = SHIPPED) -> str:
    """Write all files, once everything was checked; what there is to say about them.

    Raises:
        UserError: a folder or clip is missing, a licence is not open, or something held out would be trained on.
    """
    trained = training_files(root, seed)
    held_out = read_held_out(root, shipped)
    for name, entries in trained.items():
        require_open(entries)
        held_out.check(entries, name)
    files = trained | scored_files(root, "dev", seed) | scored_files(root, "test", seed)
    empty = sorted(name for name, entries in files.items() if not entries)
    if empty:
        raise UserError(
            f"{root}: no clip fits {', '.join(empty)}; expected speech and sounds of every kind in each part"
        )
    out.mkdir(parents=True, exist_ok=True)
    for name, entries in files.items():
        write_json(out / name, {"annotation": entries})
    sources = sources_text(trained["stage1.json"])  # stage 2 asks about the same clips
    write_whole(out / "SOURCES.md", sources)
    said = [
        f"Checked against {len(held_out.files)} held-out annotation files ({len(held_out.sentences):,} sentences, "
        f"{len(held_out.speakers):,} speakers, {len(held_out.recordings):,} recordings): none is trained on.",
        f"Excepted: the voice of {', '.join(sorted(SAME_VOICE))} is in train and test, with other sentences.",
    ]
    if shipped is not None and not shipped.is_file():
        said.append(f"{shipped} does not exist (yet): no shipped clips were looked at.")
    return "\n\n".join([table_of_files(files), "\n".join(said), sources.split("\n## ", 1)[0].rstrip()])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The corpus' options, for `data.prepare`."""
    parser.add_argument(
        "--from",
        dest="root",
        required=True,
        help="folder of the recordings: asr_en_many, asr_en_kathleen, sound_captions_real, sound_events, and "
        "captions_text for CMUdict; what any test or dev annotation in it names is held out",
    )
    parser.add_argument("--out", required=True, help="folder to write annotation files to; no audio is copied")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files (default: 0)")


def run(arguments: argparse.Namespace) -> None:
    """Write the corpus and say what was written."""
    print(write_corpus(Path(arguments.root), Path(arguments.out), arguments.seed))

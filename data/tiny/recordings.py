"""Folders of recordings -> clips with absolute paths, plain texts and checked licences."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from data.annotation_error import AnnotationError
from support.command_line import UserError

Clip = dict[str, Any]
"""An entry of an annotation file."""

LICENCES = {
    "librispeech_train-clean-5": "CC BY 4.0",
    "librispeech_dev-clean": "CC BY 4.0",
    "librispeech_test-clean": "CC BY 4.0",
    "speechocean762": "CC BY 4.0",
}
"""Licence of the sources whose entries do not state one."""
OTHER_SPEECH = {"train": ("kathleen",), "dev": (), "test": ("kathleen", "ljspeech", "misc")}
"""Folders `asr_en_…` besides asr_en_many that have a part."""
OPEN = {"CC0", "CC0 1.0", "CC-BY", "CC BY", "CC BY 3.0", "CC BY 3.0 (ESC-10)", "CC BY 4.0"}
"""What a model that is passed on may be trained on: no non-commercial and no share-alike terms."""
CMUDICT = " (audio); phones looked up in CMUdict (BSD-2)"
"""Ends the licence of a clip with phones."""
PLAIN = re.compile(r"[a-z']+( [a-z']+)*")
THINGS = {
    "baby cry": ("a baby", "a baby cries"),
    "chainsaw": ("a chainsaw", "a chainsaw runs"),
    "clock tick": ("a clock", "a clock ticks"),
    "dog bark": ("a dog", "a dog barks"),
    "fire crackling": ("a fire", "a fire crackles"),
    "helicopter": ("a helicopter", "a helicopter flies"),
    "person sneeze": ("a sneezing person", "a person sneezes"),
    "rain": ("rain", "rain falls"),
    "rooster": ("a rooster", "a rooster crows"),
    "sea waves": ("the sea", "waves of the sea"),
}
"""Label of a sound -> what makes it, and the caption of its class."""


def read(folder: Path, name: str) -> list[Clip]:
    """The entries of one annotation file, with absolute paths of clips that exist.

    Raises:
        AnnotationError: the file is missing or broken, or a clip is not there.
    """
    file = folder / name
    if not file.is_file():
        raise AnnotationError(f"{file}: no such file; expected the folder {folder.name} of the recordings in --from")
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))["annotation"]
        clips = [{**entry, "path": str((folder / entry["path"]).resolve())} for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise AnnotationError(
            f"{file}: expected {{'annotation': [{{'path', 'text', ...}}]}}; found {error!r}"
        ) from error
    for clip in clips:
        if not Path(clip["path"]).is_file():
            raise AnnotationError(f"{file}: the clip {clip['path']} does not exist")
    return clips


def plain_words(text: str) -> str:
    """Lower-case words with apostrophes and nothing else; hyphens separate words, digits are an error.

    Raises:
        UserError: nothing is left, or a character is neither a letter nor punctuation.
    """
    words = text.lower().replace("\u2019", "'").replace("-", " ").replace("\u2014", " ")
    words = " ".join(re.sub(r"[.,;:!?\"()\[\]\u201c\u201d]", " ", words).split())
    if not PLAIN.fullmatch(words):
        raise UserError(
            f"the text {text!r} is not words alone; expected letters, apostrophes and punctuation, no digits"
        )
    return words


def speech(root: Path, part: str) -> list[Clip]:
    """Speech with its transcript; part is train, dev or test."""
    name = f"annotation_{part}.json"
    clips = [_spoken(clip, clip["source"]) for clip in read(root / "asr_en_many", name)]
    for source in OTHER_SPEECH[part]:
        clips += [_spoken(clip, source) for clip in read(root / f"asr_en_{source}", name)]
    return clips


def phones(root: Path, part: str) -> list[Clip]:
    """Speech of asr_en_kathleen with its phones."""
    clips = read(root / "asr_en_kathleen", f"annotation_phone_{part}.json")
    kept = ("path", "text", "task", "duration", "words", "speaker", "license")
    return [{**{key: clip[key] for key in kept}, "source": "kathleen"} for clip in clips]


def _spoken(clip: Clip, source: str) -> Clip:
    try:
        words = plain_words(clip.get("text_norm") or clip["text"])
    except UserError as error:
        raise AnnotationError(f"{clip['path']}: {error}") from error
    kept = {key: clip[key] for key in ("duration", "speaker", "gender", "age", "accent") if key in clip}
    licence = clip.get("license") or LICENCES.get(source)
    return {"path": clip["path"], "text": words, "task": "asr", **kept, "source": source, "license": licence}


def sounds(root: Path, part: str) -> list[Clip]:
    """Sounds with their captions, of sound_captions_real.

    A training clip has as further references (`texts`) the sentence of its class, and the one of sound_events for the
    same clip.
    """
    clips = [_captioned(clip) for clip in read(root / "sound_captions_real", f"annotation_{part}.json")]
    if part != "train":
        return clips
    further = {_excerpt(clip): clip for clip in read(root / "sound_events", "annotation_train_esc10_ccby.json")}
    names = {_excerpt(clip) for clip in clips}
    for clip in clips:
        other = further.get(_excerpt(clip))
        texts = [clip["text"], THINGS[clip["label"]][1], *([other["text"].lower()] if other else [])]
        clip["texts"] = list(dict.fromkeys(texts))
    alone = [_captioned(clip) for name, clip in further.items() if name not in names]
    return clips + alone


def _excerpt(clip: Clip) -> str:
    """Freesound recording and take: `4-169127-A`; sound_events appends the class."""
    return re.sub(r"-\d+$", "", Path(clip["path"]).stem)


def _captioned(clip: Clip) -> Clip:
    names = ("path", "text", "task", "duration", "label", "src_file", "caption_source", "clip_license", "attribution")
    kept = {name: clip[name] for name in names}
    return {**kept, "text": clip["text"].lower(), "source": "esc-10", "license": clip["clip_license"]}


def require_open(clips: list[Clip]) -> None:
    """Refuse a clip that a model to be passed on may not be trained on.

    Raises:
        UserError: names the first such clip and its licence.
    """
    for clip in clips:
        for name in ("license", "clip_license"):
            licence = clip.get(name, clip["license"])
            if str(licence).removesuffix(CMUDICT) not in OPEN:
                raise UserError(
                    f"{clip['path']}: {name} is {licence!r}; a model that is passed on is trained on CC0 and CC BY "
                    "alone; leave the clip out, or add its licence to data.tiny.recordings.OPEN"
                )

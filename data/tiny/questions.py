"""Questions about a clip, with short answers; of every question with two answers, each is right equally often."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence

from data.tiny.recordings import THINGS, Clip
from data.tiny.voices import ADULT_AGE, about, in_turn

ANIMALS = frozenset({"dog bark", "rooster"})
OTHER_ANIMALS = re.compile(r"\b(dogs?|birds?|hen|chicks?|chickens?|seagulls?|cocks?|roosters?)\b")
PEOPLE = re.compile(r"\b(people|talk\w*|speech|voices?)\b")
COMMON_WORDS = 150
"""So many of the commonest words are not asked about: almost every sentence may have them."""
SHORTEST_WORD = 4

SAYS = (
    "Does the speaker say the word {}?",
    "Is the word {} said?",
    "Can you hear the word {}?",
    "Do you hear {} among the words?",
)
ENDS = {
    "first": ("What is the first word?", "Which word is said first?", "With which word does the speaker begin?"),
    "last": ("What is the last word?", "Which word is said last?", "With which word does the speaker end?"),
}
AGE = ("Is the speaker a child or an adult?", "Is a child or an adult speaking?", "Does an adult or a child speak?")
SPEAKING = (
    "Is anyone speaking?",
    "Does somebody speak?",
    "Is there speech in this clip?",
    "Can you hear a voice talking?",
)
KIND = (
    "Is this speech or another sound?",
    "Do you hear another sound or speech?",
    "What is it, speech or another sound?",
)
MAKES = ("What makes the sound?", "What do you hear?", "Where does this sound come from?", "What is making this noise?")
HEARS = ("Can you hear {}?", "Is this the sound of {}?", "Is {} making the sound?", "Do you hear {}?")
EITHER = ("Is it {} or {}?", "What do you hear, {} or {}?", "Does the sound come from {} or {}?")
ANIMAL = ("Is it an animal?", "Does an animal make this sound?", "Can you hear an animal?")
WHICH_ANIMAL = ("Which animal is it, {} or {}?", "Which animal do you hear: {} or {}?")


def on_speech(clips: list[Clip], most: int, rng: random.Random) -> list[Clip]:
    """Questions about what is said and who says it; at most `most` of a kind."""
    mixed = in_turn(clips, lambda clip: clip["speaker"], rng)
    return [*_said(mixed, most, rng), *_ends(mixed, most // 2, rng), *_ages(mixed, most // 2, rng)]


def _said(clips: list[Clip], most: int, rng: random.Random) -> list[Clip]:
    """Whether a word is said: each word is asked about twice, of a clip that has it and of one that does not."""
    counted = Counter(word for clip in clips for word in set(clip["text"].split()))
    common = {word for word, _ in counted.most_common(COMMON_WORDS)}
    entries: list[Clip] = []
    for clip, other in zip(clips[::2], clips[1::2], strict=False):
        own = [word for word in clip["text"].split() if len(word) >= SHORTEST_WORD and word not in common]
        own = [word for word in own if word not in other["text"]]
        if own and len(entries) < most:
            question = rng.choice(SAYS).format(rng.choice(own))
            entries += [about(clip, "QA", "Yes", question), about(other, "QA", "No", question)]
    return entries


def _ends(clips: list[Clip], most: int, rng: random.Random) -> list[Clip]:
    entries = []
    for number, clip in enumerate(clips[-most:]):
        end, word = ("first", clip["text"].split()[0]) if number % 2 else ("last", clip["text"].split()[-1])
        entries.append(about(clip, "QA", word, rng.choice(ENDS[end])))
    return entries


def _ages(clips: list[Clip], most: int, rng: random.Random) -> list[Clip]:
    """Child or adult, of the one source that states ages: another would be told by its sound."""
    aged = [clip for clip in clips if "age" in clip]
    children = [clip for clip in aged if clip["age"] < ADULT_AGE]
    adults = [clip for clip in aged if clip["age"] > ADULT_AGE]
    count = min(most // 2, len(children), len(adults))
    return [
        about(clip, "QA", answer, rng.choice(AGE))
        for group, answer in ((children, "a child"), (adults, "an adult"))
        for clip in group[:count]
    ]


def on_sounds(clips: list[Clip], rng: random.Random) -> list[Clip]:
    """Questions about what makes a sound: each kind once for every clip it fits."""
    entries = []
    for clip in clips:
        right, wrong = THINGS[clip["label"]][0], THINGS[rng.choice(_absent(clip))][0]
        entries.append(_ask(clip, right, rng.choice(MAKES)))
        entries.append(_ask(clip, right, rng.choice(EITHER).format(*rng.sample([right, wrong], 2))))
    return [*entries, *_hears(clips, rng), *_animals(clips, rng)]


def _hears(clips: list[Clip], rng: random.Random) -> list[Clip]:
    """Whether something is heard: what one clip has is asked, in the same words, about one that lacks it."""
    mixed = rng.sample(clips, len(clips))
    entries = []
    while mixed:
        clip = mixed.pop(0)
        other = next((other for other in mixed if clip["label"] in _absent(other)), None)
        if other is not None:
            mixed.remove(other)
            question = rng.choice(HEARS).format(THINGS[clip["label"]][0])
            entries += [_ask(clip, "Yes", question), _ask(other, "No", question)]
    return entries


def _ask(clip: Clip, answer: str, question: str) -> Clip:
    names = ("path", "duration", "label", "src_file", "source", "license", "clip_license")
    return {**{name: clip[name] for name in names}, "text": answer, "task": "QA", "Q": question}


def _captions(clip: Clip) -> str:
    return " ".join(clip.get("texts", [clip["text"]]))


def _absent(clip: Clip) -> list[str]:
    """Labels of what the clip's captions do not mention."""
    said = _captions(clip)
    nouns = {label: set(label.split()) | set(THINGS[label][0].split()[-1:]) for label in THINGS}
    return [label for label in THINGS if label != clip["label"] and not any(noun in said for noun in nouns[label])]


def _animals(clips: list[Clip], rng: random.Random) -> list[Clip]:
    """Whether it is an animal, and which."""
    animals = [clip for clip in clips if clip["label"] in ANIMALS]
    others = [clip for clip in clips if clip["label"] not in ANIMALS and not OTHER_ANIMALS.search(_captions(clip))]
    others = in_turn(others, lambda clip: clip["label"], rng)
    count = min(len(animals), len(others))
    entries = []
    for animal, other in zip(rng.sample(animals, count), others, strict=False):
        question = rng.choice(ANIMAL)
        entries += [_ask(animal, "Yes", question), _ask(other, "No", question)]
    for clip in animals:
        pair = rng.sample([THINGS[label][0] for label in sorted(ANIMALS)], 2)
        entries.append(_ask(clip, THINGS[clip["label"]][0], rng.choice(WHICH_ANIMAL).format(*pair)))
    return entries


def on_both(spoken: list[Clip], clips: list[Clip], rng: random.Random) -> list[Clip]:
    """Whether anyone speaks, and speech or sound: as many clips of speech as of sounds."""
    sounds = [clip for clip in clips if not PEOPLE.search(_captions(clip))]
    voices = in_turn(spoken, lambda clip: clip["speaker"], rng)[: len(sounds)]
    entries = []
    for number, (voice, sound) in enumerate(zip(voices, rng.sample(sounds, len(sounds)), strict=False)):
        question, yes, no = _speaks(number, rng)
        entries += [about(voice, "QA", yes, question), _ask(sound, no, question)]
    return entries


def _speaks(number: int, rng: random.Random) -> tuple[str, str, str]:
    """A question, its answer for speech, its answer for a sound."""
    choices: Sequence[tuple[Sequence[str], str, str]] = ((SPEAKING, "Yes", "No"), (KIND, "speech", "another sound"))
    questions, yes, no = choices[number % 2]
    return rng.choice(questions), yes, no

"""Questions about a demo clip and their true answers, for instruction tuning."""

from dataclasses import dataclass

import numpy as np

from data.demo.captions import KINDS, captions, draw_caption, noun
from data.demo.clips import Clip, Event


@dataclass(frozen=True)
class Answer:
    """One task on one clip: the question (for prompts with `{}`) and the answer."""

    task: str
    text: str
    question: str | None = None


def speech_answers(rng: np.random.Generator, clip: Clip) -> list[Answer]:
    """Tasks on clean speech, all but the ones that need a second clip or the synthesiser."""
    gender = clip.voice.gender
    asked = ("male", "female")[int(rng.integers(2))]
    answers = []
    if gender is not None:
        answers.append(Answer("gender_recognition", gender))
        answers.append(Answer("gender_QA", "yes" if asked == gender else "no", f"Is the speaker {asked}?"))
    if clip.sentence.keywords:
        answers.append(Answer("keywords", ", ".join(clip.sentence.keywords)))
    if clip.sentence.slots:
        name = list(clip.sentence.slots)[int(rng.integers(len(clip.sentence.slots)))]
        answers.append(Answer("slot_filling", clip.sentence.slots[name], name))
    return answers


def sound_answers(rng: np.random.Generator, clip: Clip) -> list[Answer]:
    """Tasks on sounds and music."""
    kinds = tuple(event.kind for event in clip.events)
    answers = [Answer("audiocaption", draw_caption(rng, clip.relation, kinds))]
    if clip.relation == "then":
        answers.append(Answer("QA", noun(kinds[0]), "Which sound comes first?"))
        answers.append(Answer("QA", noun(kinds[1]), "Which sound comes last?"))
    answers.append(Answer("QA", ("one", "two")[len(kinds) - 1], "How many kinds of sound are there?"))
    present = bool(rng.random() < 0.5)
    others = [kind for kind in KINDS if kind not in kinds]
    asked = kinds[int(rng.integers(len(kinds)))] if present else others[int(rng.integers(len(others)))]
    answers.append(Answer("QA", "yes" if present else "no", f"Can you hear {noun(asked)}?"))
    return answers


def music_answer(event: Event) -> Answer:
    """The melody in words: `a fast rising melody on the piano`."""
    return Answer("music_description", f"a {event.tempo} {event.contour} melody on the {event.kind}")


def mixed_answer(clip: Clip) -> Answer:
    """Who says what over which sound."""
    who = "a woman" if clip.voice.gender == "female" else "a man"
    behind = captions("single", (clip.events[0].kind,))[0]
    return Answer("audio_speech_description", f"{who} says {clip.sentence.text} while {behind}")

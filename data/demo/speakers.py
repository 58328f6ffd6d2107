"""New speakers: espeak-ng voice variants drawn at random.

espeak-ng has some forty voices for training, and a model trained on those alone memorises them. A variant file sets the
formants' frequencies, strengths and widths, and how breathy or rough the voice is: drawn at random, every clip can have
a speaker of its own (espeak-ng's docs/voices.md describes the lines).
"""

import shutil
from pathlib import Path

import numpy as np

FORMANTS = 9
STRESSES = 8


def draw_speaker(rng: np.random.Generator) -> str:
    """The text of a voice variant: a length of vocal tract, formants around it, pitch, roughness, tone."""
    tract = rng.uniform(0.9, 1.18)
    low_hz = rng.uniform(75, 205)
    lines = [
        "language variant",
        "name invented",
        f"pitch {low_hz:.0f} {low_hz * rng.uniform(1.2, 1.7):.0f}",
        f"flutter {rng.integers(0, 13)}",
        f"roughness {rng.integers(0, 4)}",
        f"voicing {np.exp(rng.uniform(np.log(30), np.log(220))):.0f}",
        f"consonants {rng.uniform(50, 125):.0f} {rng.uniform(40, 130):.0f}",
    ]
    if rng.random() < 0.12:
        lines.append(f"klatt {rng.integers(1, 4)}")
    for number in range(FORMANTS):
        # Formants above the third distinguish speakers, not vowels: they may be anywhere.
        place = tract * rng.uniform(0.92, 1.08) if number < 3 else rng.uniform(0.7, 1.25)
        lines.append(f"formant {number} {100 * place:.0f} {rng.uniform(55, 150):.0f} {rng.uniform(60, 170):.0f}")
    tone = rng.random()
    if tone < 0.5:  # strength of each part of the spectrum: random, or falling with frequency
        points, strengths = np.sort(rng.uniform(100, 3500, 4)), rng.uniform(15, 255, 4)
        if tone < 0.2:
            strengths = np.sort(strengths)[::-1]
        lines.append("tone " + " ".join(f"{at:.0f} {by:.0f}" for at, by in zip(points, strengths, strict=True)))
    lines += _rhythm(rng)
    return "\n".join(lines) + "\n"


def _rhythm(rng: np.random.Generator) -> list[str]:
    """Length and loudness of syllables, by stress, and the sentence's intonation."""
    lines = []
    kind = rng.random()
    if kind < 0.35:
        lines.append(f"stressAdd {_by_stress(rng, -25, 70)}")
    elif kind < 0.55:  # some stresses with extreme values
        lines.append("stressAdd " + " ".join(f"{rng.choice([0, rng.uniform(-30, 180)]):.0f}" for _ in range(STRESSES)))
    elif kind < 0.7:  # own lengths instead of the language's, nearly the same for all
        lines.append("stressLength " + " ".join(str(step) for step in range(STRESSES)))
        lines.append(f"stressAdd {_by_stress(rng, 80, 170)}")
    if rng.random() < 0.35:
        lines.append(f"stressAmp {_by_stress(rng, 14, 30)}")
    if rng.random() < 0.35:
        lines.append(f"intonation {rng.integers(1, 5)}")
    return lines


def _by_stress(rng: np.random.Generator, low: float, high: float) -> str:
    return " ".join(f"{rng.uniform(low, high):.0f}" for _ in range(STRESSES))


def _link_or_copy(original: Path, place: Path) -> None:
    try:
        place.symlink_to(original)
    except (OSError, NotImplementedError):  # a file system without links; the folder is of a few MiB
        (shutil.copytree if original.is_dir() else shutil.copyfile)(original, place)


class SpeakerFolder:
    """A copy of espeak-ng's data folder, of links, to which speakers can be added."""

    def __init__(self, original: Path, folder: Path) -> None:
        self.path = folder / "espeak-ng-data"
        variants = self.path / "voices" / "!v"
        variants.mkdir(parents=True)
        for entry in original.iterdir():
            if entry.name != "voices":
                _link_or_copy(entry, self.path / entry.name)
        for entry in (original / "voices" / "!v").iterdir():
            _link_or_copy(entry, variants / entry.name)

    def add(self, name: str, definition: str) -> None:
        (self.path / "voices" / "!v" / name).write_text(definition, encoding="utf-8")

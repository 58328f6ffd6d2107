"""Speakers that nobody has heard: espeak-ng voice variants drawn at random.

espeak-ng has some forty voices to train with, and whoever hears only those knows them by heart. A variant file sets
where the formants lie, how strong and wide they are, how breathy or rough the voice is: drawn at random, every clip can
have a speaker of its own (espeak-ng's docs/voices.md describes the lines).
"""

from pathlib import Path

import numpy as np

FORMANTS = 9


def draw_speaker(rng: np.random.Generator) -> str:
    """The text of a voice variant: a length of vocal tract, formants around it, pitch, roughness, tone."""
    tract = rng.uniform(0.9, 1.18)
    low_hz = rng.uniform(75, 205)
    lines = [
        "language variant",
        "name invented",
        f"pitch {low_hz:.0f} {low_hz * rng.uniform(1.2, 1.7):.0f}",
        f"flutter {rng.integers(0, 9)}",
        f"roughness {rng.integers(0, 4)}",
        f"voicing {rng.uniform(30, 150):.0f}",
        f"consonants {rng.uniform(50, 125):.0f} {rng.uniform(40, 130):.0f}",
    ]
    if rng.random() < 0.12:
        lines.append(f"klatt {rng.integers(1, 4)}")
    for number in range(FORMANTS):
        # Above the third, formants tell speakers apart and carry no vowel: they may be anywhere.
        place = tract * rng.uniform(0.92, 1.08) if number < 3 else rng.uniform(0.7, 1.25)
        lines.append(f"formant {number} {100 * place:.0f} {rng.uniform(55, 150):.0f} {rng.uniform(60, 170):.0f}")
    if rng.random() < 0.4:
        points = sorted(rng.uniform(150, 3500, 4))
        tone = " ".join(f"{at:.0f} {rng.uniform(15, 255):.0f}" for at in points)
        lines.append(f"tone {tone}")
    if rng.random() < 0.5:  # how long stressed and unstressed syllables are
        lines.append("stressAdd " + " ".join(f"{rng.uniform(-25, 70):.0f}" for _ in range(8)))
    return "\n".join(lines) + "\n"


class SpeakerFolder:
    """A copy of espeak-ng's data folder, of links, to which speakers can be added."""

    def __init__(self, original: Path, folder: Path) -> None:
        self.path = folder / "espeak-ng-data"
        variants = self.path / "voices" / "!v"
        variants.mkdir(parents=True)
        for entry in original.iterdir():
            if entry.name != "voices":
                (self.path / entry.name).symlink_to(entry)
        for entry in (original / "voices" / "!v").iterdir():
            (variants / entry.name).symlink_to(entry)

    def add(self, name: str, definition: str) -> None:
        (self.path / "voices" / "!v" / name).write_text(definition, encoding="utf-8")

"""Clips on disk with their annotations, for tests of data; two of them cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from data.annotations import Annotation


def write_clips(folder: Path) -> list[Annotation]:
    """23 clips of 0.1 to 0.54 s; two of them cannot be read (7: absent, 12: not audio)."""
    rng = np.random.default_rng(0)
    found = []
    for index in range(23):
        path = folder / f"{index}.wav"
        samples = rng.uniform(-0.3, 0.3, 1600 + 320 * ((index * 7) % 23)).astype(np.float32)
        if index == 12:
            path.write_text("not a sound" * 10)
        elif index != 7:
            soundfile.write(path, samples, 16_000)
        task = ("asr", "audiocaption", "QA")[index % 3]
        found.append(
            Annotation(
                path=str(path), text=f"text {index}", task=task, Q=f"why {index}?" if task == "QA" else None,
                testset_id=None, expand_wav=(), extra={}, source=f"train.json#{index}", index=index,
                texts=(f"text {index}",),
            )
        )  # fmt: skip
    return found

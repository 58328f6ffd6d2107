"""A set of clips through a system that takes waveforms and gives texts: every row but ours with a language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor
from tqdm import tqdm

from benchmarks.clip_sets import ClipSet
from benchmarks.rows import Answers
from data.annotations import Annotation
from data.audio import AudioError, load_clip
from data.sampling import clip_durations
from support.units import SAMPLE_RATE


class ClipByClip(ABC):
    """Loads clips, longest first as evaluation does, and asks for the texts of `at_once` of them together."""

    def __init__(self, name: str, at_once: int) -> None:
        self.name, self.at_once = name, at_once
        self.about: dict[str, Any] = {"clips_at_once": at_once}

    @abstractmethod
    def texts(self, waveforms: list[Tensor]) -> list[str]:
        """The text of each waveform `[T]`."""

    def answer(self, clips: ClipSet) -> Answers:
        seconds = clip_durations(list(clips.clips))
        order = sorted(range(len(seconds)), key=lambda index: (-seconds[index], index))
        texts: dict[str, str] = {}
        problems: dict[str, str] = {}
        samples = 0
        with tqdm(total=len(order), desc=f"{self.name}: {clips.name}", unit="clip", dynamic_ncols=True) as bar:
            for start in range(0, len(order), self.at_once):
                batch = [clips.clips[index] for index in order[start : start + self.at_once]]
                readable: dict[str, Tensor] = {}
                for clip in batch:
                    try:
                        readable[clip.source] = waveform_of(clip)
                    except AudioError as error:
                        texts[clip.source], problems[clip.source] = "", str(error)
                samples += sum(map(len, readable.values()))
                if readable:
                    texts |= zip(readable, self.texts(list(readable.values())), strict=True)
                bar.update(len(batch))
        return Answers(texts=texts, problems=problems, audio_s=samples / SAMPLE_RATE)


def waveform_of(clip: Annotation) -> Tensor:
    return load_clip(clip.path, expand=clip.expand_wav, part=clip.part)[0]

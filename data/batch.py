"""One clip with its prompt and text (`Sample`), several of them padded (`Batch`), and one that cannot be used."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.annotations import Annotation
from data.remarks import Remark


@dataclass(frozen=True)
class BadClip:
    """A clip that could not be loaded."""

    index: int
    """The annotation's index."""
    path: str
    reason: str
    """What was found and how to fix it; names the file where that is another one (`expand_wav`)."""


@dataclass(frozen=True)
class Sample:
    """One clip, ready to be batched."""

    index: int
    """The annotation's index."""
    annotation: Annotation
    waveform: Tensor  # [T]
    prompt: str
    """`Q` filled in; without the chat template."""
    text: str
    capped: bool = False
    """Whether `max_audio_s` cut it."""
    remarks: tuple[Remark, ...] = ()
    """What was not as it should be about its files."""


@dataclass(frozen=True)
class Batch:
    """Clips that go through the model together. It may be empty (B = 0) if every clip was bad."""

    waveforms: Tensor  # [B, T], zeros after a clip's end
    lengths: Tensor  # [B], samples
    prompts: list[str]
    references: list[str]
    ids: list[int]
    """The annotations' indices."""
    tasks: list[str]
    text_batch: Any = None
    """Prompts and references as token ids, a `models.language.text.TextBatch`; None without a text processor, and for
    an empty batch."""
    bad: tuple[BadClip, ...] = ()
    """Clips of this batch that could not be loaded."""
    cut: tuple[bool, ...] = ()
    """Which of them `max_audio_s` cut."""
    remarks: tuple[Remark, ...] = ()
    """What was not as it should be about their files."""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        return dataclasses.replace(
            self,
            waveforms=self.waveforms.to(device, non_blocking=True),
            lengths=self.lengths.to(device, non_blocking=True),
            text_batch=None if self.text_batch is None else self.text_batch.to(device),
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which copies to a GPU overlap with its work."""
        return dataclasses.replace(
            self,
            waveforms=self.waveforms.pin_memory(),
            lengths=self.lengths.pin_memory(),
            text_batch=None if self.text_batch is None else self.text_batch.pin_memory(),
        )

    # A tensor from a worker costs a file descriptor: small ones are sent as arrays, the waveforms in shared memory.

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "lengths": self.lengths.numpy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, lengths=torch.from_numpy(state["lengths"]))

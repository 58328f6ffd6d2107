"""One clip with its prompt and text (`Sample`), several of them padded (`Batch`), and one that cannot be used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from data.annotations import Annotation

if TYPE_CHECKING:
    from models.language.text import TextBatch


@dataclass(frozen=True)
class BadClip:
    """A clip that could not be loaded."""

    index: int
    """The annotation's index."""
    path: str
    reason: str
    """What was found and how to fix it; names the file if it is another one (`expand_wav`)."""


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
    text_batch: TextBatch | None = None
    """Prompts and references as token ids; None without a text processor, and for an empty batch."""
    bad: tuple[BadClip, ...] = ()
    """Clips of this batch that could not be loaded."""
    cut: tuple[bool, ...] = ()
    """Which of them `max_audio_s` cut."""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True), lambda text: text.to(device))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which copies to a GPU overlap with its work."""
        return self._map(Tensor.pin_memory, lambda text: text.pin_memory())

    def _map(self, tensor: Callable[[Tensor], Tensor], text: Callable[[TextBatch], TextBatch]) -> Batch:
        return dataclasses.replace(
            self,
            waveforms=tensor(self.waveforms),
            lengths=tensor(self.lengths),
            text_batch=None if self.text_batch is None else text(self.text_batch),
        )

    # From a worker, a tensor travels as an open file. A batch's few dozen small ones would soon use up the process's
    # limit of them, so they travel as arrays; the waveforms stay in shared memory.

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__, lengths=self.lengths.numpy())
        if self.text_batch is not None:
            state["text_batch"] = _convert_text(self.text_batch, Tensor.numpy)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state["lengths"] = torch.from_numpy(state["lengths"])
        if state["text_batch"] is not None:
            state["text_batch"] = _convert_text(state["text_batch"], torch.from_numpy)
        self.__dict__.update(state)


def _convert_text(text_batch: TextBatch, convert: Callable[[Any], Any]) -> TextBatch:
    lists = {item.name: getattr(text_batch, item.name) for item in dataclasses.fields(text_batch)}
    return dataclasses.replace(
        text_batch, **{name: None if rows is None else [convert(row) for row in rows] for name, rows in lists.items()}
    )

"""Encoder outputs kept on disk, one file a clip."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import LongTensor, Tensor
from torch.nn.utils.rnn import pad_sequence

from models.encoders.stack import EncoderStack
from models.encoders.table import EncoderRules
from models.frames import Frames
from support.command_line import UserError
from support.files import write_whole

logger = logging.getLogger(__name__)


class FrameCache:
    """Frozen encoders' frames on disk, under a hash of the clip's samples.

    A hash of the content cannot be stale: another augmentation, cut or edit of a clip is another clip. Missing clips
    are encoded one at a time, so that a value never depends on which clips were missing together. Frames are stored
    unchanged, so values are the same with and without the cache. When the disk is full, a warning says so once, and
    further clips are encoded each time.

    Each `EncoderStack.fingerprint` has its own folder in `folder`.

    Raises:
        UserError: the stack's outputs cannot be kept (`why_not_cached`).
    """

    def __init__(self, folder: str | Path, stack: EncoderStack) -> None:
        reason = why_not_cached(stack.frozen, stack.rules)
        if reason is not None:
            raise UserError(f"datasets.cache_encoder_outputs is {folder}, but {reason}.")
        self.stack = stack
        self.folder = Path(folder) / stack.fingerprint
        self.folder.mkdir(parents=True, exist_ok=True)
        self._writes = True

    @classmethod
    def where_possible(cls, folder: str | Path | None, stack: EncoderStack) -> FrameCache | None:
        """A cache in `folder`; None without a folder, or where the stack's outputs cannot be kept."""
        return None if not folder or why_not_cached(stack.frozen, stack.rules) else cls(folder, stack)

    def encode(self, waveforms: Tensor, lengths: LongTensor) -> list[Frames]:
        """The stack's outputs for `waveforms, lengths`, from the cache where they are in it."""
        rows = []
        for waveform, samples in zip(waveforms, lengths.tolist(), strict=True):
            path = self._path(waveform[:samples])
            frames = self._read(path, len(self.stack.encoders))
            if frames is None:
                outputs = self.stack(waveform[None, :samples], torch.tensor([samples], device=lengths.device))
                frames = [output.frames[0, : output.lengths[0]].cpu() for output in outputs]
                self._write(path, frames)
            rows.append(frames)
        return [_batch([row[index] for row in rows], waveforms.device) for index in range(len(self.stack.encoders))]

    def _path(self, waveform: Tensor) -> Path:
        name = hashlib.blake2b(waveform.detach().cpu().float().contiguous().numpy(), digest_size=20).hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.safetensors"

    @staticmethod
    def _read(path: Path, count: int) -> list[Tensor] | None:
        try:
            stored = load_file(path)
        except (FileNotFoundError, SafetensorError):  # never written, or damaged: encode again
            return None
        return [stored[str(index)] for index in range(count)]

    def _write(self, path: Path, frames: list[Tensor]) -> None:
        if not self._writes:
            return
        tensors = {str(index): values.contiguous() for index, values in enumerate(frames)}
        try:
            path.parent.mkdir(exist_ok=True)
            write_whole(path, lambda draft: save_file(tensors, draft), in_cache=True)
        except (OSError, SafetensorError) as error:  # the latter is how the library reports a full disk
            self._writes = False
            logger.warning(
                "%s: no more encoder outputs can be written there (%s); other clips are encoded each time. "
                "Make room, or set datasets.cache_encoder_outputs to another folder.",
                self.folder,
                error,
            )


def why_not_cached(frozen: Mapping[str, bool], rules: EncoderRules) -> str | None:
    """Why the frames of these encoders, `frozen` or not, cannot be kept, and what to change; None where they can."""
    if rules.depends_on_batch:
        return (
            "under model.legacy: exact a clip's encoder outputs depend on its batch: set the cache to null, or "
            "model.legacy to weights"
        )
    trained = [name for name, is_frozen in frozen.items() if not is_frozen]
    if trained:
        return (
            f"the encoder {' and '.join(trained)} is trained, so its outputs change: freeze it, or set the cache to "
            "null"
        )
    return None


def _batch(frames: list[Tensor], device: torch.device) -> Frames:
    lengths = torch.tensor([len(row) for row in frames])
    return Frames(pad_sequence(frames, batch_first=True).to(device), lengths.to(device))

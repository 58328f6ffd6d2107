"""The model of the alignment stage: encoders, connector and the CTC head; of the language model the embeddings alone.

It has SALMONN's interface, so the training loop, validation and evaluation take it as they take any model. Its answer
to every prompt is the CTC head's best path: a transcript.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.alignment.ctc import Alignment
from models.alignment.pieces import Pieces
from models.decoding.hypothesis import Generation
from models.decoding.scores import GenerateOptions
from models.frames import Frames
from models.language.text import TextBatch, TextProcessor
from models.salmonn import SALMONN, Clips, LossOutput, check_prompts, halving_on_oom
from support.command_line import UserError
from support.texts import require_texts
from support.waveforms import as_clips


class PieceText(TextProcessor):
    """A text processor whose targets are spellings: positions of alignment pieces, without an end symbol."""

    pieces: Pieces | None = None

    def _target_ids(self, text: str) -> Tensor:
        if self.pieces is None:
            raise UserError("the alignment has no pieces yet: load an aligned adapter, or train run.stage: align first")
        return torch.tensor(self.pieces.spell(text), dtype=torch.long)

    def cut_tokens(self, text: str) -> int:
        """Spellings are never cut."""
        return 0


@dataclass(frozen=True)
class AudioTokens:
    """The connector's output for a batch: `[B, A, H]` and its mask `[B, A]`."""

    tokens: Tensor
    mask: Tensor


class AlignmentModel(SALMONN):
    """Encoders and connector under the CTC loss; `generate` gives the best paths' texts."""

    merges_lora = False
    loss_terms = ("ctc", "distance")

    def forward(
        self,
        waveforms: Tensor | None,
        lengths: Tensor | None,
        prompts: list[str] | None = None,
        texts: list[str] | None = None,
        *,
        text_batch: TextBatch | None = None,
        frames: list[Frames] | None = None,
        transcripts: list[str | None] | None = None,
    ) -> LossOutput:
        """The CTC loss of the texts, summed; `target_tokens` counts their pieces. Prompts have no effect.

        `logits` are `[B, A, 1 + P]` and `hidden` are the audio tokens `[B, A, H]`, padding included.

        Raises:
            ValueError: there are no texts.
        """
        if text_batch is None:
            if texts is None:
                raise ValueError("the loss needs texts, or a text_batch; got neither.")
            require_texts("texts", texts)
            if frames is None:
                waveforms, lengths = as_clips(waveforms, lengths)
            targets = self.text.batch(prompts or ["<SpeechHere>"] * len(texts), texts).targets
        else:
            targets = text_batch.targets
        tokens, mask = self._connected(waveforms, lengths, frames)
        loss_sum, parts, logits = self._alignment_loss(tokens, mask, targets)
        pieces = sum(map(len, targets))
        return LossOutput(loss_sum, pieces, loss_sum / max(1, pieces), logits, tokens, parts)

    def align_to(self, ids: Tensor) -> Alignment:
        """As `SALMONN.align_to`; the head always trains here."""
        return super().align_to(ids).requires_grad_(True)

    def take_alignment(self, alignment: Alignment | None) -> None:
        """As `SALMONN.take_alignment`; targets are spelled in its pieces."""
        super().take_alignment(alignment)
        if self.text is not None:
            self.text.pieces = alignment and alignment.pieces

    def stream(self, waveform: Tensor, prompt: str, **options: object) -> Iterator[str]:
        """The text of one clip `[T]`, in one piece."""
        yield from self.generate(waveform[None], torch.tensor([waveform.shape[-1]]), [prompt], **options)

    def merge_for_serving(self) -> str:
        return "none"

    def _prompted(
        self,
        waveforms: Tensor | None,
        lengths: Tensor | None,
        prompts: list[str],
        frames: list[Frames] | None,
        new_tokens: int,
    ) -> AudioTokens:
        if frames is None:
            waveforms, lengths = as_clips(waveforms, lengths)
        check_prompts(waveforms, prompts, frames)
        return AudioTokens(*self._connected(waveforms, lengths, frames))

    def _decoded(self, assembled: AudioTokens, settings: GenerateOptions) -> list[Generation]:
        alignment = self.require_alignment()
        paths = alignment.best_path(assembled.tokens, assembled.mask)
        return [
            Generation(
                text=alignment.pieces.text(path),
                tokens=[alignment.pieces.ids[position] for position in path],
                logprobs=[],
                stop_reason="end",
            )
            for path in paths
        ]

    def _decoded_each(
        self, prompted: Callable[..., AudioTokens], batches: Iterable[Clips], settings: GenerateOptions, at_once: int
    ) -> Iterator[tuple[int, Generation]]:
        return enumerate(
            result
            for clips in batches
            for result in halving_on_oom(lambda *part: self._decoded(prompted(*part), settings), *clips)
        )

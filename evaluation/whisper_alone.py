"""Whisper with its own decoder: what the weights of `model.whisper_path` write without this program's model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.hub import load_weights, located
from support.command_line import UserError
from support.units import SAMPLE_RATE

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

WINDOW_S = 30
"""Longer clips are decoded window by window, which needs time stamps."""


class WhisperAlone:
    """transformers' Whisper in float32, encoder and decoder, with its own tokenizer and settings of generation."""

    def __init__(self, model: WhisperForConditionalGeneration, processor: WhisperProcessor) -> None:
        self.model = model.eval()
        self.processor = processor

    @classmethod
    def load(cls, path: str, *, device: torch.device | str = "cpu", token: str | None = None) -> WhisperAlone:
        """The model of a folder or hub name.

        Raises:
            UserError: there is none, it lacks weights (those of an encoder alone, say), or it has no tokenizer.
        """
        from transformers import WhisperForConditionalGeneration, WhisperProcessor  # after models.runtime.quiet

        load = WhisperForConditionalGeneration.from_pretrained
        model = load_weights(load, path, token, part="Whisper", dtype=torch.float32)
        name, revision = located(path)
        try:
            processor = WhisperProcessor.from_pretrained(name, revision=revision, token=token)
        except (OSError, ValueError, TypeError):
            processor = None
        # Where a folder has no tokenizer, the library makes an empty one.
        if processor is None or processor.tokenizer.eos_token_id != model.config.eos_token_id:
            raise UserError(
                f"{path!r} has no tokenizer that belongs to this Whisper, so its decoder's text is unreadable"
            )
        return cls(model.to(device), processor)

    def text(self, waveform: Tensor, *, beams: int = 1) -> str:
        """What it writes for one clip `[T]` at 16 kHz: greedy, or with beams."""
        return self.texts([waveform], beams=beams)[0]

    def texts(self, waveforms: Sequence[Tensor], *, beams: int = 1, **options: Any) -> list[str]:
        """The same for several clips: those of one window together, longer ones alone. `options` go to `generate`."""
        long = [index for index, waveform in enumerate(waveforms) if len(waveform) > WINDOW_S * SAMPLE_RATE]
        short = [index for index in range(len(waveforms)) if index not in long]
        texts: dict[int, str] = {}
        for together in [short] * bool(short) + [[index] for index in long]:
            written = self._written([waveforms[index] for index in together], beams, long=together != short, **options)
            texts |= zip(together, written, strict=True)
        return [texts[index] for index in range(len(waveforms))]

    @torch.no_grad()
    def _written(self, waveforms: Sequence[Tensor], beams: int, *, long: bool, **options: Any) -> list[str]:
        samples = [waveform.cpu().numpy() for waveform in waveforms]
        given = {"truncation": False, "padding": "longest"} if long else {}
        inputs = self.processor(
            samples, sampling_rate=SAMPLE_RATE, return_tensors="pt", return_attention_mask=True, **given
        )
        options |= {"return_timestamps": True} if long else {}
        tokens = self.model.generate(
            **inputs.to(self.model.device), num_beams=beams, do_sample=False, temperature=0.0, **options
        )
        return [text.strip() for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]

"""Several audio encoders over the same clips, short ones and long ones."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn

from models.connector.fusion import resampled_length
from models.device import named_dtype
from models.encoders.base import AudioEncoder, FeatureSource
from models.encoders.long_clips import encode_any_length, joined_frame_count
from models.encoders.table import ENCODERS, OWN_RULES, EncoderRules, build_encoder, frozen_encoders
from models.frames import Frames, length_mask
from models.quantization import int8
from models.runtime.cuda_graphs import Replays
from models.runtime.cuda_streams import run_concurrently
from support.command_line import UserError
from support.units import SAMPLE_RATE

if TYPE_CHECKING:
    from configs.sections import ModelConfig

logger = logging.getLogger(__name__)

CONCURRENT_S = 30  # of all clips: more of them fill the device, and running encoders together only takes memory


class EncoderStack(nn.Module):
    """Several encoders over the same clips, each at its own frame rate, for clips of any length.

    A clip that is too short for the encoders is extended with silence that counts as audio. One that is too long for an
    encoder is cut for it in equal parts, which are encoded and joined in time. Frozen encoders stay in eval and run
    without gradients, and in the type of their weights: with autocast, training, its cache and evaluation would have
    different frames for the same clip.
    """

    def __init__(
        self,
        encoders: dict[str, AudioEncoder],
        frozen: dict[str, bool] | None = None,
        rules: EncoderRules = OWN_RULES,
    ) -> None:
        """`frozen` says which encoders are; None: all."""
        super().__init__()
        if not encoders:
            keys = ", ".join(f"model.{entry.path_key}" for entry in ENCODERS.values())
            raise UserError(f"no audio encoder; set at least one of {keys}")
        self.encoders = nn.ModuleDict(encoders)
        self.frozen = {name: True if frozen is None else frozen[name] for name in encoders}
        self.rules = rules
        self.captures = True
        """Whether the encoders' networks are captured in CUDA graphs, in evaluation on such a device."""
        for name, encoder in self.encoders.items():
            encoder.name = name
            if self.frozen[name]:
                encoder.requires_grad_(False)
        self.train(self.training)

    @classmethod
    def from_config(
        cls,
        config: ModelConfig,
        device: torch.device | str = "cpu",
        *,
        rules: EncoderRules = OWN_RULES,
        weights: bool = True,
        dtype: torch.dtype | None = None,
    ) -> EncoderStack:
        """Every encoder that `config` names weights for, in the table's order, on the CPU.

        `device` is where the stack will run. Frozen encoders have `dtype`, None for what `model.dtype` means there;
        encoders that train keep float32 weights. Without `weights` all are on the meta device, made from architecture
        facts, and the device need not exist.
        """
        device = torch.device(device)
        frozen = frozen_encoders(config)
        dtype = dtype or named_dtype(config.dtype, device)
        if weights and config.encoder_quantization == "int8":
            int8.check_device(device, allow_slow=config.allow_slow_kernels)
        encoders = {
            name: build_encoder(name, config, rules, dtype if frozen[name] else torch.float32, weights=weights)
            for name in frozen
        }
        stack = cls(encoders, frozen, rules)
        if not weights:
            for layer in stack.modules():
                if isinstance(layer, int8.Int8Linear):
                    layer.kernel = int8.fastest(device)  # fixed now: a plan's tensors all claim to be on the CPU
            return stack
        for line in stack.kernels(device):
            logger.info("encoder %s", line)
        return stack

    def kernels(self, device: torch.device) -> list[str]:
        """The kernel of each encoder's linear layers on `device`, one line each."""
        return [f"{name}, weights: {int8.kernel_report(encoder, device)}" for name, encoder in self.encoders.items()]

    @property
    def dims(self) -> list[int]:
        return [encoder.dim for encoder in self.encoders.values()]

    @property
    def frame_rates_hz(self) -> list[float]:
        return [encoder.frame_rate_hz for encoder in self.encoders.values()]

    @property
    def frame_rate_hz(self) -> float:
        """Of the joined outputs: the fastest encoder's."""
        return max(self.frame_rates_hz)

    @property
    def min_samples(self) -> int:
        """Shorter clips are extended to this for all encoders alike, so that their outputs end together."""
        return max(self.rules.min_samples, *(encoder.min_samples for encoder in self.encoders.values()))

    @property
    def fingerprint(self) -> str:
        """Hex digest of all that frames depend on; reads every weight, so keep the result."""
        parts = [f"{name}:{encoder.fingerprint}" for name, encoder in self.encoders.items()]
        parts.append(f"min_samples:{self.min_samples}")
        return hashlib.blake2b(" ".join(parts).encode(), digest_size=16).hexdigest()

    def train(self, mode: bool = True) -> EncoderStack:
        super().train(mode)
        for name, encoder in self.encoders.items():
            if self.frozen[name]:
                encoder.eval()
            if mode or not self.captures:
                encoder.replays = None
            elif encoder.replays is None and next(encoder.parameters()).device.type == "cuda":
                encoder.replays = Replays()  # each its own: encoders may run at the same time
        return self

    def frame_count(self, samples: int) -> int:
        """Frames of a clip of `samples` samples at the fastest encoder's rate."""
        samples = max(samples, self.min_samples)
        return max(
            resampled_length(joined_frame_count(encoder, samples), encoder.frame_rate_hz, self.frame_rate_hz)
            for encoder in self.encoders.values()
        )

    def forward(
        self, waveforms: Tensor, lengths: LongTensor, feature_source: FeatureSource | None = None
    ) -> list[Frames]:
        """[B, T], [B] samples -> one Frames an encoder, at its own rate."""
        short = self.min_samples - waveforms.shape[1]
        if short > 0:
            waveforms = F.pad(waveforms, (0, short))
        # After a clip's end there may be anything; what short clips are extended with must be silence.
        waveforms = waveforms.masked_fill(~length_mask(lengths, waveforms.shape[1]), 0)
        lengths = lengths.clamp(min=self.min_samples)

        def encode(name: str) -> tuple[Tensor, Tensor]:
            with _as_stored(waveforms.device.type) if self.frozen[name] else nullcontext():
                output = encode_any_length(self.encoders[name], waveforms, lengths, feature_source)
            return output.frames, output.lengths

        works = [partial(encode, name) for name in self.encoders]
        results = (
            run_concurrently(works, waveforms.device)
            if self.runs_concurrently(waveforms)
            else [work() for work in works]
        )
        return [Frames(*result) for result in results]

    def runs_concurrently(self, waveforms: Tensor) -> bool:
        """Whether the encoders run at the same time: on CUDA, for clips that do not fill the device."""
        return (
            waveforms.device.type == "cuda"
            and len(self.encoders) > 1
            and not torch.is_grad_enabled()
            and waveforms.numel() <= CONCURRENT_S * SAMPLE_RATE
        )


@contextmanager
def _as_stored(device_type: str) -> Iterator[None]:
    with torch.no_grad(), torch.autocast(device_type, enabled=False):
        yield

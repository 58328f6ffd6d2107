"""The interface of every audio encoder: waveforms in, frames in time order out."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn

from models.runtime.cuda_graphs import Replays, round_up
from models.runtime.spans import span
from support.command_line import UserError

REPLAYED_STEP = 96  # spectrum frames; inputs of captured networks are padded to multiples of this, about a second
REPLAYED_FRAMES = 3000  # of all clips, 30 s: larger inputs keep the device busy without graphs

FRAMES_VERSION = 2
"""Increase it with every change of code that changes frames: in features, in an encoder, or in how clips are cut and
joined. Cached frames are then not used any more."""

Features = tuple[Tensor, LongTensor]
"""What a network reads: a spectrum (or the waveforms), and each clip's size in it, `[B]`."""
FeatureSource = Callable[["AudioEncoder", Tensor, LongTensor], Features | None]
"""Features of an encoder for waveforms and lengths, computed before; None to have them computed."""


class AudioEncoder(nn.Module):
    """An audio network whose frames for a clip depend on that clip's samples alone.

    `forward` takes waveforms [B, T] (16 kHz, mono, float32 in [-1, 1]) and lengths [B] in samples, and returns
    frames [B, N, D], zero after each clip's end, with frame_lengths [B]. Where the network's input is a spectrum,
    `forward` also takes the result of `features`, and then does not compute it.
    """

    name: str = ""
    """Of the encoder in its `EncoderStack`."""
    dim: int
    """Width D of a frame."""
    frame_rate_hz: float
    """Frames per second, in time order."""
    min_samples: int
    """The shortest clip that gives a frame; `EncoderStack` extends shorter ones with silence."""
    max_samples: int | None
    """The longest clip that the network takes, None for no limit; `EncoderStack` cuts longer ones."""
    cut_grain: int = 320
    """Cuts are at multiples of so many samples, so that joined parts stay in time: 20 ms, or a step of the network
    where its steps are longer."""
    replays: Replays | None = None
    """The network's CUDA graphs, in evaluation on a CUDA device; `EncoderStack` sets and clears them."""

    @abstractmethod
    def frame_count(self, samples: int) -> int:
        """Frames that a clip of `samples` samples gives, known before encoding it."""

    def content_frames(self, samples: int) -> int:
        """The frames of `frame_count` that are within the clip, where an encoder pads its input itself."""
        return self.frame_count(samples)

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything besides the weights that the frames depend on, as plain values."""

    def features(self, waveforms: Tensor, lengths: LongTensor) -> Features:
        """What the network reads of clips [B, T], [B] samples: the waveforms, or, where an encoder overrides this, a
        spectrum, computed in the span `features.<name>`."""
        return waveforms, lengths

    def run(
        self, waveforms: Tensor, lengths: LongTensor, feature_source: FeatureSource | None = None
    ) -> tuple[Tensor, LongTensor]:
        """`forward` as a part of a model: in the span `encoder.<name>`, with features from `feature_source`."""
        with span("encoder", self.name):
            features = None if feature_source is None else feature_source(self, waveforms, lengths)
            return self(waveforms, lengths) if features is None else self(waveforms, lengths, features)

    @property
    def spans(self) -> list[str]:
        """The spans that `run` opens."""
        reads_waveforms = type(self).features is AudioEncoder.features
        return [f"encoder.{self.name}"] if reads_waveforms else [f"features.{self.name}", f"encoder.{self.name}"]

    @property
    def fingerprint(self) -> str:
        """Hex digest of weights, settings and `FRAMES_VERSION`; reads every weight, so keep the result."""
        digest = hashlib.blake2b(f"{FRAMES_VERSION} ".encode(), digest_size=16)
        digest.update(json.dumps(self.settings(), sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def through_network(
        self,
        network: Callable[..., Tensor],
        spectrum: Tensor,
        lengths: LongTensor,
        *,
        axis: int,
        longest: int | None = None,
    ) -> Tensor:
        """`network(spectrum, lengths)`, frames [B, N, D], from a CUDA graph of this shape where there is one.

        For a graph the spectrum is padded along `axis`, to no more than `longest`, so there may be more frames than the
        spectrum has. `padded=True` tells the network to mask what is after each clip's end without checking whether
        there is any padding.
        """
        width = spectrum.shape[axis]
        if self.replays is not None and len(spectrum) * width <= REPLAYED_FRAMES:
            whole = round_up(width, REPLAYED_STEP)
            missing = (whole if longest is None else max(width, min(whole, longest))) - width
            wider = F.pad(spectrum, [0, 0] * (spectrum.ndim - 1 - axis) + [0, missing])
            frames = self.replays.run(self, partial(network, padded=True), wider, lengths)
            if frames is not None:
                return frames
        return network(spectrum, lengths)

    def check_lengths(self, lengths: list[int]) -> None:
        """Raise ValueError for a clip that this encoder cannot take whole."""
        for row, samples in enumerate(lengths):
            if samples < self.min_samples or (self.max_samples is not None and samples > self.max_samples):
                raise ValueError(
                    f"{type(self).__name__}: clip {row} of the batch has {samples} samples; expected "
                    f"{self.min_samples} to {self.max_samples or 'any number'}. EncoderStack extends short clips and "
                    "cuts long ones."
                )


def kept_layers(encoder: str, wanted: int | None, there: int) -> int:
    """How many of an encoder's layers to keep; UserError where it has fewer than `wanted`."""
    if wanted is not None and wanted > there:
        raise UserError(f"{encoder}: {wanted} layers are to be kept, but there are {there}")
    return wanted or there


def load_strictly(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Load weights into a model on the meta device; UserError, naming `source` and the keys, if any does not fit."""
    expected = model.state_dict()
    problems = [f"missing {name}" for name in expected if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in expected]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UserError(f"{source} does not fit the model it describes: {'; '.join(problems[:8])}{more}")
    model.to_empty(device="cpu")
    model.load_state_dict(weights)

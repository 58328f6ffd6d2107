"""transformers' audio encoders as `AudioEncoder`s: WavLM, HuBERT, Wav2Vec2, Wav2Vec2-BERT, AST, Parakeet.

`HFEncoder.from_pretrained(folder)` reads the folder's `config.json` and chooses the class for that kind of network.
"""

from __future__ import annotations

import logging
import math
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import BoolTensor, LongTensor, Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, FeatureExtractionMixin, PretrainedConfig, PreTrainedModel
from transformers.models.wavlm.modeling_wavlm import WavLMAttention
from transformers.utils import logging as library_logging

from configs.architectures import find_architecture
from models.device import META
from models.encoders.base import AudioEncoder, Features
from models.encoders.features import (
    HOP,
    PARAKEET_FFT,
    VARIANCE_FLOOR,
    WINDOW,
    fbank_frames,
    fbank_lengths,
    kaldi_log_mel,
    parakeet_frames,
    parakeet_log_mel,
    stacked_fbank,
)
from models.frames import key_mask, zero_after
from models.hub import load_config, load_weights, located
from models.runtime.spans import span
from support.command_line import UserError
from support.units import SAMPLE_RATE

logger = logging.getLogger(__name__)

MAX_S = 30  # of the encoders whose positions are relative: Whisper's, so that both cut a long clip at the same points
OFF = {
    "layerdrop": 0.0,
    "apply_spec_augment": False,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "add_adapter": False,
    "use_intermediate_ffn_before_adapter": False,
}
"""Fields of the library's configurations that are switched off, where a configuration has them: masking and dropped
layers in training; the adapters of speech recognisers that shorten the encoder's output."""

Window = Literal["clip", "full"]


class HFEncoder(AudioEncoder):
    """A network of transformers, under `network`, with the library's names in its state dict.

    What differs from calling it through the library:
    - It takes waveforms and computes its features itself, on its device, with the settings of the folder's feature
      extractor.
    - A clip's frames do not depend on the rest of the batch: see the subclasses.
    - In training no layer is dropped and nothing is masked, and BatchNorm uses its stored statistics.
    - Convolutional adapters after the encoder, which fine-tuned speech recognisers may have, are left out.
    """

    def __init__(self, network: PreTrainedModel, extractor: FeatureExtractionMixin, window: Window) -> None:
        super().__init__()
        if window not in ("clip", "full"):
            raise ValueError(f"window is {window!r}; expected 'clip' or 'full'")
        self.network = network
        self.extractor = extractor
        self.window = window  # AST's alone; no other encoder here pads
        self.dim = network.config.hidden_size
        self._expect_extractor(sampling_rate=SAMPLE_RATE)
        self.train(self.training)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        kinds: Sequence[str] | None = None,
        window: Window = "clip",
        dtype: torch.dtype = torch.float32,
        token: str | None = None,
        weights: bool = True,
    ) -> HFEncoder:
        """Load an encoder from a folder or a hub name, `owner/name` or `owner/name@revision`.

        Bare encoders and models with heads are read, without the heads. Weights are loaded in `dtype`.

        Args:
            kinds: the allowed model types, of `KINDS`; None allows all.
            window: `full` gives AST the 10 s that its feature extractor pads every clip to, `clip` the clip's length.
            weights: False makes it on the meta device, from the facts of configs/architectures.

        Raises UserError if nothing can be loaded, if it is of another kind, or if weights of the encoder are missing.
        """
        path, source = str(folder), f"{str(folder)!r}"
        if not weights:
            config = AutoConfig.for_model(**find_architecture(path, "audio").config)
            _kind_of(config, source, kinds)
            with META:
                return cls.from_config(config, window=window).to(dtype)
        config = load_config(AutoConfig, path, token)
        kind = _kind_of(config, source, kinds)
        load = getattr(transformers, kind.network).from_pretrained
        with _quiet():
            network = load_weights(load, path, token, part="encoder", config=_prepared(config), dtype=dtype)
        return _join(kind, network, _extractor(kind, path, token), window, source)

    @classmethod
    def from_config(
        cls, config: PretrainedConfig, extractor: FeatureExtractionMixin | None = None, *, window: Window = "clip"
    ) -> HFEncoder:
        """An encoder with fresh weights, on the meta device inside `torch.device("meta")`: for plans and tests."""
        source = f"a {config.model_type} configuration"
        kind = _kind_of(config, source, None)
        if extractor is None:
            own = {"feature_size": _prepared(config).num_mel_bins} if kind.encoder is ParakeetEncoder else {}
            with _quiet():
                extractor = getattr(transformers, kind.extractor)(**own)
        network = getattr(transformers, kind.network)(_prepared(config))
        return _join(kind, network, extractor, window, source)

    def train(self, mode: bool = True) -> HFEncoder:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()  # a batch's own statistics would make a clip's frames depend on its neighbours
        return self

    def settings(self) -> dict[str, Any]:
        unrelated = {"transformers_version", "architectures", "dtype", "torch_dtype"}
        config = {key: value for key, value in self.network.config.to_dict().items() if key not in unrelated}
        computed = {"mel_filters", "window"}  # by the library, from the others
        extractor = {key: value for key, value in self.extractor.to_dict().items() if key not in computed}
        return {"encoder": type(self).__name__, "config": config, "extractor": extractor, "window": self.window}

    def forward(
        self, waveforms: Tensor, lengths: LongTensor, features: Features | None = None
    ) -> tuple[Tensor, LongTensor]:
        """[B, T], [B] samples -> frames [B, N, D], frame_lengths [B]."""
        self.check_lengths(lengths.tolist())
        waveforms, lengths = waveforms.to(self.network.device), lengths.to(self.network.device)
        frames, frame_lengths = self.encode(*(features or self.features(waveforms, lengths)))
        return zero_after(frames, frame_lengths), frame_lengths

    @abstractmethod
    def encode(self, features: Tensor, lengths: LongTensor) -> tuple[Tensor, LongTensor]:
        """What `features` gives, of clips of permitted length -> frames [B, N, D], which may be anything after a
        clip's end, and frame_lengths [B]."""

    def _expect_extractor(self, **expected: Any) -> None:
        for key, value in expected.items():
            found = getattr(self.extractor, key, None)
            if found != value:
                raise UserError(f"its feature extractor has {key} = {found}; expected {value}")


class WaveformEncoder(HFEncoder):
    """WavLM, HuBERT, Wav2Vec2: convolutions over the waveform, then a transformer; 50 frames a second.

    The convolutions run clip by clip: their GroupNorm (base models) takes statistics over time, and padding takes no
    memory. In the transformer, there are zeros after each clip's end before the positional convolution, and keys after
    its end are masked.
    """

    def __init__(self, network: PreTrainedModel, extractor: FeatureExtractionMixin, window: Window) -> None:
        super().__init__(network, extractor, window)
        for module in network.modules():
            if isinstance(module, WavLMAttention):
                module.__class__ = FusedWavLMAttention
        config = network.config
        if getattr(config, "conv_pos_batch_norm", False):
            raise UserError("it has a BatchNorm before its positional convolution, which is not supported")
        self.frame_rate_hz = SAMPLE_RATE / math.prod(config.conv_stride)
        self.min_samples = 1
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            self.min_samples = (self.min_samples - 1) * stride + kernel
        self.max_samples = MAX_S * SAMPLE_RATE

    def frame_count(self, samples: int) -> int:
        for kernel, stride in zip(self.network.config.conv_kernel, self.network.config.conv_stride, strict=True):
            samples = max(0, (samples - kernel) // stride + 1)
        return samples

    def encode(self, waveforms: Tensor, lengths: LongTensor) -> tuple[Tensor, LongTensor]:
        front = [self._convolve(row[:samples]) for row, samples in zip(waveforms, lengths.tolist(), strict=True)]
        counts = torch.tensor([len(row) for row in front], device=lengths.device)
        projected = self.network.feature_projection(pad_sequence(front, batch_first=True))
        hidden = projected[0] if isinstance(projected, tuple) else projected
        return self.network.encoder(hidden, attention_mask=key_mask(counts, hidden.shape[1])).last_hidden_state, counts

    def _convolve(self, waveform: Tensor) -> Tensor:
        """One clip, [T] -> [N, C]."""
        waveform = waveform.float()
        if self.extractor.do_normalize:
            variance = waveform.var(correction=0)
            waveform = (waveform - waveform.mean()) / (variance + VARIANCE_FLOOR).sqrt()
        hidden = waveform[None, None].to(self.network.dtype)
        for layer in self.network.feature_extractor.conv_layers:
            hidden = layer(hidden)
        return hidden[0].T


class FusedWavLMAttention(WavLMAttention):
    """WavLM's attention without the matrix of weights, which the library computes, averages and never uses."""

    def torch_multi_head_self_attention(
        self, hidden_states: Tensor, attention_mask: BoolTensor | None, gated_position_bias: Tensor
    ) -> tuple[Tensor, None]:
        """[B, N, D], keys [B, N] True within a clip, bias [B · heads, N, N] -> [B, N, D], no weights."""
        query, key, value = (
            project(hidden_states).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        bias = gated_position_bias.unflatten(0, (-1, self.num_heads)).to(query.dtype)
        if attention_mask is not None:
            bias = bias.masked_fill(~attention_mask[:, None, None], -torch.inf)
        dropout = self.dropout if self.training else 0.0
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


class Wav2Vec2BertEncoder(HFEncoder):
    """Wav2Vec2-BERT: a conformer over pairs of Kaldi fbank frames, each bin normalised over the clip; 50 frames a
    second. Its convolutions are causal, and keys after a clip's end are masked.
    """

    def __init__(self, network: PreTrainedModel, extractor: FeatureExtractionMixin, window: Window) -> None:
        super().__init__(network, extractor, window)
        stride = extractor.stride
        self._expect_extractor(num_mel_bins=network.config.feature_projection_input_dim // stride)
        self.frame_rate_hz = SAMPLE_RATE / HOP / stride
        self.min_samples = WINDOW + max(1, stride - 1) * HOP  # a variance needs two fbank frames
        self.max_samples = MAX_S * SAMPLE_RATE

    def frame_count(self, samples: int) -> int:
        return fbank_frames(samples) // self.extractor.stride

    def features(self, waveforms: Tensor, lengths: LongTensor) -> Features:
        """[B, T], [B] samples -> stacked fbank [B, N, stride · M], frames [B]."""
        bins, stride = self.extractor.num_mel_bins, self.extractor.stride
        with span("features", self.name):
            return stacked_fbank(waveforms, lengths, bins=bins, stride=stride)

    def encode(self, features: Tensor, lengths: LongTensor) -> tuple[Tensor, LongTensor]:
        mask = key_mask(lengths, features.shape[1])
        return self.network(features.to(self.network.dtype), attention_mask=mask).last_hidden_state, lengths


class ParakeetEncoder(HFEncoder):
    """Parakeet's FastConformer, also Canary's: 12.5 frames a second.

    There are zeros after each clip's end before every convolution, and keys after its end are masked.
    """

    def __init__(self, network: PreTrainedModel, extractor: FeatureExtractionMixin, window: Window) -> None:
        super().__init__(network, extractor, window)
        config = network.config
        self._expect_extractor(feature_size=config.num_mel_bins, hop_length=HOP, win_length=WINDOW, n_fft=PARAKEET_FFT)
        self.frame_rate_hz = SAMPLE_RATE / (config.subsampling_factor * HOP)
        self.cut_grain = config.subsampling_factor * HOP
        self.min_samples = 2 * HOP  # a variance needs two spectrogram frames
        self.max_samples = MAX_S * SAMPLE_RATE

    def frame_count(self, samples: int) -> int:
        return self._subsampled(parakeet_frames(samples))

    def _subsampled(self, frames: Any) -> Any:
        """Frames after the subsampling of so many spectrogram frames, a number or a tensor."""
        config = self.network.config
        kernel, stride = config.subsampling_conv_kernel_size, config.subsampling_conv_stride
        for _ in range(int(math.log2(config.subsampling_factor))):
            frames = (frames + (kernel - 1) // 2 * 2 - kernel) // stride + 1
        return frames

    def features(self, waveforms: Tensor, lengths: LongTensor) -> Features:
        """[B, T], [B] samples -> normalised log-mel spectrogram [B, F, M], its frames [B] of each clip."""
        bins, preemphasis = self.extractor.feature_size, self.extractor.preemphasis
        with span("features", self.name):
            return parakeet_log_mel(waveforms, lengths, bins=bins, preemphasis=preemphasis)

    def encode(self, features: Tensor, lengths: LongTensor) -> tuple[Tensor, LongTensor]:
        mask = key_mask(lengths, features.shape[1])
        frames = self.network(features.to(self.network.dtype), attention_mask=mask).last_hidden_state
        return frames, self._subsampled(lengths)


class ASTEncoder(HFEncoder):
    """The Audio Spectrogram Transformer: patches of 160 ms every 100 ms, each a frame, the mean of its frequencies.

    A time step has 12 tokens, from low to high frequencies. Their mean is the frame (as in LTU, Gong et al. 2023,
    arXiv:2305.10790): 10 a second, so that AST next to a speech encoder does not change its frames and windows.

    The library's model takes 10.24 s, whatever the clip. With `window="clip"` a clip has a time step per whole 100 ms,
    with the first positions; the last step's patches are padded as by the feature extractor, and keys after the clip's
    end are masked. With `window="full"` every clip is padded to 10.24 s, and all steps are frames, those of the silence
    included.
    """

    def __init__(self, network: PreTrainedModel, extractor: FeatureExtractionMixin, window: Window) -> None:
        super().__init__(network, extractor, window)
        config = network.config
        self._expect_extractor(num_mel_bins=config.num_mel_bins, max_length=config.max_length)
        self.patch, self.stride = config.patch_size, config.time_stride
        self.bands, self.max_steps = network.embeddings.get_shape(config)
        self.cut_grain = self.stride * HOP
        self.frame_rate_hz = SAMPLE_RATE / self.cut_grain
        self.min_samples = max(WINDOW, self.cut_grain)
        self.max_samples = self.max_steps * self.cut_grain

    def frame_count(self, samples: int) -> int:
        return self.max_steps if self.window == "full" else self.content_frames(samples)

    def content_frames(self, samples: int) -> int:
        return samples // self.cut_grain

    def features(self, waveforms: Tensor, lengths: LongTensor) -> Features:
        """[B, T], [B] samples -> normalised fbank [B, F, M] float32, time steps [B] in it."""
        extractor = self.extractor
        with span("features", self.name):
            fbank = kaldi_log_mel(
                waveforms, lengths, bins=extractor.num_mel_bins, window="hann", gain=1.0, dtype=torch.float64
            )
            steps = lengths // self.cut_grain
            if self.window == "full":
                steps = torch.full_like(steps, self.max_steps)
            size = (int(steps.max()) - 1) * self.stride + self.patch
            fbank = nn.functional.pad(zero_after(fbank, fbank_lengths(lengths)), (0, 0, 0, size - fbank.shape[1]))
            if extractor.do_normalize:
                fbank = (fbank - extractor.mean) / (2 * extractor.std)
            return fbank.float(), steps

    def encode(self, features: Tensor, lengths: LongTensor) -> tuple[Tensor, LongTensor]:
        embeddings = self.network.embeddings
        patches = embeddings.patch_embeddings(features.to(self.network.dtype)).unflatten(1, (self.bands, -1))
        count = int(lengths.max())
        table = embeddings.position_embeddings  # [1, 2 + bands · max_steps, D]; the first two are no patches
        positions = table[:, 2:].unflatten(1, (self.bands, self.max_steps))
        patches = (patches[:, :, :count] + positions[:, :, :count]).flatten(1, 2)  # [B, bands · steps, D]
        special = torch.cat([embeddings.cls_token, embeddings.distillation_token], dim=1) + table[:, :2]
        hidden = embeddings.dropout(torch.cat([special.expand(len(patches), -1, -1), patches], dim=1))

        keys = None
        inside = key_mask(lengths, count)
        if inside is not None:
            keys = torch.cat([inside.new_ones(len(inside), 2), inside.repeat(1, self.bands)], dim=1)[:, None, None]
        for layer in self.network.layers:
            hidden = layer(hidden, keys)
        return self.network.layernorm(hidden)[:, 2:].unflatten(1, (self.bands, count)).mean(dim=1), lengths


@dataclass(frozen=True)
class Kind:
    """One row of the table below; names in transformers, imported when needed."""

    encoder: type[HFEncoder]
    network: str
    extractor: str


KINDS: dict[str, Kind] = {
    "wavlm": Kind(WaveformEncoder, "WavLMModel", "Wav2Vec2FeatureExtractor"),
    "hubert": Kind(WaveformEncoder, "HubertModel", "Wav2Vec2FeatureExtractor"),
    "wav2vec2": Kind(WaveformEncoder, "Wav2Vec2Model", "Wav2Vec2FeatureExtractor"),
    "wav2vec2-bert": Kind(Wav2Vec2BertEncoder, "Wav2Vec2BertModel", "SeamlessM4TFeatureExtractor"),
    "audio-spectrogram-transformer": Kind(ASTEncoder, "ASTModel", "ASTFeatureExtractor"),
    **dict.fromkeys(
        ("parakeet_encoder", "parakeet_ctc", "parakeet_rnnt", "parakeet_tdt"),
        Kind(ParakeetEncoder, "ParakeetEncoder", "ParakeetFeatureExtractor"),
    ),
}
"""`model_type` of a folder's config.json -> how it is built."""


def _kind_of(config: PretrainedConfig, source: str, kinds: Sequence[str] | None) -> Kind:
    found = config.model_type
    if found not in KINDS:
        raise UserError(f"{source} is of type {found!r}, which is no known encoder; known are {', '.join(KINDS)}")
    if kinds is not None and found not in kinds:
        raise UserError(f"{source} is of type {found!r}; expected {' or '.join(kinds)}")
    return KINDS[found]


def _prepared(config: PretrainedConfig) -> PretrainedConfig:
    """The encoder's configuration, with the fields of `OFF` switched off."""
    config = getattr(config, "encoder_config", config)
    for key, value in OFF.items():
        if getattr(config, key, None) not in (None, value):
            setattr(config, key, value)
    return config


def _extractor(kind: Kind, path: str, token: str | None) -> FeatureExtractionMixin:
    """The folder's feature extractor; without one, with a warning, the library's default one."""
    extractor = getattr(transformers, kind.extractor)
    name, revision = located(path)
    with _quiet():
        try:
            return extractor.from_pretrained(name, revision=revision, token=token)
        except OSError:
            logger.warning(
                "%s has no preprocessor_config.json: using %s's defaults. Add the model's own if it was trained with "
                "others.",
                name,
                kind.extractor,
            )
            return extractor()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's messages about weights that are left out, and about filters that are not used here."""
    verbosity = library_logging.get_verbosity()
    library_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="At least one mel filter")
            yield
    finally:
        library_logging.set_verbosity(verbosity)


def _join(
    kind: Kind, network: PreTrainedModel, extractor: FeatureExtractionMixin, window: Window, source: str
) -> HFEncoder:
    try:
        return kind.encoder(network, extractor, window).eval()
    except UserError as error:
        raise UserError(f"{source}: {error}") from error

"""The table of audio encoders, and several of them side by side: short and long clips, alignment in time, caching."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import LongTensor, Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from models import int8
from models.audio_encoder import AudioEncoder, length_mask
from models.beats import BEATs
from models.ced import CED
from models.features import SAMPLE_RATE
from models.graphs import Replays
from models.hf_encoder import HFEncoder
from models.streams import at_once
from models.whisper import WhisperEncoder

if TYPE_CHECKING:
    from configs.schema import ModelConfig

logger = logging.getLogger(__name__)

PARTS_AT_ONCE = 8  # at least; a long clip's parts are encoded in groups, for memory's sake
NUMBERS_AT_ONCE = 1 << 23  # of a layer's widest activations, on the CPU: 32 MiB in float32
OVERLAPPED_S = 30  # of all clips: more of them fill the device, and encoders side by side would only hold more memory


@dataclass(frozen=True)
class Frames:
    """What an encoder returns."""

    frames: Tensor  # [B, N, D]; what lies after a clip's end has no meaning
    lengths: LongTensor  # [B]


@dataclass(frozen=True, kw_only=True)
class EncoderEntry:
    """One row of the table: how an encoder is named in `model`, and how it is built."""

    path_key: str
    """The field of `model` that names its weights; the encoder is used where it is set."""
    freeze_key: str
    """The field of `model` that says whether it is frozen."""
    build: Callable[[ModelConfig, torch.dtype], AudioEncoder]
    """From the configuration and the dtype that frozen weights should have."""


def _build_whisper(config: ModelConfig, dtype: torch.dtype) -> AudioEncoder:
    window = config.window if config.legacy == "off" else "full"
    return WhisperEncoder.from_pretrained(
        config.whisper_path,
        window=window,
        dtype=dtype,
        token=config.token or None,
        layers=config.whisper_layers,
        int8=config.encoder_quantization == "int8",
    )


def _build_beats(config: ModelConfig, dtype: torch.dtype) -> AudioEncoder:
    # Released systems computed the fbank in float64. BEATs itself stays in float32, see there.
    fbank_dtype = torch.float32 if config.legacy == "off" else torch.float64
    return BEATs.from_checkpoint(
        config.beats_path,
        fbank_dtype=fbank_dtype,
        layers=config.beats_layers,
        int8=config.encoder_quantization == "int8",
    )


def _build_ced(config: ModelConfig, dtype: torch.dtype) -> AudioEncoder:
    # The published system with CED: 30 s in one piece, rescaled decibels, tokens in the network's order.
    legacy = {} if config.legacy == "off" else {"target_length": 3001, "rescale": True, "frequency_major": True}
    return CED.from_checkpoint(config.ced_path, dtype=dtype, token=config.token or None, **legacy)


def _hf_entry(name: str, *kinds: str) -> EncoderEntry:
    """An encoder of transformers; `kinds` are the model types that its path may lead to."""

    def build(config: ModelConfig, dtype: torch.dtype) -> AudioEncoder:
        window = config.window if config.legacy == "off" else "full"
        path = getattr(config, f"{name}_path")
        return HFEncoder.from_pretrained(path, kinds=kinds, window=window, dtype=dtype, token=config.token or None)

    return EncoderEntry(path_key=f"{name}_path", freeze_key=f"freeze_{name}", build=build)


ENCODERS: dict[str, EncoderEntry] = {
    "whisper": EncoderEntry(path_key="whisper_path", freeze_key="freeze_whisper", build=_build_whisper),
    "beats": EncoderEntry(path_key="beats_path", freeze_key="freeze_beats", build=_build_beats),
    "ced": EncoderEntry(path_key="ced_path", freeze_key="freeze_ced", build=_build_ced),
    "wavlm": _hf_entry("wavlm", "wavlm"),
    "hubert": _hf_entry("hubert", "hubert"),
    "wav2vec2": _hf_entry("wav2vec2", "wav2vec2", "wav2vec2-bert"),
    "ast": _hf_entry("ast", "audio-spectrogram-transformer"),
    "parakeet": _hf_entry("parakeet", "parakeet_encoder", "parakeet_ctc", "parakeet_rnnt", "parakeet_tdt"),
}


def build_encoder(name: str, config: ModelConfig, dtype: torch.dtype = torch.float32) -> AudioEncoder:
    """The encoder called `name`, with the weights that `config` names for it.

    Raises ValueError for a name that is not in the table, or without a path.
    """
    if name not in ENCODERS:
        raise ValueError(f"encoder {name!r} is not known; expected one of {', '.join(ENCODERS)}")
    entry = ENCODERS[name]
    if not getattr(config, entry.path_key):
        raise ValueError(f"encoder {name!r} has no weights; set model.{entry.path_key}")
    try:
        return entry.build(config, dtype)
    except ValueError as error:
        raise ValueError(f"model.{entry.path_key}: {error}") from error


def frozen_encoders(config: ModelConfig) -> dict[str, bool]:
    """Every encoder that `config` names weights for, in the table's order, and whether it is frozen."""
    named = {name: entry for name, entry in ENCODERS.items() if getattr(config, entry.path_key)}
    return {name: getattr(config, entry.freeze_key) for name, entry in named.items()}


class EncoderStack(nn.Module):
    """Several encoders over the same clips, each at its own frame rate, for clips of any length.

    A clip shorter than the encoders can take is extended with silence that counts as audio. One that is longer than
    an encoder can take is cut, for that encoder, in equal parts, which are encoded and joined in time. Frozen encoders
    stay in eval and run without gradients, and in the type of their weights: autocast would give training, its cache
    and evaluation different frames of the same clip.
    """

    hears_batch = False
    """Whether a clip's frames depend on the batch that it is in."""

    def __init__(self, encoders: dict[str, AudioEncoder], frozen: dict[str, bool] | None = None) -> None:
        super().__init__()
        if not encoders:
            keys = ", ".join(f"model.{entry.path_key}" for entry in ENCODERS.values())
            raise ValueError(f"no audio encoder; set at least one of {keys}")
        self.encoders = nn.ModuleDict(encoders)
        self.frozen = {name: True if frozen is None else frozen[name] for name in encoders}
        self.captures = True
        """Whether the encoders' networks are captured in CUDA graphs, in evaluation on such a device."""
        for name, encoder in self.encoders.items():
            if self.frozen[name]:
                encoder.requires_grad_(False)
        self.train(self.training)

    @classmethod
    def from_config(cls, config: ModelConfig, device: torch.device | str = "cpu") -> EncoderStack:
        """Every encoder that `config` names weights for, in the table's order, on the CPU.

        `device` is where the stack will run: `model.dtype: auto` is float16 on CUDA, float32 elsewhere. Encoders that
        train keep float32 weights.
        """
        named = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
        automatic = torch.float16 if torch.device(device).type == "cuda" else torch.float32
        frozen = frozen_encoders(config)
        dtype = named.get(config.dtype, automatic)
        if config.encoder_quantization == "int8":
            int8.check_device(torch.device(device), allow_slow=config.allow_slow_kernels)
        encoders = {name: build_encoder(name, config, dtype if frozen[name] else torch.float32) for name in frozen}
        stack = cls(encoders, frozen)
        for line in stack.kernels(torch.device(device)):
            logger.info("encoder %s", line)
        return stack

    def kernels(self, device: torch.device) -> list[str]:
        """What multiplies each encoder's weights on `device`, a line each."""
        return [f"{name}, weights: {int8.kernel_report(encoder, device)}" for name, encoder in self.encoders.items()]

    @property
    def dims(self) -> list[int]:
        return [encoder.dim for encoder in self.encoders.values()]

    @property
    def frame_rates_hz(self) -> list[float]:
        return [encoder.frame_rate_hz for encoder in self.encoders.values()]

    @property
    def frame_rate_hz(self) -> float:
        """Of the streams when they are joined: the fastest."""
        return max(self.frame_rates_hz)

    @property
    def min_samples(self) -> int:
        """What shorter clips are extended to, for all encoders alike, so that their streams end together."""
        return max(encoder.min_samples for encoder in self.encoders.values())

    @property
    def fingerprint(self) -> str:
        """Hex digest of all that shapes frames; reads every weight, so keep the result instead of asking again."""
        parts = [f"{name}:{encoder.fingerprint}" for name, encoder in self.encoders.items()]
        parts.append(f"min_samples:{self.min_samples}")
        return hashlib.blake2b(" ".join(parts).encode(), digest_size=16).hexdigest()

    @classmethod
    def why_not_cached(cls, frozen: Mapping[str, bool]) -> str | None:
        """Why no frames can be kept of encoders that are `frozen` or not, with the mend; None where they can."""
        if cls.hears_batch:
            return (
                "under model.legacy: exact encoders hear the batch, so that a clip has no outputs of its own: set the "
                "cache to null, or model.legacy to weights"
            )
        trained = [name for name, is_frozen in frozen.items() if not is_frozen]
        if trained:
            return (
                f"the encoder {' and '.join(trained)} is trained, so its outputs change: freeze it, or set the cache "
                "to null"
            )
        return None

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
        """Frames of a clip of `samples` samples after `join_streams`."""
        samples = max(samples, self.min_samples)
        return max(
            _resampled_length(_count_joined(encoder, samples), encoder.frame_rate_hz, self.frame_rate_hz)
            for encoder in self.encoders.values()
        )

    def forward(self, waveforms: Tensor, lengths: LongTensor) -> list[Frames]:
        """[B, T], [B] samples -> one Frames an encoder, at its own rate."""
        short = self.min_samples - waveforms.shape[1]
        if short > 0:
            waveforms = F.pad(waveforms, (0, short))
        # What lies past a clip's end may be anything; the silence that short clips are given must be silence.
        waveforms = waveforms.masked_fill(~length_mask(lengths, waveforms.shape[1]), 0)
        lengths = lengths.clamp(min=self.min_samples)

        def encode(name: str) -> tuple[Tensor, Tensor]:
            with _as_stored(waveforms.device.type) if self.frozen[name] else nullcontext():
                stream = _encode_any_length(self.encoders[name], waveforms, lengths)
            return stream.frames, stream.lengths

        works = [partial(encode, name) for name in self.encoders]
        results = at_once(works, waveforms.device) if self.overlaps(waveforms) else [work() for work in works]
        return [Frames(*result) for result in results]

    def overlaps(self, waveforms: Tensor) -> bool:
        """Whether the encoders run at the same time: on CUDA, where the clips alone do not fill the device."""
        return (
            waveforms.device.type == "cuda"
            and len(self.encoders) > 1
            and not torch.is_grad_enabled()
            and waveforms.numel() <= OVERLAPPED_S * SAMPLE_RATE
        )


@contextmanager
def _as_stored(device_type: str) -> Iterator[None]:
    with torch.no_grad(), torch.autocast(device_type, enabled=False):
        yield


def cut_points(samples: int, max_samples: int | None, grain: int = AudioEncoder.cut_grain) -> list[int]:
    """Where a clip is cut: 0, …, samples; parts are equal up to `grain` and none is longer than `max_samples`."""
    if max_samples is None or samples <= max_samples:
        return [0, samples]
    parts = -(-samples // (max_samples - max_samples % grain))
    return [-(-samples * part // (parts * grain)) * grain for part in range(parts)] + [samples]


def _count_joined(encoder: AudioEncoder, samples: int) -> int:
    cuts = cut_points(samples, encoder.max_samples, encoder.cut_grain)
    return encoder.frame_count(samples) if len(cuts) == 2 else sum(_frames_of_parts(encoder, cuts))


def _frames_of_parts(encoder: AudioEncoder, cuts: Sequence[int]) -> list[int]:
    """Frames of each part of a clip that is cut: of the last, what its samples give; of the others, what lies in time
    between their cuts. An encoder that gives a few less for each would else fall behind the others, part by part."""
    starts = [round(cut * encoder.frame_rate_hz / SAMPLE_RATE) for cut in cuts[:-1]]
    return [stop - start for start, stop in itertools.pairwise(starts)] + [encoder.content_frames(cuts[-1] - cuts[-2])]


def _with_frames(values: Tensor, count: int) -> Tensor:
    """[N, D] -> [count, D]: cut, or with the last frame repeated."""
    missing = count - len(values)
    return values[:count] if missing <= 0 else torch.cat([values, values[-1:].expand(missing, -1)])


def _encode_any_length(encoder: AudioEncoder, waveforms: Tensor, lengths: LongTensor) -> Frames:
    """Encode clips, those over the encoder's limit in parts that are joined in time."""
    samples = lengths.tolist()
    if encoder.max_samples is None or max(samples) <= encoder.max_samples:
        return _encode_in_groups(encoder, waveforms, lengths)

    parts: list[Tensor] = []
    owners: list[tuple[int, int | None]] = []  # row of the batch; frames to keep, None for all
    for row, size in enumerate(samples):
        cuts = cut_points(size, encoder.max_samples, encoder.cut_grain)
        parts += [waveforms[row, start:stop] for start, stop in itertools.pairwise(cuts)]
        owners += [(row, keep) for keep in ([None] if len(cuts) == 2 else _frames_of_parts(encoder, cuts))]
    pieces: list[list[Tensor]] = [[] for _ in samples]
    group = max(len(samples), PARTS_AT_ONCE)
    for first in range(0, len(parts), group):
        batch = parts[first : first + group]
        sizes = torch.tensor([len(part) for part in batch], device=lengths.device)
        encoded = _encode_in_groups(encoder, pad_sequence(batch, batch_first=True), sizes)
        counts = encoded.lengths.tolist()
        for (row, keep), values, count in zip(owners[first : first + group], encoded.frames, counts, strict=True):
            pieces[row].append(values[:count] if keep is None else _with_frames(values[:count], keep))
    joined = [torch.cat(row) for row in pieces]
    counts = torch.tensor([len(row) for row in joined], device=joined[0].device)
    return Frames(pad_sequence(joined, batch_first=True), counts)


def _encode_in_groups(encoder: AudioEncoder, waveforms: Tensor, lengths: LongTensor) -> Frames:
    """Encode clips that the encoder takes whole: all at once, on the CPU in groups of like length.

    A processor is busy with one clip already. What a large batch adds is activations that no cache holds, in blocks
    that the C library takes from the system anew for every layer: a fifth of the time at Whisper's size, with 19 s.
    """
    if waveforms.device.type != "cpu" or torch.is_grad_enabled():
        return Frames(*encoder(waveforms, lengths))
    samples = lengths.tolist()
    groups = _groups_of_like_length(encoder, samples)
    if len(groups) == 1:
        return Frames(*encoder(waveforms, lengths))
    frames: dict[int, Tensor] = {}
    counts = torch.zeros_like(lengths)
    for rows in groups:
        encoded, counts[rows] = encoder(waveforms[rows, : samples[rows[0]]], lengths[rows])
        frames |= zip(rows, encoded, strict=True)
    return Frames(pad_sequence([frames[row] for row in range(len(samples))], batch_first=True), counts)


def _groups_of_like_length(encoder: AudioEncoder, samples: Sequence[int]) -> list[list[int]]:
    """Rows in groups, in each the longest first, and each within `NUMBERS_AT_ONCE` or a single clip."""
    groups: list[list[int]] = []
    for row in sorted(range(len(samples)), key=lambda row: -samples[row]):
        if groups:
            widest = 4 * encoder.dim * encoder.frame_count(samples[groups[-1][0]])  # a feed-forward layer's
            if (len(groups[-1]) + 1) * widest <= NUMBERS_AT_ONCE:
                groups[-1].append(row)
                continue
        groups.append([row])
    return groups


def align_streams(streams: Sequence[Frames], rates_hz: Sequence[float]) -> tuple[list[Tensor], LongTensor]:
    """Bring streams to the fastest rate, and the shorter ones to the longest's length with zeros after their end.

    Returns the streams' frames, [B, N, D] each, and lengths [B], for each clip those of its longest stream. Slower
    streams are resampled by the nearest frame in time.
    """
    fastest_hz = max(rates_hz)
    aligned = [_resample(stream, rate_hz, fastest_hz) for stream, rate_hz in zip(streams, rates_hz, strict=True)]
    lengths = torch.stack([stream.lengths for stream in aligned]).amax(dim=0)
    size = max(stream.frames.shape[1] for stream in aligned)
    frames = []
    for stream in aligned:
        outside = ~length_mask(stream.lengths, stream.frames.shape[1])
        values = stream.frames.masked_fill(outside[..., None], 0)
        frames.append(F.pad(values, (0, 0, 0, size - values.shape[1])))
    return frames, lengths


def join_streams(streams: Sequence[Frames], rates_hz: Sequence[float]) -> Frames:
    """Align streams in time and lay them side by side: [B, N, sum of D]."""
    frames, lengths = align_streams(streams, rates_hz)
    return Frames(torch.cat(frames, dim=-1), lengths)


def _resampled_length(count: int, rate_hz: float, target_hz: float) -> int:
    """Frames at `target_hz` that last as long, to the nearest; at least one for one."""
    if rate_hz == target_hz or count == 0:
        return count
    return max(1, int(count * target_hz / rate_hz + 0.5))


def _resample(stream: Frames, rate_hz: float, target_hz: float) -> Frames:
    if rate_hz == target_hz:
        return stream
    device = stream.frames.device
    counts = [_resampled_length(count, rate_hz, target_hz) for count in stream.lengths.tolist()]
    centres = (torch.arange(max(counts), dtype=torch.float64, device=device) + 0.5) * (rate_hz / target_hz)
    last = (stream.lengths - 1).clamp(min=0)[:, None]
    index = torch.minimum(centres.long()[None], last)  # [B, N]
    frames = stream.frames.gather(1, index[..., None].expand(-1, -1, stream.frames.shape[-1]))
    return Frames(frames, torch.tensor(counts, device=device))


class FrameCache:
    """Frozen encoders' frames on disk, under a hash of the clip's samples.

    Content addresses cannot be stale: another augmentation, cut or edit of a clip is another clip. Misses are encoded
    one clip at a time, so that a value never depends on which clips were missing together. Frames are stored as the
    encoders returned them, hence the same values from the cache as without it. Where the disk takes no more, a warning
    says so once and further clips are encoded each time.

    Each `EncoderStack.fingerprint` has a folder of its own in `folder`.

    Raises:
        ValueError: the stack's outputs cannot be kept (`EncoderStack.why_not_cached`).
    """

    def __init__(self, folder: str | Path, stack: EncoderStack) -> None:
        reason = stack.why_not_cached(stack.frozen)
        if reason is not None:
            raise ValueError(f"datasets.cache_encoder_outputs is {folder}, but {reason}.")
        self.stack = stack
        self.folder = Path(folder) / stack.fingerprint
        self.folder.mkdir(parents=True, exist_ok=True)
        self._writes = True

    @classmethod
    def where_possible(cls, folder: str | Path | None, stack: EncoderStack) -> FrameCache | None:
        """A cache in `folder`; None where none is named, or where the stack's outputs cannot be kept."""
        return None if not folder or stack.why_not_cached(stack.frozen) else cls(folder, stack)

    def encode(self, waveforms: Tensor, lengths: LongTensor) -> list[Frames]:
        """What the stack returns for `waveforms, lengths`, from the cache where it is there."""
        rows = []
        for waveform, samples in zip(waveforms, lengths.tolist(), strict=True):
            path = self._path(waveform[:samples])
            frames = self._read(path, len(self.stack.encoders))
            if frames is None:
                streams = self.stack(waveform[None, :samples], torch.tensor([samples], device=lengths.device))
                frames = [stream.frames[0, : stream.lengths[0]].cpu() for stream in streams]
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
        temporary = path.with_name(f"{uuid.uuid4().hex}.tmp")  # other ranks may write the same clip
        try:
            path.parent.mkdir(exist_ok=True)
            save_file({str(index): values.contiguous() for index, values in enumerate(frames)}, temporary)
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:  # the latter is how the library reports a full disk
            self._writes = False
            logger.warning(
                "%s: no more encoder outputs can be written there (%s); going on, other clips are encoded each time. "
                "Make room, or set datasets.cache_encoder_outputs to another folder.",
                self.folder,
                error,
            )
        finally:
            temporary.unlink(missing_ok=True)


def _batch(frames: list[Tensor], device: torch.device) -> Frames:
    lengths = torch.tensor([len(row) for row in frames])
    return Frames(pad_sequence(frames, batch_first=True).to(device), lengths.to(device))

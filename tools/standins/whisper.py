"""The Whisper stand-in: a small encoder in Whisper's format, trained on the demo vocabulary.

Two losses. First, frame labels from espeak-ng's times: each frame's phoneme (from a middle layer) and each word at the
frame where it ends (from the last layer); that alignment is learnt in minutes, where CTC from scratch takes hours on a
CPU. Then CTC over words replaces them and determines where each word is emitted.
"""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, WhisperConfig, WhisperFeatureExtractor

from data.demo.language import WORDS
from models.encoders.whisper import WhisperEncoder
from support.files import write_whole
from tools.standins.clips import PretrainingClip
from tools.standins.training import learning_rate, length_batches, optimisers, save_half

BLANK = 0
WORD_IDS = {word: number for number, word in enumerate(WORDS, start=1)}
FRAME_RATE_HZ = 50
HEAD_OFFSETS = ((-5, -3, -1, 1, 3, 5), (-8, -4, -1, 1, 4, 8), (-16, -8, -3, 3, 8, 16), (-24, -12, -4, 4, 12, 24))
"""Initial attention offsets of each layer's heads, in frames of 20 ms."""
LOCAL_GAIN = 4.0
"""Initial attention logit at that offset."""
PHONEME_LAYER = 2
"""The layer after which phonemes are predicted."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """Training on a separate set of clips, continuing from the round before."""

    clips: int
    steps: int
    rate: float
    """Times the recipe's learning rates."""
    invented: float
    """Share of the spoken clips whose speaker is drawn for that clip alone."""


@dataclass(frozen=True, kw_only=True)
class WhisperRecipe:
    """Sizes and training of the encoder."""

    width: int = 144
    layers: int = 4
    heads: int = 6
    ffn: int = 576
    rounds: tuple[Round, ...] = (
        Round(clips=24_000, steps=8_000, rate=1.0, invented=0.6),
        Round(clips=16_000, steps=4_000, rate=0.6, invented=0.9),
    )
    batch: int = 32
    peak_rate: float = 2e-3
    muon_rate: float = 0.02
    warmup_steps: int = 150
    alignment_steps: int = 600
    """Steps of the first round with the frame losses alone; later their weight falls and CTC's rises."""
    save_steps: int = 500
    seed: int = 0


def whisper_config(recipe: WhisperRecipe) -> WhisperConfig:
    """Whisper's configuration at the stand-in's size; no decoder is stored, so its sizes are minimal."""
    return WhisperConfig(
        d_model=recipe.width,
        encoder_layers=recipe.layers,
        encoder_attention_heads=recipe.heads,
        encoder_ffn_dim=recipe.ffn,
        decoder_layers=1,
        decoder_attention_heads=recipe.heads,
        decoder_ffn_dim=recipe.ffn,
        num_mel_bins=80,
        max_source_positions=1500,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        encoder_layerdrop=0.0,
        architectures=["WhisperModel"],
    )


class WordRecogniser(nn.Module):
    """The encoder with two heads for pretraining only."""

    def __init__(self, config: WhisperConfig, phonemes: int) -> None:
        super().__init__()
        self.encoder = WhisperEncoder(config, window="clip")
        self.phonemes = nn.Linear(config.d_model, phonemes)
        self.words = nn.Linear(config.d_model, len(WORDS) + 1)
        self._middle: Tensor | None = None
        self.encoder.layers[PHONEME_LAYER - 1].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
        self._middle = output if isinstance(output, Tensor) else output[0]

    def forward(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-mel [B, 80, F], lengths [B] -> word logits [B, N, words + 1], phoneme logits [B, N, P], lengths [B]."""
        frames, frame_lengths = self.encoder.encode_features(mel, lengths)
        return self.words(frames), self.phonemes(self._middle), frame_lengths


@dataclass(frozen=True)
class Example:
    """One clip, ready for a batch."""

    mel: Tensor  # [80, F] half
    word_ids: list[int]
    word_frames: list[int]  # the frame at which each word is to be emitted
    phoneme_labels: Tensor  # [N], -100 where nothing is known

    @property
    def length(self) -> int:
        return self.mel.shape[1]


def attend_locally(encoder: WhisperEncoder) -> None:
    """Initialise every head to attend a few frames to one side.

    Whisper's positions are sinusoids added to the input, so a query equal to its own position rotated by an angle
    matches the key that many frames away. From random weights a small encoder spends most of its training on learning
    this.
    """
    width, heads = encoder.config.d_model, encoder.config.encoder_attention_heads
    size = width // heads
    pairs, channels = size // 2, width // 2
    speeds = torch.exp(-math.log(10_000) / (channels - 1) * torch.arange(channels))  # radians a frame
    chosen = torch.linspace(0, channels * 0.55, pairs).long()
    for layer, offsets in zip(encoder.layers, itertools.cycle(HEAD_OFFSETS)):
        query, key = torch.zeros(width, width), torch.zeros(width, width)
        for head, offset in zip(range(heads), itertools.cycle(offsets)):
            for pair, channel in enumerate(chosen.tolist()):
                sine, cosine = head * size + pair, head * size + pairs + pair
                key[sine, channel] = key[cosine, channels + channel] = 1.0
                angle = torch.tensor(float(offset)) * speeds[channel]
                query[sine, channel], query[sine, channels + channel] = angle.cos(), angle.sin()
                query[cosine, channel], query[cosine, channels + channel] = -angle.sin(), angle.cos()
        scale = math.sqrt(LOCAL_GAIN * math.sqrt(size) / pairs)
        with torch.no_grad():
            layer.self_attn.q_proj.weight.add_(query * scale)
            layer.self_attn.k_proj.weight.add_(key * scale)


def phoneme_table(clips: list[PretrainingClip]) -> dict[str, int]:
    """Every phoneme mnemonic that occurs, stress marks cut, numbered from 1; 0 is silence."""
    names = sorted({_plain(name) for clip in clips for name, _ in clip.phonemes})
    return {name: number for number, name in enumerate(names, start=1)}


def _plain(name: str) -> str:
    return name.strip("',%=_:;|\"") or "_"


def example(clip: PretrainingClip, table: dict[str, int]) -> Example:
    mel = torch.from_numpy(clip.log_mel)
    frames = -(-mel.shape[1] // 2)
    labels = torch.zeros(frames, dtype=torch.long)
    ends = [start for _, start in clip.phonemes[1:]] + [frames / FRAME_RATE_HZ]
    for (name, start_s), end_s in zip(clip.phonemes, ends, strict=False):
        number = table.get(_plain(name), 0) if name.strip("_:") else 0
        labels[max(0, int(start_s * FRAME_RATE_HZ)) : max(0, int(end_s * FRAME_RATE_HZ))] = number
    at = [min(frames - 1, int((0.2 * start + 0.8 * end) * FRAME_RATE_HZ)) for _, start, end in clip.words]
    return Example(mel, [WORD_IDS[word] for word, _, _ in clip.words], at, labels)


def collate(batch: list[Example], generator: torch.Generator) -> dict[str, Tensor]:
    """Pad, and augment."""
    lengths = torch.tensor([item.length for item in batch])
    size = int(lengths.max())
    frames = -(-size // 2)
    mel = torch.zeros(len(batch), 80, size)
    words = torch.full((len(batch), frames), -100)
    phonemes = torch.full((len(batch), frames), -100)
    for row, item in enumerate(batch):
        mel[row, :, : item.length] = augment(item.mel.float(), generator)
        count = len(item.phoneme_labels)
        phonemes[row, :count] = item.phoneme_labels
        words[row, :count] = BLANK
        for number, frame in zip(item.word_ids, item.word_frames, strict=True):
            words[row, frame] = number
    return {
        "mel": mel,
        "lengths": lengths,
        "words": words,
        "phonemes": phonemes,
        "targets": torch.tensor([number for item in batch for number in item.word_ids]),
        "target_lengths": torch.tensor([len(item.word_ids) for item in batch]),
    }


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def augment(mel: Tensor, generator: torch.Generator) -> Tensor:
    """A log-mel [M, F] as of another speaker and microphone: often changed a little, sometimes a lot."""
    if _uniform(generator, 0, 1) < 0.45:
        mel = warp(mel, _uniform(generator, 0.86, 1.16))
    amount = _uniform(generator, 0, 1)
    if amount < 0.2:
        return spoil(mel, generator)
    if amount < 0.7:
        bins, floor = mel.shape[0], float(mel.min())
        tilt = torch.linspace(-1, 1, bins) * _uniform(generator, -0.12, 0.12)
        mel = (mel + tilt[:, None]).clamp(min=floor)
        start, width = int(_uniform(generator, 0, bins - 10)), int(_uniform(generator, 0, 6))
        mel[start : start + width] = floor
    return mel


def warp(mel: Tensor, factor: float) -> Tensor:
    """Stretch the mel axis, as another length of vocal tract does (Jaitly & Hinton 2013)."""
    bins = mel.shape[0]
    source = (torch.arange(bins) * factor).clamp(max=bins - 1.001)
    below = source.long()
    share = (source - below)[:, None]
    warped = mel[below] * (1 - share) + mel[below + 1] * share
    if factor > 1:
        warped[int(bins / factor) :] = mel.min()
    return warped


def spoil(mel: Tensor, generator: torch.Generator) -> Tensor:
    """Spectral tilt, noise, a telephone band, and masked stripes of time and frequency (Park et al. 2019)."""
    bins, size = mel.shape
    floor = float(mel.min())
    if _uniform(generator, 0, 1) < 0.5:  # the microphone's spectral tilt
        tilt = torch.linspace(-1, 1, bins) * _uniform(generator, -0.15, 0.15)
        bumps = F.interpolate(torch.randn(1, 1, 7, generator=generator), bins, mode="linear")[0, 0] * 0.06
        mel = (mel + (tilt + bumps)[:, None]).clamp(min=floor)
    if _uniform(generator, 0, 1) < 0.4:  # stationary noise under the speech
        level = _uniform(generator, floor, float(mel.max()) - 0.6)
        slope = torch.linspace(0, _uniform(generator, -0.3, 0.1), bins)[:, None]
        noise = level + slope + 0.08 * torch.randn(mel.shape, generator=generator)
        mel = torch.logaddexp(mel * 9.2, noise * 9.2) / 9.2  # powers add: the spectrum is log10 / 4
    if _uniform(generator, 0, 1) < 0.15:  # telephone band
        mel = mel.clone()
        mel[int(_uniform(generator, 55, 68)) :] = floor
    mel = mel.clone()
    for _ in range(int(_uniform(generator, 0, 3))):
        start, width = int(_uniform(generator, 0, bins - 10)), int(_uniform(generator, 1, 10))
        mel[start : start + width] = floor
    if size > 40:
        for _ in range(int(_uniform(generator, 0, 3))):
            start, width = int(_uniform(generator, 0, size - 8)), int(_uniform(generator, 1, 8))
            mel[:, start : start + width] = floor
    return mel


def losses(model: WordRecogniser, batch: dict[str, Tensor], ctc_weight: float) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum and its parts."""
    words, phonemes, frame_lengths = model(batch["mel"], batch["lengths"])
    words, phonemes = words.float(), phonemes.float()
    phoneme_loss = F.cross_entropy(phonemes.transpose(1, 2), batch["phonemes"], ignore_index=-100)
    parts = {"phonemes": phoneme_loss.item()}
    total = 0.3 * phoneme_loss
    if ctc_weight < 1:
        weights = torch.ones(words.shape[-1])
        weights[BLANK] = 0.2  # nine frames in ten
        word_loss = F.cross_entropy(words.transpose(1, 2), batch["words"], weights, ignore_index=-100)
        parts["words"] = word_loss.item()
        total = total + (1 - ctc_weight) * word_loss
    if ctc_weight > 0:
        scores = words.log_softmax(-1).transpose(0, 1)  # [N, B, words + 1]
        ctc = F.ctc_loss(
            scores, batch["targets"], frame_lengths, batch["target_lengths"], BLANK, "sum", zero_infinity=True
        ) / max(1, int(batch["target_lengths"].sum()))
        parts["ctc"] = ctc.item()
        total = total + ctc_weight * ctc
    return total, parts


def short_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_
) -> tuple[Tensor, None]:
    """softmax(q k) v without the fused kernel, in the tensors' own precision: on clips of a few seconds two fifths
    faster on a CPU, forward and backward."""
    scores = (query * scaling) @ key.transpose(2, 3)
    if mask is not None:
        scores = scores.masked_fill(~mask, -1e4)
    return (scores.softmax(-1, dtype=scores.dtype) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("short", short_attention)


def train(
    recipe: WhisperRecipe, number: int, examples: list[Example], phonemes: int, log, states: list[Path]
) -> Iterator[tuple[int, WordRecogniser]]:
    """Train round `number`; yields (step, model) every `save_steps` and at the end.

    Before each yield the state is saved to the round's file of `states`; if it exists, training continues from it.
    """
    this, seed = recipe.rounds[number], recipe.seed + number
    torch.manual_seed(seed)
    model = WordRecogniser(whisper_config(recipe), phonemes)
    attend_locally(model.encoder)
    model.encoder.config._attn_implementation = "short"
    model.encoder.embed_positions.requires_grad_(False)
    both = optimisers(model, model.encoder.layers, this.rate * recipe.peak_rate, this.rate * recipe.muon_rate)
    done = 0
    state = states[number]
    if state.exists():
        kept = torch.load(state, weights_only=True)
        done = kept["step"]
        model.load_state_dict(kept["model"])
        for optimiser, moments in zip(both, kept["optimisers"], strict=True):
            optimiser.load_state_dict(moments)
    elif number:
        model.load_state_dict(torch.load(states[number - 1], weights_only=True)["model"])
    batches = length_batches([item.length for item in examples], recipe.batch, torch.Generator().manual_seed(seed))
    for step, chosen in enumerate(itertools.islice(batches, this.steps), start=1):
        if step <= done:
            continue
        for group in (group for optimiser in both for group in optimiser.param_groups):
            group["lr"] = learning_rate(step, this.steps, group["peak"], recipe.warmup_steps)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        batch = collate([examples[i] for i in chosen], generator)
        ctc_weight = 0.9
        if number == 0:
            ctc_weight = min(0.9, max(0.0, step / recipe.alignment_steps - 1))
        model.train()
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            total, parts = losses(model, batch, ctc_weight)
            total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if math.isfinite(total.item()):
            for optimiser in both:
                optimiser.step()
        if step % 50 == 0:
            log(step=step, **parts)
        if step % recipe.save_steps == 0 or step == this.steps:
            moments = [optimiser.state_dict() for optimiser in both]
            content = {"step": step, "model": model.state_dict(), "optimisers": moments}
            write_whole(state, partial(torch.save, content))
            yield step, model


@torch.no_grad()
def word_error_rate(model: WordRecogniser, examples: list[Example]) -> float:
    """Word error rate of greedy CTC, 1.0 = all wrong."""
    import jiwer

    model.eval()
    names = ["", *WORDS]
    references, hypotheses = [], []
    for item in examples:
        if not item.word_ids:
            continue
        logits, _, _ = model(item.mel.float()[None], torch.tensor([item.length]))
        path = torch.unique_consecutive(logits[0].argmax(-1)).tolist()
        hypotheses.append(" ".join(names[number] for number in path if number != BLANK))
        references.append(" ".join(names[number] for number in item.word_ids))
    return jiwer.wer(references, hypotheses)


def save(model: WordRecogniser, folder: Path) -> None:
    """A Whisper folder: config.json, model.safetensors in half precision, preprocessor_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"model.encoder.{name}": value for name, value in model.encoder.state_dict().items()}
    save_half(weights, folder / "model.safetensors")
    config = model.encoder.config.to_dict()
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)

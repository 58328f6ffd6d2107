"""The whole model: audio encoders, connector and LLM, joined at one place.

`forward` gives a loss, `generate` gives text; both go through `encode_audio` and `assemble`, so that accuracy, training
and speed are measured on the same lines.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.sections import GenerateConfig, ModelConfig
from models.alignment.ctc import Alignment
from models.alignment.merging import merge_runs
from models.alignment.pieces import Pieces
from models.connector.connector import Connector
from models.decoding.continuous_batching import decode_each, split
from models.decoding.engine import DecodeEngine
from models.decoding.generation import generate, stream
from models.decoding.hypothesis import Generation
from models.decoding.scores import GenerateOptions
from models.encoders.base import FeatureSource
from models.encoders.stack import EncoderStack
from models.frames import Frames
from models.language.llm import LanguageModel
from models.language.sequence import Assembled
from models.language.text import TextBatch, TextProcessor
from models.runtime.spans import spanned
from support.command_line import UserError
from support.texts import require_texts
from support.waveforms import as_clips, as_waveform

IGNORED = -100  # the label that the loss skips

Clips = tuple[Tensor, Tensor, list[str]]
"""Waveforms `[B, T]`, lengths `[B]` and prompts of a batch."""
FrameSource = Callable[[Tensor, Tensor], list[Frames] | None]
"""Encoder outputs for waveforms and lengths, from a cache; None to have them encoded."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class LossOutput:
    """`loss_sum` over `target_tokens` answer tokens, and `loss`, their ratio; `logits` `[S, V]` and last `hidden`
    states `[S, H]` at the positions that predict these tokens, row after row."""

    loss_sum: Tensor
    target_tokens: int
    loss: Tensor
    logits: Tensor
    hidden: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """Terms of `loss_sum` by name, before weighting, where there are several."""


class SALMONN(nn.Module):
    """Encoders, connector and LLM as one model.

    Waveforms are `[B, T]` float32 mono at 16 kHz in [-1, 1], `lengths` `[B]` in samples; other forms of both are read
    or refused by `support.waveforms`. Prompts hold one `<SpeechHere>` each and are not yet in the template.
    """

    merges_lora: bool = True
    """Whether LoRA may be added into the weights for serving."""

    def __init__(
        self, encoders: EncoderStack, connector: Connector, llm: LanguageModel, text: TextProcessor, config: ModelConfig
    ) -> None:
        super().__init__()
        self.encoders = encoders
        self.connector = connector
        self.llm = llm
        self.text = text
        self.config = config
        self.engine = DecodeEngine(llm, captures=config.cuda_graphs)
        self.encoders.captures = config.cuda_graphs
        self.generate_defaults = GenerateConfig()
        """What `generate`, `generate_each` and `stream` take for options that they are not given."""
        self.alignment: Alignment | None = None
        """The CTC head over audio tokens, where training or a checkpoint brought one."""

    @property
    def loss_terms(self) -> tuple[str, ...]:
        """The names of `LossOutput.parts` in training."""
        return ("answers", "ctc", "distance") if self.config.ctc_weight > 0 else ()

    @property
    def device(self) -> torch.device:
        return self.connector.to_llm.weight.device

    def train(self, mode: bool = True) -> "SALMONN":
        super().train(mode)
        if mode:  # training needs the memory
            self.engine.clear()
        return self

    def _apply(self, *arguments, **options) -> "SALMONN":
        """`.to()` and casts pass here: drop what was computed with the weights as they were."""
        self.engine.clear()
        return super()._apply(*arguments, **options)

    def align_to(self, ids: Tensor) -> Alignment:
        """Put a fresh CTC head on the audio tokens, over these entries of the vocabulary; it trains where
        `model.ctc_weight` is above 0.

        Raises:
            PiecesError: the language model has no text, or no embedding, for one of the ids; nothing is changed.
        """
        rows = self.llm.model.get_input_embeddings().num_embeddings
        pieces = None if self.text is None else Pieces.of(self.text.tokenizer, ids.tolist(), rows)
        ids = ids.to(self.device)
        alignment = Alignment(ids, self.llm.embed(ids)).to(self.device)
        alignment.requires_grad_(self.config.ctc_weight > 0)
        alignment.pieces = pieces
        self.take_alignment(alignment)
        return alignment

    def take_alignment(self, alignment: Alignment | None) -> None:
        """Make `alignment` the CTC head; None leaves the model without one."""
        self.alignment = alignment

    def require_alignment(self) -> Alignment:
        """The CTC head; UserError where there is none."""
        if self.alignment is None:
            raise UserError(
                "this adapter has no alignment: train one with run.stage: align, or with model.ctc_weight above 0"
            )
        return self.alignment

    @torch.no_grad()
    def ctc_texts(
        self, waveforms: Tensor | None, lengths: Tensor | None, frames: list[Frames] | None = None
    ) -> list[str]:
        """The transcript of each clip by the alignment's best path, without the language model.

        Raises:
            UserError: the adapter has no alignment.
        """
        alignment = self.require_alignment()
        with self._evaluating():
            return alignment.texts(*self._connected(waveforms, lengths, frames))

    @property
    def spans(self) -> list[str]:
        """The spans that a clip and its prompt open on the way to the first token: `models.runtime.spans.measured`."""
        encoders = [part for encoder in self.encoders.encoders.values() for part in encoder.spans]
        return [*encoders, "connector", "assemble", "prefill"]

    def encode_frames(
        self, waveforms: Tensor, lengths: Tensor, feature_source: FeatureSource | None = None
    ) -> list[Frames]:
        """The encoders' outputs, a `Frames` each; without gradients where an encoder is frozen.

        Raises:
            ValueError: shapes that do not belong together; lengths that are not within the waveforms, or samples that
                are not finite or not in [-1, 1] (these where they are on the CPU: looking at them elsewhere would
                wait for the device).
        """
        waveforms, lengths = as_clips(waveforms, lengths)
        return self.encoders(waveforms.to(self.device), lengths.to(self.device), feature_source)

    def encode_audio(
        self, waveforms: Tensor | None, lengths: Tensor | None, frames: list[Frames] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Audio tokens `[B, A, H]` and their mask `[B, A]`, True first in each row.

        `frames` are the encoders' outputs, from a cache; the waveforms are then not read.
        """
        return self._merged(*self._connected(waveforms, lengths, frames))

    def _connected(
        self, waveforms: Tensor | None, lengths: Tensor | None, frames: list[Frames] | None
    ) -> tuple[Tensor, Tensor]:
        """The connector's audio tokens and their mask, before the alignment merges any."""
        if frames is None:
            frames = self.encode_frames(waveforms, lengths)
        return self.connector([Frames(f.frames.to(self.device), f.lengths.to(self.device)) for f in frames])

    def _merged(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Fewer tokens where `model.ctc_merge_pause_s` is set and the model is aligned."""
        pause_s = self.config.ctc_merge_pause_s
        if not pause_s or self.alignment is None:
            return tokens, mask
        with torch.no_grad():
            classes = self.alignment.classes(tokens)
        return merge_runs(tokens, mask, classes, max(1, round(pause_s * self.connector.token_rate_hz)))

    @spanned("assemble")
    def assemble(self, tokens: Tensor, mask: Tensor, text_batch: TextBatch) -> Assembled:
        """Put audio tokens at the placeholder: `[BOS, text before][audio][text after][answer, end symbol]`.

        Rows are packed from the left and padded on the right, masked. `labels` are None for a batch without targets.
        Every row's content is a function of that row alone.
        """
        batch, width = mask.shape
        device = tokens.device
        audio_counts = [width] if batch == 1 else mask.sum(dim=1).tolist()
        answers = text_batch.targets or [before[:0] for before in text_batch.before]
        rows = list(zip(text_batch.before, text_batch.after, answers, audio_counts, strict=True))
        text_ids = torch.cat([piece for before, after, answer, _ in rows for piece in (before, after, answer)])
        text_embeds = self.llm.embed(text_ids.to(device))  # [S, H]
        pieces = (
            text_embeds,
            tokens.flatten(0, 1).to(text_embeds.dtype),
            text_embeds.new_zeros(1, self.llm.hidden_size),
        )
        with torch.autocast(device.type, enabled=False):  # to fp16, it refuses bfloat16 embeddings (Gemma's)
            source = torch.cat(pieces)
        row_lengths = [len(before) + count + len(after) + len(answer) for before, after, answer, count in rows]
        longest = max(row_lengths)
        index = torch.full((batch, longest), len(source) - 1)  # [B, L] into `source`; the last row there is the pad
        labels = torch.full((batch, longest), IGNORED)
        text_start = 0
        for row, (before, after, answer, count) in enumerate(rows):
            split = text_start + len(before)
            stop = split + len(after) + len(answer)
            audio_start = len(text_ids) + row * width
            index[row, : row_lengths[row]] = torch.cat(
                [
                    torch.arange(text_start, split),
                    torch.arange(audio_start, audio_start + count),
                    torch.arange(split, stop),
                ]
            )
            labels[row, row_lengths[row] - len(answer) : row_lengths[row]] = answer
            text_start = stop
        embeds = source[index.to(device)]
        positions = torch.arange(longest).expand(batch, -1)
        return Assembled(
            embeds=embeds,
            mask=(positions < torch.tensor(row_lengths)[:, None]).to(device),
            positions=positions.to(device),
            labels=None if text_batch.targets is None else labels.to(device),
            prefixes=None if text_batch.targets else tuple(tuple(before.tolist()) for before in text_batch.before),
        )

    def forward(
        self,
        waveforms: Tensor | None,
        lengths: Tensor | None,
        prompts: list[str] | None = None,
        texts: list[str] | None = None,
        *,
        text_batch: TextBatch | None = None,
        frames: list[Frames] | None = None,
        transcripts: Sequence[str | None] | None = None,
    ) -> LossOutput:
        """Cross-entropy of the answers, summed; give `prompts` and `texts`, or the `text_batch` made from them.

        With `transcripts`, what is said in each clip (None: not known), `model.ctc_weight` times the alignment's loss
        is added.

        Raises:
            ValueError: texts are missing, or there is not one prompt and one text for each clip.
        """
        if text_batch is None:
            if prompts is None or texts is None:
                raise ValueError("the loss needs prompts and texts, or a text_batch; got neither.")
            if frames is None:
                waveforms, lengths = as_clips(waveforms, lengths)
            check_prompts(waveforms, prompts, frames)
            require_texts("texts", texts)
            text_batch = self.text.batch(prompts, texts)
        tokens, mask = self._connected(waveforms, lengths, frames)
        assembled = self.assemble(*self._merged(tokens, mask), text_batch)
        self.require_positions(assembled)
        hidden = self.llm(assembled.embeds, assembled.mask, assembled.positions)
        next_labels = assembled.labels[:, 1:]
        answered = next_labels != IGNORED
        predicting = hidden[:, :-1][answered]  # only where an answer token is predicted: [S, H]
        logits = self.llm.logits(predicting)  # [S, V]
        loss_sum = F.cross_entropy(logits.float(), next_labels[answered], reduction="sum")
        target_tokens = text_batch.target_tokens
        parts: dict[str, Tensor] = {}
        if transcripts is not None and self.config.ctc_weight > 0:
            aligned, parts = self._aligned_to(tokens, mask, transcripts)
            parts = {"answers": loss_sum.detach(), **parts}
            loss_sum = loss_sum + self.config.ctc_weight * aligned
        return LossOutput(loss_sum, target_tokens, loss_sum / max(1, target_tokens), logits, predicting, parts)

    def _aligned_to(
        self, tokens: Tensor, mask: Tensor, transcripts: Sequence[str | None]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The alignment's loss over the clips whose transcript is known, and its terms; a zero with gradients where
        none is."""
        alignment = self.require_alignment()
        known = [row for row, transcript in enumerate(transcripts) if transcript is not None]
        if not known:  # processes that train together all need a gradient for every parameter
            zero = 0.0 * (alignment.blank.sum() + alignment.scale)
            return zero, {"ctc": zero.detach(), "distance": zero.detach()}
        spellings = [torch.tensor(alignment.pieces.spell(transcripts[row]), dtype=torch.long) for row in known]
        loss, parts, _ = self._alignment_loss(tokens[known], mask[known], spellings)
        return loss, parts

    def _alignment_loss(
        self, tokens: Tensor, mask: Tensor, spellings: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """CTC and `model.alignment_distance` times the tokens' distance, summed; the terms alone; logits."""
        ctc, distance, logits = self.require_alignment().losses(tokens, mask, spellings)
        parts = {"ctc": ctc.detach(), "distance": distance.detach()}
        return ctc + self.config.alignment_distance * distance, parts, logits.detach()

    @torch.no_grad()
    def generate(
        self,
        waveforms: Tensor | None,
        lengths: Tensor | None,
        prompts: list[str],
        *,
        frames: list[Frames] | None = None,
        return_details: bool = False,
        **options: object,
    ) -> list[str] | list[Generation]:
        """Text for each clip; `options` are the fields of `GenerateOptions`, by default as in `generate_defaults`.

        With `return_details` the tokens, their log-probabilities and the reason for stopping come with the text.

        Raises:
            ValueError: there is not one prompt for each clip, or shapes do not belong together.
        """
        settings = self._options(options)
        with self._evaluating():
            assembled = self._prompted(waveforms, lengths, prompts, frames, settings.max_new_tokens)
            generations = self._decoded(assembled, settings)
        return generations if return_details else [each.text for each in generations]

    @torch.no_grad()
    def generate_each(
        self, batches: Iterable[Clips], *, at_once: int, frame_source: FrameSource | None = None, **options: object
    ) -> Iterator[tuple[int, Generation]]:
        """The hypothesis of every clip of many batches, with its number among all clips, in the order they finish.

        A batch is encoded together; its clips are decoded `at_once` at a time, and where one has finished, the next
        takes its slot. Texts are those of `generate` for one clip after another. A batch that does not fit into the
        GPU's memory is divided. `frame_source` gives encoder outputs, from a cache.
        """
        settings = self._options(options)

        def prompted(*clips: Tensor | list[str]) -> Assembled:
            frames = frame_source(*clips[:2]) if frame_source else None
            return self._prompted(*clips, frames, settings.max_new_tokens)

        with self._evaluating():
            yield from self._decoded_each(prompted, batches, settings, at_once)

    def _decoded(self, assembled: Assembled, settings: GenerateOptions) -> list[Generation]:
        return generate(self.engine, assembled, self.text, settings)

    def _decoded_each(
        self, prompted: Callable[..., Assembled], batches: Iterable[Clips], settings: GenerateOptions, at_once: int
    ) -> Iterator[tuple[int, Generation]]:
        def rows() -> Iterator[Assembled]:
            for clips in batches:
                yield from halving_on_oom(lambda *part: split(prompted(*part)), *clips)

        return decode_each(self.engine, self.text, settings, rows(), at_once=at_once)

    @torch.no_grad()
    def stream(self, waveform: Tensor, prompt: str, **options: object) -> Iterator[str]:
        """The text for one clip `[T]`, piece by piece as it is decoded: greedy or sampled, never beams, whatever
        `generate_defaults` says of these."""
        settings = self._options({"num_beams": 1, **options})
        with self._evaluating():
            samples = as_waveform(waveform)[None]
            lengths = torch.tensor([samples.shape[-1]])
            assembled = self._prompted(samples, lengths, [prompt], None, settings.max_new_tokens)
            yield from stream(self.engine, assembled, self.text, settings)

    def _prompted(
        self,
        waveforms: Tensor | None,
        lengths: Tensor | None,
        prompts: list[str],
        frames: list[Frames] | None,
        new_tokens: int,
    ) -> Assembled:
        if frames is None:
            waveforms, lengths = as_clips(waveforms, lengths)
        check_prompts(waveforms, prompts, frames)
        tokens, mask = self.encode_audio(waveforms, lengths, frames)
        assembled = self.assemble(tokens, mask, self.text.batch(prompts))
        self.require_positions(assembled, new_tokens)
        return assembled

    def audio_tokens(self, samples: int) -> int:
        """`A` of a clip of so many samples; with `model.ctc_merge_pause_s` the most that it can be."""
        return self.connector.token_count(self.encoders.frame_count(samples))

    def require_positions(self, assembled: Assembled, new_tokens: int = 0) -> None:
        """Raise UserError where a row and its answer are longer than the language model's positions."""
        limit = None if self.text is None else self.llm.positions  # a planned clip is a supposed one
        if limit is not None and assembled.embeds.shape[1] + new_tokens > limit:
            lengths = assembled.mask.sum(dim=1)
            row = int(lengths.argmax())
            raise UserError(
                f"clip {row} of the batch takes {int(lengths[row])} tokens of prompt, audio and text"
                f"{f' and up to {new_tokens} new ones' if new_tokens else ''}; the language model has {limit} "
                "positions. Shorten the clip or its text, or lower max_new_tokens"
            )

    def _options(self, given: dict[str, object]) -> GenerateOptions:
        known = [field.name for field in fields(GenerateOptions)]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                meant = f" (did you mean {near[0]}?)" if near else ""
                raise UserError(f"there is no option {name!r} of generation{meant}; expected {', '.join(known)}")
        return GenerateOptions(**(asdict(self.generate_defaults) | {"stop_id": self.text.stop_id} | given))

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    @contextmanager
    def without_cuda_graphs(self) -> Iterator[None]:
        """Run kernel by kernel while the context is open, so that what a call does can be counted."""
        parts = [self.encoders, self.engine]
        captured = [part.captures for part in parts]
        replays = {encoder: encoder.replays for encoder in self.encoders.encoders.values()}
        for part in parts:
            part.captures = False
        for encoder in replays:
            encoder.replays = None
        try:
            yield
        finally:
            for part, before in zip(parts, captured, strict=True):
                part.captures = before
            for encoder, before in replays.items():
                encoder.replays = before

    def merge_for_serving(self) -> str:
        """Add LoRA into the language model's weights where that rounds nothing anew, which spares its products in every
        layer and token; says where LoRA is. The model is for evaluation from then on.
        """
        if not any(True for _ in self.llm.lora_layers()):
            return "none"
        merged = self.merges_lora and self.llm.merge_lora()
        return "merged into the weights" if merged else "next to the weights"

    def adapter_parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter that training changes."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)


def halving_on_oom(
    work: Callable[[Tensor, Tensor, list[str]], list[Result]], waveforms: Tensor, lengths: Tensor, prompts: list[str]
) -> list[Result]:
    """`work`'s result for each clip; halves of the batch are done one after the other if the whole runs out of GPU
    memory."""
    try:
        return work(waveforms, lengths, prompts)
    except torch.cuda.OutOfMemoryError:
        if len(prompts) == 1:
            raise
    torch.cuda.empty_cache()
    half, lengths = len(prompts) // 2, torch.as_tensor(lengths)
    results: list[Result] = []
    for rows in (slice(0, half), slice(half, None)):
        longest = int(lengths[rows].max())
        results += halving_on_oom(work, waveforms[rows, :longest], lengths[rows], prompts[rows])
    return results


def check_prompts(waveforms: Tensor | None, prompts: list[str], frames: list[Frames] | None) -> None:
    """Raise ValueError unless there is one prompt for each clip, which come as waveforms or as frames."""
    require_texts("prompts", prompts)
    clips = len(waveforms) if frames is None else len(frames[0].lengths)
    if len(prompts) != clips:
        raise ValueError(f"got {len(prompts)} prompts for {clips} clips; expected a prompt for each clip.")

"""What `model.legacy` changes: the rules of SALMONN's public code where this program has others.

`rules_of(config)` returns them as plain values (`Rules`), and the classes that follow them are here. The parts of the
program take these values and do not read `model.legacy`.

`weights`: the public code's answer for a clip alone, for every row of a batch. Checkpoints depend on these rules.

- A clip under one second is extended to one with silence. Whisper always gets 30 s, BEATs' fbank is computed in
  float64, CED takes 30 s in one piece and its tokens stay in the network's order.
- Encoder outputs are put next to each other by index, whatever their rates. A last window that is not full is dropped.
- An answer and the end symbol are tokenised as one string, and cut together.
- Token id 2 ends a clip, whichever token that is; with beams, where the best running beam has generated it.

`exact`: its bugs too, by which a row's answer depends on its batch.

- Clips are cut to 30 s. BEATs and CED encode the batch's padding as if it were sound (`encode_released`). The Q-Former
  reads their output for padding as well: the masks of audio are all ones.
- Texts after the audio are filled with `[PAD]` before the answer; the positions count these pads in training and skip
  them in generation, where a shorter row continues from its last pad.
- All rows stop when the first, or its best running beam, has generated token id 2.
- In training frozen encoders behave as if they trained: BEATs leaves layers out, CED's BatchNorm takes the batch's
  statistics, and its own drift.
- Hypotheses keep special tokens; only the end symbol, as text, ends them.
- Warm-up restarts each epoch. With `multi_prompt: false` a batch of one task has one prompt. In evaluation clips keep
  their first channel, and `{}` stays in prompts; in training the former.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import BoolTensor, LongTensor, Tensor
from torch.nn.utils.rnn import pad_sequence

from configs.sections import ModelConfig
from models.checkpoint.adapter_tensors import loaded_names
from models.decoding.continuous_batching import ContinuousBatch
from models.decoding.hypothesis import Generation
from models.decoding.scores import GenerateOptions
from models.encoders.base import AudioEncoder, FeatureSource
from models.encoders.beats import BEATs
from models.encoders.ced import CED, PATCH
from models.encoders.features import decibel_spectrogram
from models.encoders.table import OWN_RULES, EncoderRules
from models.frames import Frames, length_mask
from models.language.sequence import Assembled
from models.language.text import TextBatch, TextProcessor
from models.runtime.spans import span, spanned
from models.salmonn import IGNORED, SALMONN, Clips, halving_on_oom
from support.command_line import UserError
from support.units import SAMPLE_RATE
from support.waveforms import as_clips

log = logging.getLogger(__name__)

MIN_SAMPLES = SAMPLE_RATE  # 1 s
MAX_SAMPLES = 30 * SAMPLE_RATE
STOP_ID = 2  # `</s>` in the vocabularies of Llama 1 and 2; the public code has the number


class ReleasedText(TextProcessor):
    """Targets are tokenised together with the end symbol, which the length limit may cut off; `STOP_ID` ends a row."""

    stop_id = STOP_ID

    def _target_ids(self, text: str) -> Tensor:
        return torch.tensor(self.plain.ids_between("", text, self.end_sym)[: self.max_txt_len], dtype=torch.long)


class ExactText(ReleasedText):
    """Special tokens stay in a hypothesis, and only the first end symbol ends it."""

    def decode_raw(self, ids: Iterable[int] | Tensor) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def cut_at_stop(self, text: str) -> str:
        return text.split(self.end_sym, 1)[0] if self.end_sym else text


class ExactSALMONN(SALMONN):
    """SALMONN as in the public code, including what depends on the batch."""

    merges_lora = False
    _named_cut = False

    def encode_frames(
        self, waveforms: Tensor, lengths: LongTensor, feature_source: FeatureSource | None = None
    ) -> list[Frames]:
        waveforms, lengths = as_clips(waveforms, lengths)
        waveforms, lengths = waveforms.to(self.device), lengths.to(self.device)
        longest = int(lengths.max())
        if longest > MAX_SAMPLES and not self._named_cut:
            self._named_cut = True
            log.warning("clips over %g s are cut to it, as model.legacy = exact asks", MAX_SAMPLES / SAMPLE_RATE)
        width = min(max(longest, MIN_SAMPLES), MAX_SAMPLES)
        waveforms = torch.nn.functional.pad(waveforms, (0, max(0, width - waveforms.shape[1])))[:, :width]
        outside = torch.arange(width, device=self.device) >= lengths[:, None]
        waveforms = waveforms.masked_fill(outside, 0)
        lengths = lengths.clamp(MIN_SAMPLES, MAX_SAMPLES)
        outputs = []
        for name, encoder in self.encoders.encoders.items():
            mode = in_train_mode(encoder) if self.training and self.encoders.frozen[name] else nullcontext()
            with mode, torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoders.frozen[name]):
                frames, _ = encode_released(encoder, waveforms, lengths, feature_source)
            if self.training and isinstance(encoder, CED):
                self._keep_statistics(name, encoder)
            outputs.append(Frames(frames, torch.full_like(lengths, frames.shape[1])))
        return outputs

    @spanned("assemble")
    def assemble(self, tokens: Tensor, mask: Tensor, text_batch: TextBatch) -> Assembled:
        """`[BOS, text before][audio][text after, pads][answer, pads]`, each part as wide as the batch's longest."""
        before = text_batch.before
        if len({len(row) for row in before}) > 1:
            raise UserError(
                "model.legacy = exact: the prompts of a batch differ in tokens before the audio, which the public code "
                f"cannot join ({[len(row) for row in before]}); use model.legacy=weights, or batches of one."
            )
        device = tokens.device
        parts = [self._padded(before), (tokens, mask), self._padded(text_batch.after)]
        answers = text_batch.targets
        if answers is not None:
            parts.append(self._padded(answers))
        present = torch.cat([part.to(device) for _, part in parts], dim=1)  # [B, L]
        positions = torch.arange(present.shape[1], device=device).expand(present.shape)
        labels = ends = None
        if answers is None:
            positions = (present.long().cumsum(dim=1) - 1).masked_fill(~present, 1)
            ends = torch.full_like(positions[:, 0], present.shape[1])
        else:
            written = pad_sequence(answers, batch_first=True, padding_value=IGNORED).to(device)
            labels = torch.full_like(positions, IGNORED)
            labels[:, labels.shape[1] - written.shape[1] :] = written
        dtype = parts[0][0].dtype
        return Assembled(
            embeds=torch.cat([part.to(dtype) for part, _ in parts], dim=1),
            mask=present,
            positions=positions,
            labels=labels,
            ends=ends,
        )

    def _decoded(self, assembled: Assembled, settings: GenerateOptions) -> list[Generation]:
        """All rows stop when the first one, or its best running beam, has generated the stop id."""
        batch = ContinuousBatch(self.engine, self.text, replace(settings, stop_id=None), slots=len(assembled))
        results: dict[int, Generation] = {}
        done = batch.add(assembled, range(len(assembled)))
        while True:
            stops = 0 not in results and batch.tokens(0)[-1] == settings.stop_id
            results |= done
            if stops:
                results |= batch.stop()
                if settings.num_beams == 1:
                    results = {row: replace(result, stop_reason="end") for row, result in results.items()}
            if not len(batch):
                return [results[row] for row in range(len(assembled))]
            done = batch.step()

    def _decoded_each(
        self, prompted: Callable[..., Assembled], batches: Iterable[Clips], settings: GenerateOptions, at_once: int
    ) -> Iterator[tuple[int, Generation]]:
        """Each batch is decoded separately."""
        return enumerate(
            result
            for clips in batches
            for result in halving_on_oom(lambda *part: self._decoded(prompted(*part), settings), *clips)
        )

    def _keep_statistics(self, name: str, encoder: CED) -> None:
        """Let adapters contain the BatchNorm's statistics, which training has changed."""
        prefix = f"encoders.encoders.{name}.init_bn."
        self._loaded_adapter_names = loaded_names(self) | {prefix + key for key in encoder.init_bn.state_dict()}

    def _padded(self, rows: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Embeddings `[B, S, H]` of right-padded rows, and a mask `[B, S]` of their tokens."""
        appended = getattr(self.llm, "pad_rows", None)
        pad_id = 0 if appended is None else self.llm.vocab_size - len(appended.embedding)
        ids = pad_sequence(rows, batch_first=True, padding_value=pad_id).to(self.device)
        sizes = torch.tensor([[len(row)] for row in rows], device=self.device)
        present = torch.arange(ids.shape[1], device=self.device) < sizes
        embeds = self.llm.embed(ids)
        # Without its row, [PAD] is zero. Only the first generated token of a shorter row depends on it.
        return (embeds if appended is not None else embeds.masked_fill(~present[..., None], 0)), present


def encode_released(
    encoder: AudioEncoder, waveforms: Tensor, lengths: LongTensor, feature_source: FeatureSource | None = None
) -> tuple[Tensor, LongTensor]:
    """A padded batch [B, T], [B] samples -> frames [B, N, D], frame_lengths [B] of the encoder's public code.

    They depend on the batch. BEATs reduces its padding mask by repeated division (`reduce_padding`), and its frames
    after a clip's end are not zero. CED has no lengths, and a floor 120 dB below the batch's loudest bin. Other
    encoders get no mask.
    """
    width = waveforms.shape[1]
    whole = torch.full_like(lengths, width)
    if not isinstance(encoder, BEATs | CED):
        return encoder.run(waveforms, whole, feature_source)
    with span("encoder", encoder.name):
        features = None if feature_source is None else feature_source(encoder, waveforms, lengths)
        if isinstance(encoder, BEATs):
            with torch.autocast(waveforms.device.type, enabled=False):
                fbank, _ = features or encoder.features(waveforms, whole)
                tokens = encoder.embed_patches(fbank)
                frame_mask = reduce_padding(~length_mask(lengths, width), fbank.shape[1])
                padded = reduce_padding(frame_mask, tokens.shape[1])
                return encoder.encoder(tokens, padded), (~padded).sum(dim=1)
        if features is None:
            with span("features", encoder.name):
                features = decibel_spectrogram(waveforms, lengths, batch_floor=True), whole
        spectrogram, _ = features
        steps = torch.full_like(lengths, spectrogram.shape[-1] // PATCH)
        tokens = encoder.encode_spectrogram(encoder.normalise(spectrogram), steps)
        return encoder.in_order(tokens, steps, spectrogram.shape[-1] // PATCH)


def reduce_padding(padded: BoolTensor, count: int) -> BoolTensor:
    """[B, n] -> [B, count]: drop the last n % count; a run of the others is padding if all of it is."""
    size = padded.shape[1]
    return padded[:, : size - size % count].unflatten(1, (count, -1)).all(dim=-1)


@contextmanager
def in_train_mode(encoder: AudioEncoder) -> Iterator[None]:
    """A frozen encoder in the state of the public code's `model.train()`, which does not set it back to eval."""
    encoder.train()
    if isinstance(encoder, CED):
        encoder.init_bn.train()
    elif isinstance(encoder, BEATs):
        encoder.encoder.layer_drop = encoder.config.encoder_layerdrop
    try:
        yield
    finally:
        encoder.eval()
        if isinstance(encoder, BEATs):
            encoder.encoder.layer_drop = 0.0


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What `model.legacy` means for the parts of the program; the defaults are this program's own rules."""

    model: type[SALMONN] = SALMONN
    text: type[TextProcessor] = TextProcessor
    encoders: EncoderRules = OWN_RULES
    align_by_index: bool = False
    """Encoder outputs are put next to each other by index, whatever their rates."""
    keep_partial_window: bool = True
    """A last window that is not full counts."""
    first_channel: bool = False
    """Of several channels a clip has the first, not their mean."""
    fill_questions: bool = True
    """In evaluation, a prompt's `{}` becomes the clip's question."""
    common_prompt: bool = False
    """A batch of one task has one prompt."""
    restart_warmup: bool = False
    """Warm-up of the learning rate counts the iterations within an epoch."""
    cuts_at_s: float | None = None
    """Longer clips are cut to it."""
    keep_special_tokens: bool = False
    """A hypothesis keeps the special tokens that its end symbol leaves in it."""


RELEASED_ENCODERS = EncoderRules(
    window="full",
    fbank_dtype=torch.float64,
    ced_options={"target_length": 3001, "rescale": True, "frequency_major": True},  # those of nlp-07
    min_samples=MIN_SAMPLES,
)
WEIGHTS = Rules(
    text=ReleasedText,
    encoders=RELEASED_ENCODERS,
    align_by_index=True,
    keep_partial_window=False,
)
EXACT = replace(
    WEIGHTS,
    model=ExactSALMONN,
    text=ExactText,
    encoders=replace(RELEASED_ENCODERS, depends_on_batch=True),
    first_channel=True,
    fill_questions=False,
    restart_warmup=True,
    cuts_at_s=MAX_SAMPLES / SAMPLE_RATE,
    keep_special_tokens=True,
)
RULES: dict[str, Rules] = {"off": Rules(), "weights": WEIGHTS, "exact": EXACT}


def rules_of(config: ModelConfig) -> Rules:
    """The rules of `model.legacy`."""
    rules = RULES[config.legacy]
    return replace(rules, common_prompt=not config.multi_prompt) if rules is EXACT else rules

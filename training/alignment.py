"""The alignment's pieces, chosen from the training transcripts; and which clips CTC cannot align."""

from collections.abc import Sequence

import torch

from data.annotations import Annotation
from models.alignment.ctc import fits
from models.alignment.pieces import Pieces, PiecesError
from models.checkpoint.adapter_tensors import loaded_names
from models.salmonn import SALMONN
from scoring.tasks import is_transcript
from support.command_line import UserError
from support.units import SAMPLE_RATE

NAMED = 3


def choose_pieces(model: SALMONN, annotations: Sequence[Annotation], min_count: int) -> None:
    """Put a CTC head on the model, over pieces that are met `min_count` times in the transcripts.

    One that it has already hands on its blank and its scale, which the audio tokens were trained for.

    Raises:
        UserError: there is no transcript, or one cannot be spelled.
    """
    texts = [text for annotation in transcribed(annotations) for text in references(annotation)]
    if not texts:
        raise UserError(
            "model.ctc_weight is above 0, but no training clip has a transcript (the task asr, or asr_ and a "
            "language); add some, or set it to 0"
        )
    pieces = Pieces.from_texts(model.text.tokenizer, texts, min_count)
    before = model.alignment
    alignment = model.align_to(torch.tensor(pieces.ids))
    if before is not None:
        with torch.no_grad():
            alignment.blank.copy_(before.blank)
            alignment.scale.copy_(before.scale)
    if not loaded_names(model) and not model.config.speech_llama_proj_model:
        # A fresh projection: its tokens start among the embeddings.
        projection = model.connector.to_llm
        with torch.no_grad():
            fresh = projection.weight.square().sum()  # of normed inputs, the mean squared norm of the outputs
            projection.weight *= (alignment.variance / fresh).sqrt()
            projection.bias.copy_(alignment.table.mean(dim=0))


def require_spelled(model: SALMONN, annotations: Sequence[Annotation]) -> None:
    """Raise PiecesError, naming the clip, where a transcript cannot be spelled in the model's pieces."""
    for annotation in transcribed(annotations):
        for text in references(annotation):
            try:
                model.alignment.pieces.spell(text)
            except PiecesError as error:
                raise PiecesError(f"{annotation.source or annotation.path}: {error}") from error


def describe_alignment(model: SALMONN, annotations: Sequence[Annotation], durations_s: Sequence[float]) -> str:
    """One line on the pieces, and a warning where clips have more pieces than audio tokens.

    Raises:
        UserError: no clip has enough audio tokens.
    """
    pieces = model.alignment.pieces
    clips = [
        (annotation, model.audio_tokens(round(duration_s * SAMPLE_RATE)), pieces.spell(references(annotation)[0]))
        for annotation, duration_s in zip(annotations, durations_s, strict=True)
        if is_transcript(annotation.task)
    ]
    count = sum(len(spelling) for _, _, spelling in clips)
    words = sum(len(references(annotation)[0].split()) for annotation, _, _ in clips)
    tokens = sum(available for _, available, _ in clips)
    line = (
        f"alignment: {len(pieces):,} pieces of the language model's {model.llm.vocab_size:,}; "
        f"{count / max(1, words):.2f} a word, {tokens / max(1, count):.1f} audio tokens a piece"
    )
    misfits = [(annotation, len(spelling), available) for annotation, available, spelling in clips
               if not fits(spelling, available)]  # fmt: skip
    if not misfits:
        return line
    worst = "; ".join(
        f"{annotation.source or annotation.path}: {needed} pieces, {available} audio tokens"
        for annotation, needed, available in sorted(misfits, key=lambda each: each[2] - each[1])[:NAMED]
    )
    found = f"{len(misfits):,} of {len(clips):,} transcripts have more pieces than their clips have audio tokens"
    remedy = "lower model.second_stride (and second_per_window), or raise model.num_speech_query_token"
    if len(misfits) == len(clips):
        raise UserError(f"alignment: {found} ({worst}); {remedy}")
    return f"{line}\nwarning: {found}; they teach the alignment nothing ({worst}). To use them, {remedy}"


def transcribed(annotations: Sequence[Annotation]) -> list[Annotation]:
    """The clips whose text is what is said in them."""
    return [annotation for annotation in annotations if is_transcript(annotation.task)]


def references(annotation: Annotation) -> tuple[str, ...]:
    return annotation.texts or (annotation.text,)

"""The rows of a `[PAD]` token after the vocabulary, which some released checkpoints have."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.checkpoint.adapter_tensors import PAD_ROWS, CheckpointError
from models.language.llm import LanguageModel

EMBEDDING_ROW, HEAD_ROW = f"{PAD_ROWS}embedding", f"{PAD_ROWS}head"


def is_tied(llm: LanguageModel) -> bool:
    """Whether the output head is the embedding itself."""
    return llm.model.get_input_embeddings().weight is llm.model.get_output_embeddings().weight


def split_pad_rows(state: dict[str, Tensor], own: dict[str, tuple[Tensor, bool]]) -> dict[str, Tensor]:
    """Remove the vocabulary's extra rows from an adapter's tensors, and from the model's where both have them."""
    rows = {name: state.pop(name) for name in (EMBEDDING_ROW, HEAD_ROW) if name in state}
    for name in rows:
        own.pop(name, None)
    return rows


def append_pad_rows(llm: LanguageModel, rows: Mapping[str, Tensor]) -> None:
    """Extend the vocabulary by `rows` (`EMBEDDING_ROW`, and `HEAD_ROW` unless tied), or replace those appended before.

    They are also buffers of `llm`, so that an adapter saves them.
    """
    _check_pad_rows(llm, rows)
    tied = is_tied(llm)
    count, old = len(rows[EMBEDDING_ROW]), _appended(llm)
    if count != old:
        llm.model.resize_token_embeddings(llm.vocab_size + count - old, mean_resizing=False)
        llm.model.get_input_embeddings().weight.requires_grad_(False)
        llm.model.get_output_embeddings().weight.requires_grad_(False)
    kept = nn.Module()
    with torch.no_grad():
        for name, table in (
            (EMBEDDING_ROW, llm.model.get_input_embeddings()),
            (HEAD_ROW, None if tied else llm.model.get_output_embeddings()),
        ):
            if table is not None:
                table.weight[-count:].copy_(rows[name])
                kept.register_buffer(name.removeprefix(PAD_ROWS), rows[name].detach().clone().to(llm.device))
    llm.pad_rows = kept


def _appended(llm: LanguageModel) -> int:
    """Rows that the vocabulary was extended by so far."""
    rows = getattr(llm, "pad_rows", None)
    return 0 if rows is None else len(rows.embedding)


def read_pad_rows(source: Mapping[str, Tensor] | str | Path) -> dict[str, Tensor]:
    """`[PAD]` rows by their names in an adapter, from tensors with their names in the language model's files."""
    if isinstance(source, str | Path):
        try:
            source = load_file(source)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"pad_rows: {source} cannot be read as safetensors ({error}).") from error
    rows = {}
    for name, row in source.items():
        if not name.endswith(("embed_tokens.weight", "lm_head.weight")):
            raise CheckpointError(f"pad_rows contain {name!r}; expected embed_tokens.weight and lm_head.weight.")
        rows[HEAD_ROW if name.endswith("lm_head.weight") else EMBEDDING_ROW] = row
    return rows


def pad_rows_of_head(head: Tensor, vocabulary: int) -> dict[str, Tensor]:
    """The `[PAD]` rows in a tied head, for a language model with a vocabulary of so many rows."""
    if len(head) > vocabulary:
        return {EMBEDDING_ROW: head[vocabulary:]}
    # These trainers also remove rows without a token of the tokenizer; the last remaining one is then [PAD]'s.
    return {EMBEDDING_ROW: head[-1:]} if len(head) < vocabulary else {}


def vocabulary_rows(
    llm: LanguageModel, head: Tensor | None, pad_rows: Mapping[str, Tensor] | str | Path | None
) -> dict[str, Tensor]:
    """The `[PAD]` rows: those given, else those of a tied head in the file, else none."""
    tied = is_tied(llm)
    if pad_rows is None:
        if head is None or head.dim() != 2 or not tied:
            return {}
        return pad_rows_of_head(head, llm.vocab_size - _appended(llm))
    rows = read_pad_rows(pad_rows)
    if tied and HEAD_ROW in rows:
        rows = {EMBEDDING_ROW: rows.get(EMBEDDING_ROW, rows[HEAD_ROW])}
    _check_pad_rows(llm, rows)
    return rows


def _check_pad_rows(llm: LanguageModel, rows: Mapping[str, Tensor]) -> None:
    needed = (EMBEDDING_ROW,) if is_tied(llm) else (EMBEDDING_ROW, HEAD_ROW)
    count = len(rows[EMBEDDING_ROW]) if EMBEDDING_ROW in rows else 1
    for name in needed:
        found = list(rows[name].shape) if name in rows else "absent"
        if found != [max(1, count), llm.hidden_size]:
            part = "embed_tokens.weight" if name == EMBEDDING_ROW else "lm_head.weight"
            raise CheckpointError(
                f"the vocabulary's [PAD] row of {part} is {found}, expected [{max(1, count)}, {llm.hidden_size}]."
            )

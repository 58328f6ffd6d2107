"""Whether a tokenizer's ids are within the language model's embeddings."""

from models.language.text import TextProcessor
from support.command_line import UserError

SHOWN = 5


def require_rows(text: TextProcessor, rows: int, path: str) -> None:
    """Raise UserError where text, template or end symbol could make an id for which the embeddings have no row.

    Special tokens beyond the rows that nothing uses pass: some released tokenizers have a `[PAD]` that their model was
    never given.
    """
    used = text.control_ids()
    beyond = {
        token: id
        for token, id in text.tokenizer.get_vocab().items()
        if id >= rows and (id in used or not text.plain.is_special(id))
    }
    if beyond:
        shown = ", ".join(f"{token!r} ({id})" for token, id in sorted(beyond.items(), key=lambda item: item[1])[:SHOWN])
        more = f" and {len(beyond) - SHOWN} more" if len(beyond) > SHOWN else ""
        raise UserError(
            f"model.llama_path: {path!r} has embeddings for {rows} tokens, but its tokenizer makes the ids of {shown}"
            f"{more}; take the tokenizer that belongs to these weights, or weights that were resized for it"
        )

"""Text that users wrote, tokenised so that it never makes a special token.

Transcripts hold `</s>`, `<unk>` or `<|im_end|>` as words (SSML, TED-LIUM, scraped chats). Tokenised like a template
they would end the answer, or become a token that is not decoded again.
"""

import re
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from support.command_line import UserError


class PlainText:
    """Ids of text in which nothing is a special token; text without special tokens has its usual ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = _special_tokens(tokenizer)  # id -> spelling
        self._unknown = tokenizer.unk_token_id
        literals = sorted(filter(None, self._special.values()), key=len, reverse=True)
        self._any_literal = re.compile("|".join(map(re.escape, literals)) or r"(?!)")

    def ids(self, text: str) -> list[int]:
        """The ids of user text.

        Raises:
            UserError: the tokenizer has no other way to write it than with a special token.
        """
        if not text:
            return []
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        if not self._specials_in(ids, text):
            return ids
        ids = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        if not self._specials_in(ids, text):
            return ids
        # The vocabulary itself holds the spelling as a piece (unigram models do): write it letter by letter.
        spelled: list[int] = []
        for token, source in self._with_sources(text):
            spelled += self._letters(source) if self._any_literal.search(source) else [token]
        return spelled

    def ids_between(self, opening: str, user_text: str, closing: str) -> list[int]:
        """The ids of the three as one text, in which `opening` and `closing` alone may hold special tokens."""
        whole = opening + user_text + closing
        if not whole:
            return []
        ids = self._tokenizer.encode(whole, add_special_tokens=False)
        own = sum(len(self._any_literal.findall(trusted)) for trusted in (opening, closing))
        if self._specials_in(ids, whole) <= own:
            return ids
        # The template's special tokens next to the user's text bound it: what is between them is plain text.
        head_end = max((match.end() for match in self._any_literal.finditer(opening)), default=0)
        first = self._any_literal.search(closing)
        tail_start = first.start() if first else len(closing)
        return [
            *self._tokenizer.encode(opening[:head_end], add_special_tokens=False),
            *self.ids(opening[head_end:] + user_text + closing[:tail_start]),
            *self._tokenizer.encode(closing[tail_start:], add_special_tokens=False),
        ]

    def is_special(self, id: int) -> bool:
        """Whether a token controls a model."""
        return id in self._special

    def spelled_in(self, text: str) -> list[str]:
        """The special tokens whose spelling is in a text."""
        return self._any_literal.findall(text)

    def unknown_tokens(self, text: str) -> int:
        """How many tokens of user text are the tokenizer's unknown token, which is never decoded again."""
        return 0 if self._unknown is None else self.ids(text).count(self._unknown)

    def _specials_in(self, ids: Sequence[int], text: str) -> int:
        """Special tokens among the ids. The unknown token counts where its spelling is in the text: it also stands for
        characters that the vocabulary lacks."""
        unknown_is_spelled = self._unknown is not None and self._special.get(self._unknown, "") in text
        return sum(token in self._special and (token != self._unknown or unknown_is_spelled) for token in ids)

    def _with_sources(self, text: str) -> list[tuple[int, str]]:
        """The tokens of plain text, each with the part of the text that it stands for, where it is a special token."""
        if not self._tokenizer.is_fast:
            ids = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
            return [(id, self._special.get(id, "")) for id in ids]
        encoded = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return [(id, text[start:stop] if id in self._special else "") for id, (start, stop) in pairs]

    def _letters(self, source: str) -> list[int]:
        ids = [self._tokenizer.convert_tokens_to_ids(letter) for letter in source]
        if None in ids:
            raise UserError(
                f"a text holds {source!r}, a special token of this tokenizer, whose vocabulary lacks some of its "
                "letters: it cannot be written as plain text; remove it from the text"
            )
        return ids


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Id -> spelling of the tokens that control a model."""
    added = {id: token.content for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    named: Iterable[int] = tokenizer.all_special_ids
    return added | {id: tokenizer.convert_ids_to_tokens(id) for id in named}

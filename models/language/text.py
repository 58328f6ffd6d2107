"""Text on its way to and from the language model: tokenizer, template, BOS, end symbol, stop strings, pads; no weights.

A prompt is put into the template, split at `<SpeechHere>`, and its two pieces are tokenised apart and without adding
special tokens, as the SALMONN family does; BOS is added once, by id. A target is the answer's tokens and then the end
symbol's. Special tokens come from the template and the end symbol alone: what a prompt, a question or a transcript
spells is plain text (`plain_text.py`).
"""

import importlib
import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import cached_file

from configs.sections import ModelConfig
from models.hub import loading_problem, located, require_real_files
from models.language.plain_text import PlainText
from models.runtime.spans import spanned
from support.command_line import UserError
from support.file_kinds import mistaken
from support.texts import require_texts

# Loader workers are forked after the tokenizer was used: its own threads would only print a warning and switch off.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

log = logging.getLogger(__name__)

PLACEHOLDER = "<SpeechHere>"
MARKED_PLACEHOLDER = f"<Speech>{PLACEHOLDER}</Speech>"
ESCAPE = re.compile(r"\\(?:[nrt]|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2})")
UNDECODED = "\ufffd"  # what a tokenizer shows for the first bytes of a character whose others are still to come
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
)
SENTENCEPIECE_PACKAGES = ("sentencepiece", "google.protobuf")
TOKENIZED_PROMPTS_KEPT = 4096  # prompts are few and repeat; a corpus of questions is not kept whole


@dataclass(frozen=True)
class TextBatch:
    """Token ids of a batch: `before` the audio (BOS included), `after` it, and `targets` (end symbol included).

    Each list holds one LongTensor a row. `targets` is None where text is to be generated.
    """

    before: list[Tensor]
    after: list[Tensor]
    targets: list[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.before)

    @property
    def target_tokens(self) -> int:
        """Tokens under the loss, end symbols included."""
        return sum(len(target) for target in self.targets or ())

    def to(self, device: torch.device | str) -> "TextBatch":
        return self._map(lambda tensor: tensor.to(device))

    def pin_memory(self) -> "TextBatch":
        return self._map(Tensor.pin_memory)

    # A tensor from a loader's worker costs a file descriptor, and a batch has dozens: arrays are sent instead.

    def __getstate__(self) -> dict[str, Any]:
        return vars(self._map(Tensor.numpy))

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(vars(TextBatch(**state)._map(torch.from_numpy)))

    def _map(self, change) -> "TextBatch":
        def changed(tensors: list[Tensor]) -> list[Tensor]:
            return [change(tensor) for tensor in tensors]

        return TextBatch(
            changed(self.before), changed(self.after), None if self.targets is None else changed(self.targets)
        )


class TextProcessor:
    """Strings in, `TextBatch` out, and generated ids back to a string.

    `bos_ids` are empty for a tokenizer without BOS (Qwen). `eos_ids` are all ids that end an answer; an end symbol of
    several tokens (`</s>` on Llama 3 is three) is a stop string instead. `pad_id` never enlarges the vocabulary.
    """

    stop_id: int | None = None
    """What `SALMONN.generate` takes as `GenerateOptions.stop_id`."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prompt_template: str = "",
        end_sym: str = ModelConfig.end_sym,
        bos_token: str | None = ModelConfig.bos_token,
        stop_strings: Sequence[str] = ModelConfig.stop_strings,
        max_txt_len: int = ModelConfig.max_txt_len,
        extra_eos_ids: Iterable[int] = (),
    ) -> None:
        for key, value in (("prompt_template", prompt_template), ("end_sym", end_sym), ("stop_strings", stop_strings)):
            _warn_of_escapes(key, value)
        self.tokenizer = tokenizer
        self.plain = PlainText(tokenizer)
        self.prompt_template = prompt_template or "{}"
        self.max_txt_len = max_txt_len
        self.end_sym = end_sym
        self.bos_ids = _bos_ids(tokenizer, bos_token)
        self.end_ids = tuple(tokenizer.encode(end_sym, add_special_tokens=False)) if end_sym else ()
        if max_txt_len <= len(self.end_ids):
            raise UserError(
                f"model.max_txt_len is {max_txt_len}, but the end symbol {end_sym!r} alone takes {len(self.end_ids)} "
                "tokens; set a larger max_txt_len."
            )
        single_end = self.end_ids if len(self.end_ids) == 1 else ()
        tokenizer_eos = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        special_starts = _special_starts(tokenizer, (end_sym, *stop_strings))
        self.eos_ids = frozenset((*single_end, *tokenizer_eos, *extra_eos_ids, *special_starts))
        spelled_end = (end_sym,) if len(self.end_ids) > 1 else ()
        self.stop_strings = tuple(dict.fromkeys((*(text for text in stop_strings if text), *spelled_end)))
        # A token is a byte or more; one before them, since a first token's space is not decoded everywhere.
        self.stop_span = max((len(stop.encode()) for stop in self.stop_strings), default=0) + 1
        if not self.eos_ids and not self.stop_strings:
            raise UserError(
                "nothing would end an answer: model.end_sym is empty and the tokenizer has no end-of-sequence token; "
                "set model.end_sym or model.stop_strings."
            )
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self.eos_ids, default=0)
        self._tokenized_prompts: dict[str, tuple[Tensor, Tensor]] = {}
        self._may_end_stop: dict[int, bool] = {}

    @classmethod
    def from_config(cls, config: ModelConfig) -> "TextProcessor":
        """The tokenizer and the end-of-sequence ids of the folder (or hub name) `config.llama_path`."""
        return cls(
            load_tokenizer(config.llama_path, token=config.token),
            prompt_template=config.prompt_template,
            end_sym=config.end_sym,
            bos_token=config.bos_token,
            stop_strings=config.stop_strings,
            max_txt_len=config.max_txt_len,
            extra_eos_ids=_declared_eos_ids(config.llama_path, config.token),
        )

    def in_template(self, prompt: str) -> str:
        """The prompt inside the chat template; one that places the audio itself takes it over from the prompt."""
        return "".join(self._template_pieces(prompt))

    def _template_pieces(self, prompt: str) -> tuple[str, str, str]:
        """The template before the prompt, the prompt, and the template after it."""
        if PLACEHOLDER in self.prompt_template:
            prompt = prompt.replace(MARKED_PLACEHOLDER, "").replace(PLACEHOLDER, "").strip()
        opening, slot, closing = self.prompt_template.partition("{}")
        return opening, prompt if slot else "", closing

    @spanned("assemble")
    def batch(self, prompts: Sequence[str], texts: Sequence[str] | None = None) -> TextBatch:
        """Tokenise prompts (each with one `<SpeechHere>`, not yet in the template) and, for training, answers.

        Raises ValueError for a prompt without exactly one placeholder and for unequal counts.
        """
        require_texts("prompts", prompts)
        if texts is not None:
            require_texts("texts", texts)
        if texts is not None and len(texts) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(texts)} texts; each prompt needs one text.")
        pieces = [self._prompt_ids(prompt) for prompt in prompts]
        return TextBatch(
            before=[before for before, _ in pieces],
            after=[after for _, after in pieces],
            targets=None if texts is None else [self._target_ids(text) for text in texts],
        )

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """The text of generated ids: up to the first end, without special tokens or stop strings, stripped."""
        return self.cut_at_stop(self.decode_raw(ids)).strip()

    def decode_raw(self, ids: Iterable[int] | Tensor) -> str:
        """The text of ids up to the first end-of-sequence id, without special tokens; stop strings stay."""
        kept: list[int] = []
        for token in ids.tolist() if isinstance(ids, Tensor) else ids:
            if token in self.eos_ids:
                break
            kept.append(int(token))
        return self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def may_end_stop(self, token: int) -> bool:
        """Whether a stop string may end within this token; if not, the text before it need not be decoded."""
        if token not in self._may_end_stop:
            piece = self.tokenizer.decode([token], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            # Spaces may be dropped from a token alone, and a part of a character is shown as U+FFFD.
            self._may_end_stop[token] = any(
                stop[-1] in piece or stop[-1].isspace() or UNDECODED in piece for stop in self.stop_strings
            )
        return self._may_end_stop[token]

    def cut_at_stop(self, text: str) -> str:
        """The text before the earliest stop string in it."""
        cut = min((at for at in map(text.find, self.stop_strings) if at >= 0), default=len(text))
        return text[:cut]

    def control_ids(self) -> frozenset[int]:
        """The ids that the template, BOS and the end symbol put into a sequence."""
        opening, _, closing = self.prompt_template.replace(PLACEHOLDER, " ").partition("{}")
        template = [id for piece in (opening, closing) if piece for id in self.plain.ids_between(piece, "", "")]
        return frozenset((*template, *self.bos_ids, *self.end_ids))

    def forget_prompts(self) -> None:
        """Tokenise every prompt again, as one that was not met before."""
        self._tokenized_prompts.clear()

    def _prompt_ids(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Ids before (with BOS) and after the audio."""
        if prompt not in self._tokenized_prompts:
            count = prompt.count(PLACEHOLDER)
            if count != 1:
                raise UserError(
                    f"prompt {prompt!r} holds {count} {PLACEHOLDER}; expected exactly one, where the audio belongs. "
                    f"Write it as {MARKED_PLACEHOLDER}."
                )
            before, after = _around_placeholder(self._template_pieces(prompt))
            ids = (self._ids(before, self.bos_ids), self._ids(after))
            if len(self._tokenized_prompts) >= TOKENIZED_PROMPTS_KEPT:
                self._tokenized_prompts.clear()
            self._tokenized_prompts[prompt] = ids
        return self._tokenized_prompts[prompt]

    def _ids(self, pieces: tuple[str, str, str], prefix: tuple[int, ...] = ()) -> Tensor:
        return torch.tensor([*prefix, *self.plain.ids_between(*pieces)], dtype=torch.long)

    def _target_ids(self, text: str) -> Tensor:
        # The end symbol is tokenised apart, so that it neither merges with the answer nor falls to the length limit.
        return torch.tensor([*self.plain.ids(text)[: self.longest_answer], *self.end_ids], dtype=torch.long)

    @property
    def longest_answer(self) -> int:
        """Tokens of an answer that `max_txt_len` leaves, without the end symbol."""
        return self.max_txt_len - len(self.end_ids)

    def cut_tokens(self, text: str) -> int:
        """How many tokens of an answer `max_txt_len` cuts away."""
        if len(text.encode()) < self.longest_answer:  # a token is at least a byte, plus one for a leading space
            return 0
        return max(0, len(self.plain.ids(text)) - self.longest_answer)


def _warn_of_escapes(key: str, value: str | Sequence[str]) -> None:
    """A `\\n` of two characters is valid, and hardly ever meant: YAML reads escapes in double quotes alone."""
    for text in (value,) if isinstance(value, str) else value:
        found = ESCAPE.search(text)
        if found:
            log.warning(
                "model.%s, %r, holds a backslash and %r in place of a control character: write it in double quotes in "
                "the YAML (single quotes and --options know no escapes)",
                key, text, found[0][1],
            )  # fmt: skip


def _around_placeholder(pieces: tuple[str, str, str]) -> tuple[tuple[str, str, str], tuple[str, str, str]]:
    """The pieces of a filled template before and after the only placeholder in them."""
    opening, prompt, closing = pieces
    if PLACEHOLDER in opening:
        left, right = opening.split(PLACEHOLDER)
        return (left, "", ""), (right, prompt, closing)
    if PLACEHOLDER in prompt:
        left, right = prompt.split(PLACEHOLDER)
        return (opening, left, ""), ("", right, closing)
    left, right = closing.split(PLACEHOLDER)
    return (opening, prompt, left), (right, "", "")


def load_tokenizer(path: str, *, token: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name.

    A `tokenizer.json` is loaded unchanged: `AutoTokenizer` would rebuild the class that the model's family usually has,
    and silently replace a custom vocabulary in a folder with, say, a Qwen config.
    """
    name, revision = located(path)
    options = {"revision": revision, "token": token}
    require_real_files(path, TOKENIZER_FILES)
    try:
        exact = cached_file(name, "tokenizer.json", _raise_exceptions_for_missing_entries=False, **options)
        loader = PreTrainedTokenizerFast if exact is not None else AutoTokenizer
        return loader.from_pretrained(name, **options)
    except (OSError, ValueError, ImportError) as error:
        absent = [package for package in SENTENCEPIECE_PACKAGES if not _is_installed(package)]
        if absent and (Path(name) / "tokenizer.model").is_file():
            raise UserError(
                f"model.llama_path: {path!r} has a tokenizer.model alone, which needs {' and '.join(absent)}; install "
                "them: pip install sentencepiece protobuf"
            ) from error
        raise UserError(
            f"model.llama_path: no tokenizer could be loaded from {path!r} ({loading_problem(path, error)}); "
            "expected a folder with tokenizer.json, or a hub name."
        ) from error


def _is_installed(package: str) -> bool:
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True


def _bos_ids(tokenizer: PreTrainedTokenizerBase, bos_token: str | None) -> tuple[int, ...]:
    """The first token: `model.bos_token` if given ("" for none), else the tokenizer's BOS, if it has one."""
    if bos_token is None:
        return () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    if not bos_token:
        return ()
    ids = tokenizer.encode(bos_token, add_special_tokens=False)
    if len(ids) != 1:
        raise UserError(f"model.bos_token {bos_token!r} is {len(ids)} tokens for this tokenizer; expected one.")
    return tuple(ids)


def _special_starts(tokenizer: PreTrainedTokenizerBase, ends: Iterable[str]) -> list[int]:
    """Special tokens that an end begins with (`<|im_end|>` and a line break, say).

    Decoding drops special tokens, so such an end is never found in the text; its first id ends the answer instead.
    """
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    first_ids = [ids[0] for end in ends if end and (ids := tokenizer.encode(end, add_special_tokens=False))]
    return [first for first in first_ids if first in special]


def _declared_eos_ids(path: str, token: str | None) -> tuple[int, ...]:
    """End ids that the model's generation config, else its config, declares; chat models have several.

    The files themselves are read: the library's config classes fill in a family's usual id where none is declared.
    """
    name, revision = located(path)
    for file_name in ("generation_config.json", "config.json"):
        file = cached_file(name, file_name, revision=revision, token=token, _raise_exceptions_for_missing_entries=False)
        if file is None:
            continue
        try:
            declared = json.loads(Path(file).read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
            what = mistaken(file, text_is_right=True) or f"is no JSON ({error}); copy or download it again"
            raise UserError(f"{file} {what}") from None
        if not isinstance(declared, dict):
            raise UserError(f"{file}: expected a JSON object, found {type(declared).__name__}; download it again")
        ids = declared.get("eos_token_id")
        if ids is None:
            ids = (declared.get("text_config") or {}).get("eos_token_id")
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (ids,)
    return ()

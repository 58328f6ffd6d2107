"""The tokenizer of a GGUF file: the ids that llama.cpp makes of a text, as a transformers tokenizer.

Two kinds: byte-level BPE with its merges (`gpt2`: Llama 3, Qwen, SmolLM2), where `tokenizer.ggml.pre` names how text is
split before merging; and SentencePiece (`llama`: Llama 2, Vicuna, Gemma), whose merges follow from the vocabulary.
transformers' own reader knows fewer ways of splitting: it leaves the digits of SmolLM2 together, for one.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from conversion.gguf_config import token_id
from conversion.gguf_file import GGUFFile
from support.command_line import UserError

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
"""Values of `tokenizer.ggml.token_type`."""
SPACE = "\u2581"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_AFTER_DIGITS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
LLAMA3 = _WORDS + r"\p{N}{1,3}" + _AFTER_DIGITS
QWEN2 = _WORDS + r"\p{N}" + _AFTER_DIGITS
DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
SPLITS: dict[str, tuple[str, ...]] = {
    "default": DEFAULT,
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt"), (GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), (r"\p{N}", GPT2)),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "smaug-bpe", "dbrx"), (LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), (QWEN2,)),
}
"""`tokenizer.ggml.pre` -> the expressions that llama.cpp splits text with, one after the other."""
WHOLE_WORDS = ("llama3", "llama-v3", "llama-bpe", "falcon3")
"""A word that is in the vocabulary is not merged from its pieces. llama.cpp begins these models' texts with BOS."""
COMPOSED = ("qwen2", "deepseek-r1-qwen")
"""Their own tokenizers compose characters (NFC) first."""
ROLES = ("bos", "eos", "unk", "pad")


def tokenizer_of(file: GGUFFile) -> PreTrainedTokenizerFast:
    """The tokenizer, with its special tokens and chat template.

    Raises:
        UserError: it is of a kind, or splits text in a way, that is not converted; or its merges do not fit.
    """
    kind = str(file.required_entry("tokenizer.ggml.model"))
    if kind not in ("gpt2", "llama"):
        raise UserError(
            f"{file.path} has a tokenizer of kind {kind!r}; expected 'gpt2' (byte-level BPE) or 'llama' (SentencePiece)"
        )
    tokens = file.required_entry("tokenizer.ggml.tokens")
    types = file.metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    if len(set(tokens)) != len(tokens) or len(types) != len(tokens):
        raise UserError(f"{file.path}: its vocabulary is damaged (tokens twice, or without a type); download it again")
    try:
        made = _byte_level(file, tokens) if kind == "gpt2" else _sentencepiece(file, tokens, types)
    except Exception as error:
        if isinstance(error, UserError) or type(error) is not Exception:  # tokenizers raises bare ones alone
            raise
        raise UserError(f"{file.path}: its tokenizer cannot be built ({error}); download it again") from error
    _add_special(made, tokens, types)
    return _finished(file, made, tokens)


def _byte_level(file: GGUFFile, tokens: Sequence[str]) -> Tokenizer:
    pre = str(file.metadata.get("tokenizer.ggml.pre", "default"))
    if pre not in SPLITS:
        raise UserError(
            f"{file.path} splits text in the way {pre!r} (tokenizer.ggml.pre), which is not converted; known: "
            f"{', '.join(sorted(SPLITS))}"
        )
    merges = [tuple(merge.split(" ")) for merge in file.required_entry("tokenizer.ggml.merges")]
    if any(len(merge) != 2 for merge in merges):
        raise UserError(f"{file.path}: its tokenizer cannot be built (a merge is not of two tokens); download it again")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in WHOLE_WORDS))
    if pre in COMPOSED:
        made.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in SPLITS[pre]]
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    return made


def _sentencepiece(file: GGUFFile, tokens: Sequence[str], types: Sequence[int]) -> Tokenizer:
    """BPE over characters, with bytes for what the vocabulary lacks."""
    gemma = file.architecture.startswith("gemma")
    if gemma:  # runs of spaces are written as such in the file; its scores do not order the merges, positions do
        tokens = [SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
        rank = {token: index for index, token in enumerate(tokens)}
    else:
        scores = file.required_entry("tokenizer.ggml.scores")
        rank = {token: -score for token, score, kind in zip(tokens, scores, types, strict=True) if kind == NORMAL}
    unknown = token_id(file, "unk_token_id")
    made = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=_implied_merges(rank),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", SPACE)
    prefixed = bool(file.metadata.get("tokenizer.ggml.add_space_prefix", not gemma))
    made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefixed else spaces
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)
    return made


def _implied_merges(rank: dict[str, float]) -> list[tuple[str, str]]:
    """Every pair of tokens that joins to a token, the best result first."""
    found = [
        (rank[whole], len(left), (left, right))
        for whole in rank
        for cut in range(1, len(whole))
        if (left := whole[:cut]) in rank and (right := whole[cut:]) in rank
    ]
    return [pair for _, _, pair in sorted(found)]


def _add_special(made: Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Tokens that are found in a text as a whole: control tokens, and those that the model's makers added."""
    known = made.get_vocab(with_added_tokens=False)
    for token, kind in zip(tokens, types, strict=True):
        if kind == CONTROL:
            made.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == USER_DEFINED and token in known:  # Gemma's runs of spaces are merged instead
            made.add_tokens([AddedToken(token, normalized=False, special=False)])


def _finished(file: GGUFFile, made: Tokenizer, tokens: Sequence[str]) -> PreTrainedTokenizerFast:
    """In transformers' class, with BOS and EOS where llama.cpp puts them."""
    ids = {role: token_id(file, f"{role}_token_id") for role in ROLES}
    bpe = file.metadata["tokenizer.ggml.model"] == "gpt2"
    begins = file.metadata.get(
        "tokenizer.ggml.add_bos_token", not bpe or file.metadata.get("tokenizer.ggml.pre") in WHOLE_WORDS
    )
    ends = file.metadata.get("tokenizer.ggml.add_eos_token", False)
    bos = [(tokens[ids["bos"]], ids["bos"])] if begins and ids["bos"] is not None else []
    eos = [(tokens[ids["eos"]], ids["eos"])] if ends and ids["eos"] is not None else []
    if bos or eos:
        first, last = [f"{token}:0" for token, _ in bos], [f"{token}:0" for token, _ in eos]
        made.post_processor = processors.TemplateProcessing(
            single=[*first, "$A:0", *last], pair=[*first, "$A:0", *last, "$B:0", *last], special_tokens=[*bos, *eos]
        )
    finished = PreTrainedTokenizerFast(
        tokenizer_object=made,
        clean_up_tokenization_spaces=False,
        model_max_length=int(file.required("context_length")),
        **{f"{role}_token": None if index is None else tokens[index] for role, index in ids.items()},
    )
    template = file.metadata.get("tokenizer.chat_template")
    if template:
        finished.chat_template = template
    return finished

"""Whisper in a folder of CTranslate2 (faster-whisper's models): config.json, vocabulary, tokenizer and model.bin."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conversion.ctranslate2_file import START_BYTES, Variables, read_variables, specification
from conversion.stored_tensors import StoredTensor
from conversion.whisper_folder import EMBEDDING, HEAD, WhisperSource, write_whisper
from conversion.whisper_tokenizer import BYTES, build_tokenizer, copy_tokenizer
from conversion.whisper_tokens import WhisperTokens, tokens_by_name, tokens_of_size
from support.command_line import UserError
from support.file_kinds import mistaken

MODEL_FILE = "model.bin"
SPECIFICATION = "WhisperSpec"
FIXED = {
    "decoder/activation": 3,  # GELU, exact
    "decoder/pre_norm": 1,
    "decoder/alignment_heads": None,
    "decoder/alignment_layer": None,
    "encoder/num_heads": None,
    "decoder/num_heads": None,
}
"""Single numbers of the model and what Whisper has there; None: any. All others are switches, off in Whisper."""
HEAD_WIDTH = 64  # of every Whisper; for files that do not state the number of heads


def recognises(path: Path) -> bool:
    """Whether a folder has a model.bin of CTranslate2, or a file is one."""
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        return False
    with open(file, "rb") as opened:
        return specification(opened.read(START_BYTES)) is not None


def convert(path: Path, folder: Path, dtype: str | None, report: Callable[[str], None]) -> None:
    """Fill an empty folder from a folder of CTranslate2."""
    path = path if path.is_dir() else path.parent
    variables = read_variables(path / MODEL_FILE)
    if variables.specification != SPECIFICATION:
        raise UserError(
            f"{path} is a model of CTranslate2 of the kind {variables.specification}; expected {SPECIFICATION}"
        )
    tensors = _tensors(variables)
    vocabulary = _vocabulary(path)
    size = tensors[EMBEDDING].shape[0]
    tokens = tokens_by_name(vocabulary) if vocabulary else tokens_of_size(size)
    if vocabulary and len(vocabulary) > size:
        raise UserError(f"{path}: its vocabulary lists {len(vocabulary)} tokens, and model.bin has {size}")
    write_tokenizer, reason = _tokenizer(path, vocabulary, tokens)
    width = tensors[EMBEDDING].shape[-1]
    source = WhisperSource(
        path=path,
        format=f"CTranslate2 (format {variables.version}, revision {variables.revision})",
        tensors=tensors,
        encoder_heads=variables.number("encoder/num_heads", width // HEAD_WIDTH),
        decoder_heads=variables.number("decoder/num_heads", width // HEAD_WIDTH),
        tokens=tokens,
        settings=_settings(path, size),
        write_tokenizer=write_tokenizer,
        no_tokenizer=reason,
    )
    write_whisper(source, folder, dtype, report)


def _tensors(variables: Variables) -> dict[str, StoredTensor]:
    """All tensors, by transformers' names. UserError where the file has others."""
    result: dict[str, StoredTensor] = {}
    for side in ("encoder", "decoder"):
        place = f"model.{side}"
        result[f"{place}.embed_positions.weight"] = variables.tensor(f"{side}/position_encodings/encodings")
        result |= _norm(variables, f"{side}/layer_norm", f"{place}.layer_norm")
        for layer in range(variables.count(f"{side}/layer_")):
            result |= _layer(variables, f"{side}/layer_{layer}", f"{place}.layers.{layer}", side)
    for name in ("conv1", "conv2"):
        result |= _linear(variables, f"encoder/{name}", [f"model.encoder.{name}"])
    result[EMBEDDING] = variables.tensor("decoder/embeddings/weight")
    if not variables.same("decoder/projection/weight", "decoder/embeddings/weight"):
        result[HEAD] = variables.tensor("decoder/projection/weight")
    variables.require_used(FIXED)
    return result


def _layer(variables: Variables, theirs: str, ours: str, side: str) -> dict[str, StoredTensor]:
    attention = f"{theirs}/self_attention"
    fused = [f"{ours}.self_attn.{letter}_proj" for letter in "qkv"]
    result = {
        **_norm(variables, f"{attention}/layer_norm", f"{ours}.self_attn_layer_norm"),
        **_linear(variables, f"{attention}/linear_0", fused),
        **_linear(variables, f"{attention}/linear_1", [f"{ours}.self_attn.out_proj"]),
        **_norm(variables, f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm"),
        **_linear(variables, f"{theirs}/ffn/linear_0", [f"{ours}.fc1"]),
        **_linear(variables, f"{theirs}/ffn/linear_1", [f"{ours}.fc2"]),
    }
    if side == "decoder":
        attention, place = f"{theirs}/attention", f"{ours}.encoder_attn"
        result |= _norm(variables, f"{attention}/layer_norm", f"{ours}.encoder_attn_layer_norm")
        result |= _linear(variables, f"{attention}/linear_0", [f"{place}.q_proj"])
        result |= _linear(variables, f"{attention}/linear_1", [f"{place}.k_proj", f"{place}.v_proj"])
        result |= _linear(variables, f"{attention}/linear_2", [f"{place}.out_proj"])
    return result


def _norm(variables: Variables, theirs: str, ours: str) -> dict[str, StoredTensor]:
    return {f"{ours}.weight": variables.tensor(f"{theirs}/gamma"), f"{ours}.bias": variables.tensor(f"{theirs}/beta")}


def _linear(variables: Variables, theirs: str, ours: Sequence[str]) -> dict[str, StoredTensor]:
    """A linear layer, or a convolution, that holds those named by `ours` one below the other. Keys have no bias."""
    weight, bias = variables.tensor(f"{theirs}/weight"), variables.tensor(f"{theirs}/bias")
    if not weight.shape or weight.shape[0] % len(ours) or bias.shape != weight.shape[:1]:
        shapes = f"{list(weight.shape)} with a bias of {list(bias.shape)}"
        raise UserError(f"{variables.path}: {theirs} is {shapes}; expected {len(ours)} equal parts, each with a bias")
    rows = weight.shape[0] // len(ours)
    result = {}
    for number, name in enumerate(ours):
        part = (number * rows, (number + 1) * rows)
        result[f"{name}.weight"] = weight.rows(*part)
        if not name.endswith("k_proj"):
            result[f"{name}.bias"] = bias.rows(*part)
        elif bias.rows(*part).load().any():
            raise UserError(f"{variables.path}: {theirs} has a bias of its keys, for which Whisper has no place")
    return result


def _vocabulary(path: Path) -> list[str]:
    """All tokens in the order of their ids, as CTranslate2 reads them; empty where there is no such file."""
    file = next((path / name for name in ("vocabulary.json", "vocabulary.txt") if (path / name).is_file()), None)
    if file is None:
        return []
    if file.suffix == ".json":
        tokens = _json(file)
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise UserError(f"{file} is no vocabulary; expected a list of texts")
        return tokens
    try:
        return file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no text of UTF-8; copy or download it again") from error


def _tokenizer(
    path: Path, vocabulary: list[str], tokens: WhisperTokens | None
) -> tuple[Callable[[Path], None] | None, str]:
    """What writes the tokenizer; None with the reason."""
    if tokens is None:
        return None, "its vocabulary lacks Whisper's special tokens"
    if (path / "tokenizer.json").is_file():
        return lambda folder: copy_tokenizer(path / "tokenizer.json", folder, tokens), ""
    pieces = vocabulary[: tokens.end]
    if pieces and all(set(piece) <= BYTES.keys() for piece in pieces):
        built = build_tokenizer([bytes(BYTES[character] for character in piece) for piece in pieces], tokens)
        if built:
            return built.save_pretrained, ""
    return None, "there is no tokenizer.json, and none can be made from the vocabulary"


def _settings(path: Path, vocabulary: int) -> dict[str, Any]:
    """What config.json states about generation, by transformers' names."""
    file = path / "config.json"
    stated = _json(file) if file.is_file() else {}
    if not isinstance(stated, dict):
        raise UserError(f"{file} is no configuration; expected a JSON object")
    result = {}
    for theirs, ours in (("suppress_ids", "suppress_tokens"), ("suppress_ids_begin", "begin_suppress_tokens")):
        ids = stated.get(theirs)
        if ids is None:
            continue
        if not isinstance(ids, list) or not all(type(number) is int and 0 <= number < vocabulary for number in ids):
            raise UserError(f"{file}: {theirs} is {str(ids)[:60]}; expected a list of ids below {vocabulary}")
        result[ours] = ids
    if stated.get("alignment_heads"):
        result["alignment_heads"] = stated["alignment_heads"]
    return result


def _json(file: Path) -> Any:
    found = mistaken(file, text_is_right=True)
    if found:
        raise UserError(f"{file} {found}")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is no JSON: {error}; copy or download it again") from error

"""A tiny Whisper in the file formats of other programs, written here byte by byte, without the code that reads them."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

MELS, WIDTH, HEADS, VOCABULARY, POSITIONS, ANSWER = 80, 32, 2, 96, 60, 12
State = dict[str, Tensor]


def tiny_whisper(vocabulary: int = VOCABULARY, *, seed: int = 0, half: bool = True) -> WhisperForConditionalGeneration:
    """Random weights, none of them zero where training would not leave zeros; float16 values unless not `half`."""
    config = WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=MELS,
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=4 * WIDTH,
        decoder_ffn_dim=4 * WIDTH,
        max_source_positions=POSITIONS,
        max_target_positions=ANSWER,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    generator = torch.Generator().manual_seed(seed)
    model = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
            if half:
                parameter.copy_(parameter.half())
    return model


def state_of(model: WhisperForConditionalGeneration) -> State:
    """Tensors as a folder of transformers has them: the head is the embedding."""
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name != "proj_out.weight"}


def openai_state(state: State) -> State:
    """The same under OpenAI's names."""
    words = (
        ("model.encoder.layer_norm", "encoder.ln_post"),
        ("model.decoder.layer_norm", "decoder.ln"),
        ("embed_tokens", "token_embedding"),
        ("embed_positions.weight", "positional_embedding"),
        ("self_attn_layer_norm", "attn_ln"),
        ("encoder_attn_layer_norm", "cross_attn_ln"),
        ("final_layer_norm", "mlp_ln"),
        ("encoder_attn", "cross_attn"),
        ("self_attn", "attn"),
        ("q_proj", "query"),
        ("k_proj", "key"),
        ("v_proj", "value"),
        ("out_proj", "out"),
        ("fc1", "mlp.0"),
        ("fc2", "mlp.2"),
        ("layers", "blocks"),
        ("model.", ""),
    )
    result = {}
    for name, tensor in state.items():
        for ours, theirs in words:
            name = name.replace(ours, theirs)
        result[name] = tensor
    return result


def dims_of(state: State) -> dict[str, int]:
    """The sizes that OpenAI's files and whisper.cpp's state, in the latter's order."""
    vocabulary, width = state["model.decoder.embed_tokens.weight"].shape
    return {
        "n_vocab": vocabulary,
        "n_audio_ctx": POSITIONS,
        "n_audio_state": width,
        "n_audio_head": HEADS,
        "n_audio_layer": 2,
        "n_text_ctx": ANSWER,
        "n_text_state": width,
        "n_text_head": HEADS,
        "n_text_layer": 1,
        "n_mels": MELS,
    }


def write_openai(path: Path, state: State, **options: object) -> Path:
    """OpenAI's `.pt`; `options` go to `torch.save`."""
    torch.save({"dims": dims_of(state), "model_state_dict": openai_state(state)}, path, **options)
    return path


# --- CTranslate2 -----------------------------------------------------------------------------------------------------


def write_ctranslate2(
    folder: Path, state: State, *, types: str = "float16", version: int = 6, vocabulary: Sequence[str] | None = None
) -> tuple[Path, State]:
    """A folder of CTranslate2, and the values that it holds: those of `state`, rounded where `types` is int8."""
    fused = _fused(state)
    variables: dict[str, np.ndarray] = {}
    for name, tensor in fused.items():
        values = tensor.float().numpy()
        if name.endswith("/weight") and types.startswith("int"):
            variables[name], variables[f"{name}_scale"] = _scaled(values, types)
        else:
            variables[name] = values.astype(np.float32 if types == "float32" else np.float16)
    variables |= {"decoder/pre_norm": np.int8(1), "decoder/activation": np.int8(3), "decoder/alibi": np.int8(0)}
    variables |= {f"{side}/num_heads": np.int16(HEADS) for side in ("encoder", "decoder")}
    folder.mkdir(parents=True)
    write_variables(
        folder / "model.bin", variables, {"decoder/projection/weight": "decoder/embeddings/weight"}, version
    )
    tokens = vocabulary or [f"t{number}" for number in range(len(fused["decoder/embeddings/weight"]))]
    (folder / "vocabulary.json").write_text(json.dumps(tokens))
    heads = {"suppress_ids": [1, 2], "suppress_ids_begin": [3], "alignment_heads": [[0, 1]], "lang_ids": []}
    (folder / "config.json").write_text(json.dumps(heads))
    return folder, {**state, **_rounded(variables, state)} if types.startswith("int") else dict(state)


def write_variables(
    path: Path,
    variables: dict[str, np.ndarray],
    aliases: dict[str, str],
    version: int = 6,
    kind: str = "WhisperSpec",
    revision: int = 3,
) -> None:
    """A `model.bin`, as python/ctranslate2/specs/model_spec.py writes it."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    types = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
    with open(path, "wb") as file:
        file.write(struct.pack("<I", version) + text(kind) + struct.pack("<II", revision, len(variables)))
        for name, value in sorted(variables.items()):
            value = np.asarray(value)
            file.write(text(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape))
            file.write(struct.pack("<BI", types.index(value.dtype.name), value.nbytes) + value.tobytes())
        file.write(struct.pack("<I", len(aliases)))
        for alias, name in aliases.items():
            file.write(text(alias) + text(name))


def _fused(state: State) -> State:
    """CTranslate2's variables."""
    result: State = {}
    zeros = torch.zeros(WIDTH)

    def norm(theirs: str, ours: str) -> None:
        result[f"{theirs}/gamma"], result[f"{theirs}/beta"] = state[f"{ours}.weight"], state[f"{ours}.bias"]

    def linear(theirs: str, ours: str, parts: Sequence[str] = ("",)) -> None:
        result[f"{theirs}/weight"] = torch.cat([state[f"{ours}{part}.weight"] for part in parts])
        result[f"{theirs}/bias"] = torch.cat([state.get(f"{ours}{part}.bias", zeros) for part in parts])

    for side, layers in (("encoder", 2), ("decoder", 1)):
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        result[f"{side}/position_encodings/encodings"] = state[f"model.{side}.embed_positions.weight"]
        for number in range(layers):
            theirs, ours = f"{side}/layer_{number}", f"model.{side}.layers.{number}"
            norm(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm")
            linear(f"{theirs}/self_attention/linear_0", f"{ours}.self_attn.", ("q_proj", "k_proj", "v_proj"))
            linear(f"{theirs}/self_attention/linear_1", f"{ours}.self_attn.out_proj")
            norm(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")
            linear(f"{theirs}/ffn/linear_0", f"{ours}.fc1")
            linear(f"{theirs}/ffn/linear_1", f"{ours}.fc2")
            if side == "decoder":
                norm(f"{theirs}/attention/layer_norm", f"{ours}.encoder_attn_layer_norm")
                linear(f"{theirs}/attention/linear_0", f"{ours}.encoder_attn.q_proj")
                linear(f"{theirs}/attention/linear_1", f"{ours}.encoder_attn.", ("k_proj", "v_proj"))
                linear(f"{theirs}/attention/linear_2", f"{ours}.encoder_attn.out_proj")
    for name in ("conv1", "conv2"):
        linear(f"encoder/{name}", f"model.encoder.{name}")
    result["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    return result


def _scaled(values: np.ndarray, types: str) -> tuple[np.ndarray, np.ndarray]:
    """Integers and what they are divided by: of int8 one number a row, of int16 one in all."""
    if types == "int16":
        scale = np.float32(2**10 / np.abs(values).max())
        return np.rint(values * scale).astype(np.int16), scale
    rows = values.reshape(len(values), -1)
    scale = (127 / np.abs(rows).max(axis=1)).astype(np.float32)
    return np.rint(rows * scale[:, None]).astype(np.int8).reshape(values.shape), scale


def _rounded(variables: dict[str, np.ndarray], state: State) -> State:
    """Every matrix as its integers say, taken apart by hand."""
    words = {
        "q_proj": ("linear_0", 0),
        "k_proj": ("linear_0", 1),
        "v_proj": ("linear_0", 2),
        "out_proj": ("linear_1", 0),
    }
    cross = {
        "q_proj": ("linear_0", 0),
        "k_proj": ("linear_1", 0),
        "v_proj": ("linear_1", 1),
        "out_proj": ("linear_2", 0),
    }
    result = {}
    for name, tensor in state.items():
        parts = name.split(".")
        part = 0
        if "embed_tokens" in name:
            theirs = "decoder/embeddings"
        elif parts[2].startswith("conv"):
            theirs = f"encoder/{parts[2]}"
        elif len(parts) > 5 and parts[4].endswith("attn"):
            linear, part = (words if parts[4] == "self_attn" else cross)[parts[5]]
            where = "self_attention" if parts[4] == "self_attn" else "attention"
            theirs = f"{parts[1]}/layer_{parts[3]}/{where}/{linear}"
        elif len(parts) > 5 and parts[4] in ("fc1", "fc2"):
            theirs = f"{parts[1]}/layer_{parts[3]}/ffn/linear_{int(parts[4][2]) - 1}"
        else:
            continue
        if name.endswith(".bias"):
            continue
        integers, scale = variables[f"{theirs}/weight"], variables[f"{theirs}/weight_scale"]
        shape = (-1,) + (1,) * (integers.ndim - 1)
        values = integers.astype(np.float32) / (scale if scale.ndim == 0 else scale.reshape(shape))
        result[name] = torch.from_numpy(values[part * len(tensor) : (part + 1) * len(tensor)])
    return result


# --- whisper.cpp -----------------------------------------------------------------------------------------------------

GGML_TYPES = {"float32": 0, "float16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8}


def write_ggml(
    path: Path, state: State, *, types: str = "float16", pieces: Sequence[bytes] = (b"a", b"b"), ftype: int = 1
) -> tuple[Path, State]:
    """A `ggml-*.bin`, as models/convert-pt-to-ggml.py and `quantize` write it, and the values that it holds."""
    kept = dict(state)
    filters = WhisperFeatureExtractor(feature_size=MELS).mel_filters.T.astype(np.float32)
    with open(path, "wb") as file:
        file.write(
            struct.pack("<i", 0x67676D6C) + struct.pack("<10i", *dims_of(state).values()) + struct.pack("<i", ftype)
        )
        file.write(struct.pack("<ii", *filters.shape) + filters.tobytes())
        file.write(struct.pack("<i", len(pieces)))
        for piece in pieces:
            file.write(struct.pack("<i", len(piece)) + piece)
        for (ours, tensor), theirs in zip(state.items(), openai_state(state), strict=True):
            values = tensor.float().numpy()
            small = values.ndim < 2 or "positional" in theirs
            kind = "float32" if small or types == "float32" else types if values.ndim == 2 else "float16"
            shape = (*values.shape, 1) if theirs in ("encoder.conv1.bias", "encoder.conv2.bias") else values.shape
            file.write(struct.pack("<iii", len(shape), len(theirs), GGML_TYPES[kind]))
            file.write(struct.pack(f"<{len(shape)}i", *shape[::-1]) + theirs.encode())
            raw, stored = ggml_bytes(values.reshape(-1), kind)
            file.write(raw)
            kept[ours] = torch.from_numpy(stored.reshape(values.shape))
    return path, kept


def ggml_bytes(values: np.ndarray, kind: str) -> tuple[bytes, np.ndarray]:
    """Numbers in a type of ggml, and the values that a reader must find in the bytes."""
    if kind in ("float32", "float16"):
        stored = values.astype(kind)
        return stored.tobytes(), stored.astype(np.float32)
    blocks = [_block([float(value) for value in values[at : at + 32]], kind) for at in range(0, len(values), 32)]
    return b"".join(raw for raw, _ in blocks), np.concatenate([stored for _, stored in blocks])


def _block(values: list[float], kind: str) -> tuple[bytes, np.ndarray]:
    """One block, as the structs of ggml-common.h lay it out: d, m where there is one, qh, qs."""
    if kind == "q8_0":
        d = np.float16(max(abs(value) for value in values) / 127)
        integers = [round(value / float(d)) if d else 0 for value in values]
        return struct.pack("<e32b", d, *integers), np.float32(integers) * np.float32(d)
    bits = int(kind[1])
    highest = 2**bits - 1
    least = min(values) if kind.endswith("_1") else 0.0
    offset = 0 if kind.endswith("_1") else 2 ** (bits - 1)
    span = (max(values) - least) / highest if offset == 0 else max(abs(value) for value in values) / (offset - 1)
    d, m = np.float16(span), np.float16(least)
    integers = [min(highest, max(0, round((value - float(m)) / float(d)) + offset)) for value in values]
    raw = struct.pack("<e", d) + (struct.pack("<e", m) if offset == 0 else b"")
    if bits == 5:
        raw += struct.pack("<I", sum((integer >> 4) << at for at, integer in enumerate(integers)))
    raw += bytes((low & 15) | (high & 15) << 4 for low, high in zip(integers[:16], integers[16:], strict=True))
    decoded = (np.float32(integers) - np.float32(offset)) * np.float32(d)
    return raw, decoded + np.float32(m) if offset == 0 else decoded

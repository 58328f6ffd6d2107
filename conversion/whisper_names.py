"""Names of Whisper's tensors: OpenAI's (its .pt, and whisper.cpp) to transformers'."""

from __future__ import annotations

import re
from collections.abc import Iterable

_PLACES = {
    "encoder.positional_embedding": "model.encoder.embed_positions.weight",
    "encoder.conv1": "model.encoder.conv1",
    "encoder.conv2": "model.encoder.conv2",
    "encoder.ln_post": "model.encoder.layer_norm",
    "decoder.positional_embedding": "model.decoder.embed_positions.weight",
    "decoder.token_embedding": "model.decoder.embed_tokens",
    "decoder.ln": "model.decoder.layer_norm",
}
_PARTS = {
    "attn_ln": "self_attn_layer_norm",
    "cross_attn_ln": "encoder_attn_layer_norm",
    "mlp_ln": "final_layer_norm",
    "mlp.0": "fc1",
    "mlp.2": "fc2",
}
_ATTENTIONS = {"attn": "self_attn", "cross_attn": "encoder_attn"}
_PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
_BLOCK = re.compile(r"(encoder|decoder)\.blocks\.(\d{1,4})\.(.+)\.(weight|bias)")
_LAYER = re.compile(r"model\.(encoder|decoder)\.layers\.(\d{1,4})\.")


def transformers_name(name: str) -> str | None:
    """transformers' name of a tensor of OpenAI's; None where there is none."""
    if name in _PLACES:
        return _PLACES[name]
    stem, _, kind = name.rpartition(".")
    if stem in _PLACES:
        return f"{_PLACES[stem]}.{kind}"
    found = _BLOCK.fullmatch(name)
    if not found:
        return None
    side, layer, part, kind = found.groups()
    attention, _, projection = part.partition(".")
    if attention in _ATTENTIONS and projection in _PROJECTIONS:
        place = f"{_ATTENTIONS[attention]}.{_PROJECTIONS[projection]}"
    else:
        place = _PARTS.get(part)
    return place and f"model.{side}.layers.{layer}.{place}.{kind}"


def layer_count(names: Iterable[str], side: str) -> int:
    """How many different layers of the encoder or decoder transformers' names have: never more than there are names."""
    found = (_LAYER.match(name) for name in names)
    return len({match[2] for match in found if match and match[1] == side})

"""Parameter names of SALMONN's released checkpoints and of the trainers made from it, to ours and back."""

import re
from collections.abc import Iterable, Iterator

_LAYER = r"(\d+)"
_BLOCK = "speech_Qformer.bert.encoder.layer.#."
_OWN_BLOCK = "connector.qformer.layers.#."


def _attention(released: str, own: str) -> Iterator[tuple[str, str]]:
    for part in ("query", "key", "value"):
        yield f"{_BLOCK}{released}.self.{part}.", f"{_OWN_BLOCK}{own}.{part}."
    yield f"{_BLOCK}{released}.output.dense.", f"{_OWN_BLOCK}{own}.output."
    yield f"{_BLOCK}{released}.output.LayerNorm.", f"{_OWN_BLOCK}{own}.norm."


# Prefixes of names, released and ours; `#` is a layer's number. {audio} is the encoder besides Whisper.
_PREFIXES: tuple[tuple[str, str], ...] = (
    ("speech_query_tokens", "connector.qformer.query_tokens"),
    ("ln_speech.", "connector.norms.whisper."),
    ("ln_audio.", "connector.norms.{audio}."),
    ("speech_llama_proj.", "connector.to_llm."),
    ("speech_Qformer.bert.embeddings.LayerNorm.", "connector.qformer.input_norm."),
    *_attention("attention", "self_attention"),
    *_attention("crossattention", "cross_attention"),
    (f"{_BLOCK}intermediate_query.dense.", f"{_OWN_BLOCK}intermediate."),
    (f"{_BLOCK}output_query.dense.", f"{_OWN_BLOCK}output."),
    (f"{_BLOCK}output_query.LayerNorm.", f"{_OWN_BLOCK}norm."),
    ("speech_encoder.", "encoders.encoders.whisper."),
    ("beats.", "encoders.encoders.beats."),
    ("ced.", "encoders.encoders.ced."),
)

# LoRA of peft 0.2 (no adapter name) and later (`default`), below any number of wrappers.
_LORA = re.compile(r"^[a-z0-9_]+_model\.(?:[a-z_]+\.)*?(layers\.\d+\..+\.lora_[AB])(?:\.default)?\.weight$")
# In cv-03 and nlp-07 the projection is named after the language model's family.
_PROJECTION = re.compile(r"^speech_(?:gemma|qwen)_proj\.")
_OWN_LORA = re.compile(r"^llm\.(layers\.\d+\..+\.lora_[AB])\.weight$")
_RELEASED_LORA = r"llama_model.base_model.model.model.\1.default.weight"

LORA_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# BEATs' layers share one table of positions; in a file it has the names that are not the optimiser's.
_SHARED_BIAS = re.compile(r"^(encoders\.encoders\.beats\.encoder\.layers\.)\d+(\.self_attn\.relative_attention_bias\.)")

# The language model's head: in the file where it is tied, as a second name of the embedding.
HEAD = re.compile(r"^[a-z0-9_]+_model\.(?:[a-z_]+\.)*lm_head\.weight$")

# Buffers are saved with the trained parameters, although untrained: of the Q-Former, the rotary embedding, CED's front
# end, and of quantised layers (bitsandbytes' and GPTQ's), which belong to the language model itself.
WITHOUT_EFFECT = re.compile(
    r"^speech_Qformer\.bert\.embeddings\.position_ids$"
    r"|^[a-z0-9_]+_model\..*\.(rotary_emb\.(original_)?inv_freq|SCB|weight_format|qweight|qzeros|scales|g_idx"
    r"|weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+))$"
    r"|^ced\.(encoder\.)?front_end\."
)


def _compiled(source: str, target: str) -> tuple[re.Pattern[str], str]:
    return re.compile("^" + re.escape(source).replace(r"\#", _LAYER)), target.replace("#", r"\1")


_TO_OWN = tuple(_compiled(released, own) for released, own in _PREFIXES)
_TO_RELEASED = tuple(
    (re.compile("^" + re.escape(own).replace(r"\#", _LAYER).replace(r"\{audio\}", "(?:beats|ced)")), released)
    for own, released in ((own, released.replace("#", r"\1")) for released, own in _PREFIXES)
)


def own_name(released: str, audio: str = "beats") -> str | None:
    """Our name of a released tensor; None for a name that is unknown in the family.

    `audio` is the encoder besides Whisper, whose LayerNorm is `ln_audio`.
    """
    if match := _LORA.match(released):
        return f"llm.{match[1]}.weight"
    released = _PROJECTION.sub("speech_llama_proj.", released)
    for pattern, target in _TO_OWN:
        if pattern.match(released):
            name = pattern.sub(target.replace("{audio}", audio), released)
            if audio == "ced":  # like models.encoders.ced for its own files
                name = re.sub(r"^(encoders\.encoders\.ced\.)encoder\.", r"\1", name)
                name = re.sub(r"^(encoders\.encoders\.ced\.init_bn\.)(?!1\.)", r"\g<1>1.", name)
            return _SHARED_BIAS.sub(r"\g<1>0\2", name)
    return None


def lora_targets(own: Iterable[str]) -> tuple[str, ...]:
    """The linear layers with low-rank adapters, by our names of tensors; in the order of a layer's parts."""
    found = {name.split(".")[-3] for name in own if _OWN_LORA.match(name)}
    known = [target for target in LORA_ORDER if target in found]
    return (*known, *sorted(found - set(known)))


def released_name(own: str) -> str | None:
    """The public trainers' name of our tensor; None where they have no such part."""
    if _OWN_LORA.match(own):
        return _OWN_LORA.sub(_RELEASED_LORA, own)
    for pattern, target in _TO_RELEASED:
        if pattern.match(own):
            return pattern.sub(target, own)
    return None

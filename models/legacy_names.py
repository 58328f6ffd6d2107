"""The parameter names of SALMONN's released adapters, and ours."""

import re

from torch import Tensor

# SALMONN name -> our name, tried in order; the first that matches is applied.
RENAMES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^speech_query_tokens$", r"connector.qformer.query_tokens"),
        (r"^ln_speech\.", r"connector.norms.whisper."),
        (r"^ln_audio\.", r"connector.norms.beats."),
        (r"^speech_llama_proj\.", r"connector.to_llm."),
        (r"^speech_Qformer\.bert\.embeddings\.LayerNorm\.", r"connector.qformer.input_norm."),
        (
            r"^speech_Qformer\.bert\.encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.",
            r"connector.qformer.layers.\1.self_attention.\2.",
        ),
        (
            r"^speech_Qformer\.bert\.encoder\.layer\.(\d+)\.crossattention\.self\.(query|key|value)\.",
            r"connector.qformer.layers.\1.cross_attention.\2.",
        ),
        (
            r"^speech_Qformer\.bert\.encoder\.layer\.(\d+)\.attention\.output\.dense\.",
            r"connector.qformer.layers.\1.self_attention.output.",
        ),
        (
            r"^speech_Qformer\.bert\.encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.",
            r"connector.qformer.layers.\1.self_attention.norm.",
        ),
        (
            r"^speech_Qformer\.bert\.encoder\.layer\.(\d+)\.crossattention\.output\.dense\.",
            r"connector.qformer.layers.\1.cross_attention.output.",
        ),
        (
            r"^speech_Qformer\.bert\.encoder\.layer\.(\d+)\.crossattention\.output\.LayerNorm\.",
            r"connector.qformer.layers.\1.cross_attention.norm.",
        ),
        (
            r"^speech_Qformer\.bert\.encoder\.layer\.(\d+)\.intermediate_query\.dense\.",
            r"connector.qformer.layers.\1.intermediate.",
        ),
        (
            r"^speech_Qformer\.bert\.encoder\.layer\.(\d+)\.output_query\.dense\.",
            r"connector.qformer.layers.\1.output.",
        ),
        (
            r"^speech_Qformer\.bert\.encoder\.layer\.(\d+)\.output_query\.LayerNorm\.",
            r"connector.qformer.layers.\1.norm.",
        ),
    )
)
WITHOUT_EFFECT = re.compile(r"^speech_Qformer\.bert\.embeddings\.position_ids$")  # a buffer that nothing reads


def connector_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The connector's part of a SALMONN state dict under our names; other entries are left out."""
    renamed = {}
    for name, tensor in state.items():
        if WITHOUT_EFFECT.match(name):
            continue
        for pattern, replacement in RENAMES:
            if pattern.match(name):
                renamed[pattern.sub(replacement, name)] = tensor
                break
    return renamed

"""From assembled prompts to text."""

from support.lazy_names import lazy_names

_HOMES = {
    "DecodeEngine": "models.decoding.engine",
    "GenerateOptions": "models.decoding.scores",
    "Generation": "models.decoding.hypothesis",
    "KeyValueCache": "models.decoding.kv_cache",
    "decode_step": "models.decoding.steps",
    "generate": "models.decoding.generation",
    "prefill": "models.decoding.steps",
    "stream": "models.decoding.generation",
}

__all__ = list(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)

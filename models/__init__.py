"""The models: `build_model` and `load_model` make one, `SALMONN` is one. Nothing is imported before it is asked for."""

from models.runtime import quiet  # noqa: F401 - before the libraries that it silences are imported
from support.lazy_names import lazy_names

_HOMES = {
    "CheckpointError": "models.checkpoint.adapter_tensors",
    "SALMONN": "models.salmonn",
    "build_model": "models.build",
    "load_model": "models.build",
    "pick_device": "models.device",
}

__all__ = list(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)

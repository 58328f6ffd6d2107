"""Trained parameters on disk: our adapter folders, and the released files of other programs."""

from support.lazy_names import lazy_names

_HOMES = {
    "CheckpointError": "models.checkpoint.adapter_tensors",
    "LoadReport": "models.checkpoint.adapter_tensors",
    "adapter_state_dict": "models.checkpoint.adapter_folder",
    "checkpoint_of": "models.checkpoint.adapter_folder",
    "load_adapter": "models.checkpoint.adapter_folder",
    "load_legacy": "models.checkpoint.released",
    "load_projection": "models.checkpoint.adapter_folder",
    "read_adapter": "models.checkpoint.adapter_folder",
    "save_adapter": "models.checkpoint.adapter_folder",
    "verify_folder": "models.checkpoint.adapter_folder",
    "write_adapter": "models.checkpoint.adapter_folder",
}

__all__ = list(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)

"""Encoder outputs to audio tokens: windows, Q-Former, projection."""

from support.lazy_names import lazy_names

_HOMES = {
    "Connector": "models.connector.connector",
    "QFormer": "models.connector.qformer",
    "QFormerConfig": "models.connector.qformer",
}

__all__ = list(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)

"""Audio encoders: waveforms to frames."""

from support.lazy_names import lazy_names

_HOMES = {
    "AudioEncoder": "models.encoders.base",
    "ENCODERS": "models.encoders.table",
    "EncoderStack": "models.encoders.stack",
    "FrameCache": "models.encoders.frame_cache",
    "Frames": "models.frames",
    "build_encoder": "models.encoders.table",
}

__all__ = list(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)

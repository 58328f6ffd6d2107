"""The public name of `models.encoders.whisper`; nothing of ours imports it."""

from models.encoders.whisper import *  # noqa: F403

"""The public name of `models.encoders.beats`; nothing of ours imports it."""

from models.encoders.beats import *  # noqa: F403

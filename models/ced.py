"""The public name of `models.encoders.ced`; nothing of ours imports it."""

from models.encoders.ced import *  # noqa: F403

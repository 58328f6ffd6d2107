"""The public name of `models.connector.qformer`; nothing of ours imports it."""

from models.connector.qformer import *  # noqa: F403

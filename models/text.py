"""The public name of `models.language.text`; nothing of ours imports it."""

from models.language.text import *  # noqa: F403

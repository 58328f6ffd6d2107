"""The error of every annotation file, also of those that other programs wrote."""

from __future__ import annotations

from support.command_line import UserError


class AnnotationError(UserError):
    """An annotation file that a user must fix: names the file, the entry, the field."""

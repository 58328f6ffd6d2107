"""Before minutes of work: is there any clip, and any text to learn?"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from data.annotations import Annotation
from data.file_names import near_name
from support.command_line import UserError

if TYPE_CHECKING:
    from data.batch import BadClip

log = logging.getLogger(__name__)


class NoClips(UserError):
    """None of the clips can be used."""


def require_files(annotations: Sequence[Annotation], prefix: str | None, key: str) -> None:
    """Check that some clip's file exists; stops at the first that does.

    Raises:
        NoClips: none does.
    """
    if not annotations or any(os.path.exists(annotation.path) for annotation in annotations):
        return
    first = annotations[0]
    os.fsencode(first.path)  # in a locale without UTF-8 this is the reason, which the command line explains
    near = near_name(first.path)
    meant = f"; {near} is there" if near else ""
    raise NoClips(
        f"{key}: no file is there for any of the {len(annotations):,} clips: the first is {first.path} "
        f"({first.source}){meant}; {_prefix_words(prefix)}. Correct it, or the annotations' paths"
    )


def require_some_usable(bad: Collection[BadClip], total: int, prefix: str | None) -> None:
    """Check, at the end, that not all of the clips were bad ones.

    Raises:
        NoClips: all were.
    """
    if bad and len(bad) >= total:
        first = next(iter(bad))
        raise NoClips(
            f"none of the {total:,} clips could be used, so nothing was learned: the first is {first.path}: "
            f"{first.reason}; {_prefix_words(prefix)}"
        )


def _prefix_words(prefix: str | None) -> str:
    if not prefix:
        return "datasets.prefix is not set"
    no_folder = "" if os.path.isdir(os.path.expanduser(prefix)) else ", which is no folder"
    return f"datasets.prefix = {prefix}{no_folder}"


def require_texts(annotations: Sequence[Annotation], key: str) -> None:
    """Check that clips to train on have texts; an empty one, which trains silence, is counted.

    Raises:
        UserError: all texts are empty.
    """
    empty = [annotation for annotation in annotations if not any(text.strip() for text in annotation.texts)]
    if not empty:
        return
    if len(empty) == len(annotations):
        raise UserError(
            f"{key}: the text of each of the {len(annotations):,} clips is empty, so there is nothing to learn; is it "
            "a test file?"
        )
    log.warning(
        "%s: the text of %s of %s clips is empty (first: %s): the model is trained to answer nothing to them",
        key, f"{len(empty):,}", f"{len(annotations):,}", empty[0].source,
    )  # fmt: skip

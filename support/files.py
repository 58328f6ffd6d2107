"""What JSON can say: numbers that are not finite have no form in it, though Python writes them."""

import math
import os
from pathlib import Path
from typing import Any


def jsonable(value: Any) -> Any:
    """The same with null in the place of NaN and infinity, however deep."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old or the new content, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)

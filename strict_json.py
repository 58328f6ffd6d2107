"""What JSON can say: numbers that are not finite have no form in it, though Python writes them."""

import math
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

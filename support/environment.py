"""`.env`, a file of the working folder with keys (`HF_TOKEN=…`, one a line), for those who keep them out of YAML files.

What is set in the environment already is never changed, and no value is ever shown.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

FILE = ".env"
NAMES = {"HF_KEY": "HF_TOKEN", "WANDB_KEY": "WANDB_API_KEY"}
"""Names in the family's files -> those that the libraries read."""


def read_environment_file(folder: str | Path = ".") -> list[str]:
    """Set the variables of `folder`'s `.env` that are not set yet; their names. Lines that are no `NAME=value` are
    named on stderr by their numbers, since their content may be a secret; empty values mean "not given".

    Raises:
        OSError: there is such a file, and it is no text in UTF-8 or cannot be read; in one sentence.
    """
    path = Path(folder) / FILE
    if not path.is_file():  # absent, or a folder: some name their virtual environment so
        return []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise OSError(f"{path}: not a text file in UTF-8 (at byte {error.start}); expected lines NAME=value") from None
    except OSError as error:
        raise OSError(f"{path}: cannot be read ({error.strerror}); change its permissions, or move it away") from None
    values, wrong = _parsed(text)
    if wrong:
        lines = f"line{'s' * (len(wrong) > 1)} {', '.join(map(str, wrong))}"
        print(f"{path}: {lines}: ignored, expected NAME=value", file=sys.stderr)
    given = {NAMES.get(name, name): value for name, value in values.items()} | values  # a library's own name wins
    added = [name for name, value in given.items() if value and name not in os.environ]
    os.environ.update({name: given[name] for name in added})
    return added


def _parsed(text: str) -> tuple[dict[str, str], list[int]]:
    """Names and values, taken as they are written (`$` too), and the numbers of lines that are neither."""
    from dotenv.parser import parse_stream

    values: dict[str, str] = {}
    wrong: list[int] = []
    for binding in parse_stream(io.StringIO(text)):
        if binding.error or (binding.key is not None and (binding.value is None or "\0" in binding.value)):
            wrong.append(binding.original.line)
        elif binding.key is not None:
            values[binding.key] = binding.value
    return values, wrong

"""The public face of `scoring`: every figure of its files, in one module."""

import ast
from pathlib import Path

import metrics
import scoring


def test_every_figure_is_offered() -> None:
    """Public functions of all files, read from the source; the face leaves out checks and what raises for None."""
    found = set()
    for file in Path(scoring.__file__).parent.glob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith(("_", "check_")):
                found.add(node.name)
    assert {name for name in found if not name.endswith("_or_raise")} <= set(vars(metrics))


def test_a_figure_through_the_face() -> None:
    assert metrics.wer(["a dog barks"], ["a dog"]).wer == 1 / 3
    assert metrics.score("asr", ["a dog"], ["a dog"])["wer"] == 0.0

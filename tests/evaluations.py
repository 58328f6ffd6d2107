"""Evaluations of tiny projects for tests: the command, its output files, and a fake model."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import torch

import evaluate
from configs.schema import load_config
from data.annotations import Annotation
from evaluation import hypotheses, modes
from tests import tiny


def run(project: tiny.TinyProject, *arguments: str) -> int:
    return evaluate.main(["--cfg-path", str(project.config), *arguments])


def outputs(project: tiny.TinyProject, mode: str) -> tuple[list[dict], list[dict], dict]:
    """Rows of the CSV, lines of the predictions, and the scores."""
    folder = project.output / "eval" / mode
    with (folder / "submission.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    return rows, lines, json.loads((folder / "scores.json").read_text(encoding="utf-8"))


def entries(path: Path) -> list[dict]:
    return json.loads(path.read_text())["annotation"]


def annotation(path: str, text: str, task: str = "asr", **fields) -> Annotation:
    return Annotation(path=path, text=text, task=task, texts=(text,), **fields)


class Echo:
    """A fake model: each hypothesis is the clip's length; it records the batches."""

    device = torch.device("cpu")
    text = SimpleNamespace(tokenizer=SimpleNamespace(all_special_tokens=["<~>"]))
    llm = SimpleNamespace(positions=None)

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def generate_each(self, batches, *, at_once, frames=None, **options):
        results = []
        for waveforms, lengths, _ in batches:
            assert waveforms.shape[1] == lengths.max() and len(lengths) <= at_once
            self.batches.append(lengths.tolist())
            results += [
                SimpleNamespace(text=f"<s>{length}<~> samples</s>", tokens=[1, 2], stop_reason="end")
                for length in lengths.tolist()
            ]
        yield from reversed(list(enumerate(results)))  # results need not come in the order of the clips


def evaluated(project: tiny.TinyProject, model: Echo, *overrides: str, **options) -> hypotheses.EvaluationResult:
    config = load_config(project.config, list(overrides))
    annotations = modes.select_annotations(config, "submission_asr")
    prompts = {"asr": "<Speech><SpeechHere></Speech> Say it."}
    return hypotheses.evaluate_annotations(model, annotations, prompts, config, **options)

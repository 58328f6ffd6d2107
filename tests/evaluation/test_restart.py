"""Interrupted evaluations: when one continues, and when it starts from scratch."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import evaluate
from configs.schema import load_config
from models import build_model
from models.checkpoint.adapter_folder import save_adapter
from tests import tiny
from tests.conftest import ROOT
from tests.evaluations import entries, outputs, run


def test_a_mended_clip_is_tried_again(project: tiny.TinyProject, generated: list[int]) -> None:
    annotations = entries(project.test_asr)
    clip = project.test_asr.parent / annotations[2]["path"]
    content = clip.read_bytes()
    clip.write_bytes(b"")
    assert run(project, "--mode", "submission_asr") == 0
    assert outputs(project, "submission_asr")[2]["failed"] == 1
    clip.write_bytes(content)
    generated.clear()
    assert run(project, "--mode", "submission_asr") == 0
    rows, _, scores = outputs(project, "submission_asr")
    assert sum(generated) == 1 and scores["failed"] == 0 and rows[2]["text"]
    assert (project.output / "eval/submission_asr/quarantine.jsonl").exists() is False


def test_a_restart_goes_on_where_it_stopped(project: tiny.TinyProject, generated: list[int]) -> None:
    assert run(project, "--mode", "submission_asr", "--options", "run.batch_size_eval=1") == 0
    folder = project.output / "eval/submission_asr"
    complete = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert generated == [1] * 5

    generated.clear()
    lines = complete["predictions.jsonl"].splitlines(keepends=True)
    (folder / "predictions.jsonl").write_bytes(lines[3] + lines[1] + lines[0][:40])  # the third was cut off by a kill
    (folder / "submission.csv").unlink()
    assert run(project, "--mode", "submission_asr", "--options", "run.batch_size_eval=1") == 0
    assert generated == [1] * 3
    assert (folder / "submission.csv").read_bytes() == complete["submission.csv"]
    assert (folder / "predictions.jsonl").read_bytes() == complete["predictions.jsonl"]
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["resumed_clips"] == 2 and scores["scores"] == json.loads(complete["scores.json"])["scores"]

    generated.clear()
    elsewhere = project.test_prompts.with_name("the_same_prompts.json")
    elsewhere.write_bytes(project.test_prompts.read_bytes())
    same = [f"model.test_prompt_path={elsewhere}", "model.prompt_path=null"]
    assert run(project, "--mode", "submission_asr", "--options", *same) == 0
    assert generated == []


def test_a_restart_with_anything_else_starts_afresh(
    project: tiny.TinyProject, generated: list[int], capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    assert run(project, "--mode", "submission_asr") == 0
    capsys.readouterr()

    config = load_config(project.config)
    torch.manual_seed(5)
    save_adapter(build_model(config.model), tmp_path / "other", config=config, metrics={})
    prompts = json.loads(project.test_prompts.read_text()) | {"asr": "<Speech><SpeechHere></Speech> Type it."}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    annotations = entries(project.test_asr)
    annotations[0]["text"] = "another reference"
    tiny.write_annotations(tmp_path / "corpus/changed.json", annotations)
    for options, name in (
        (["generate.max_new_tokens=4"], "generation settings"),
        ([f"model.ckpt={tmp_path / 'other'}"], "adapter"),
        ([f"model.test_prompt_path={tmp_path / 'prompts.json'}"], "prompts"),
        ([f"datasets.test_ann_path_asr={tmp_path / 'corpus/changed.json'}"], "annotations"),
        (["model.window=full"], "model"),
    ):
        run(project, "--mode", "submission_asr")  # back to the first settings
        generated.clear()
        capsys.readouterr()
        assert run(project, "--mode", "submission_asr", "--options", *options) == 0
        printed = capsys.readouterr().out
        assert sum(generated) == 5 and "starting from the beginning" in printed and name in printed


def test_lines_without_their_hashes_are_not_trusted(project: tiny.TinyProject, generated: list[int]) -> None:
    assert run(project, "--mode", "submission_asr") == 0
    (project.output / "eval/submission_asr/run.json").unlink()
    generated.clear()
    assert run(project, "--mode", "submission_asr") == 0
    assert sum(generated) == 5


SLOW_MODEL = """
import sys, time
import evaluate
from models import SALMONN
real = SALMONN.encode_audio
def slow(*arguments):
    time.sleep(0.5)
    return real(*arguments)
SALMONN.encode_audio = slow
sys.exit(evaluate.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_written(project: tiny.TinyProject, generated: list[int], tmp_path: Path) -> None:
    arguments = ["--cfg-path", str(project.config), "--mode", "submission_asr", "--options", "run.batch_size_eval=1"]
    process = subprocess.Popen([sys.executable, "-c", SLOW_MODEL, *arguments], cwd=ROOT)
    written = project.output / "eval/submission_asr/predictions.jsonl"
    deadline = time.monotonic() + 400
    while not (written.exists() and written.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = written.read_bytes().count(b"\n")
    assert 2 <= kept < 5
    assert evaluate.main(arguments) == 0
    assert sum(generated) == 5 - kept
    resumed = (project.output / "eval/submission_asr/submission.csv").read_bytes()
    assert evaluate.main([*arguments, f"run.output_dir={tmp_path / 'whole'}"]) == 0
    assert (tmp_path / "whole/eval/submission_asr/submission.csv").read_bytes() == resumed

"""From clips to hypotheses: batches, caches, limits, several processes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import evaluate
from tests import tiny
from tests.conftest import ROOT
from tests.evaluations import Echo, entries, evaluated, outputs, run
from training.stopping import Interrupted


def test_batch_size_workers_and_cache_do_not_change_the_csv(project: tiny.TinyProject, tmp_path: Path) -> None:
    found = set()
    for number, options in enumerate(
        (["run.batch_size_eval=1"], ["run.batch_size_eval=8", "run.num_workers=1"], ["run.batch_size_eval=3"])
    ):
        output = tmp_path / f"run{number}"
        cache = [f"datasets.cache_encoder_outputs={tmp_path / 'cache'}"] if number == 2 else []
        assert run(project, "--mode", "valid_all", "--options", f"run.output_dir={output}", *options, *cache) == 0
        found.add((output / "eval/valid_all/submission.csv").read_bytes())
    assert len(found) == 1
    assert any((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.slow
def test_two_processes_write_the_csv_of_one(project: tiny.TinyProject, tmp_path: Path) -> None:
    corpus = project.test_asr.parent
    annotations = entries(project.test_asr)
    annotations.insert(1, {"path": "absent.wav", "text": "one", "task": "asr", "testset_id": "absent"})
    tiny.write_annotations(corpus / "test_asr.json", annotations)
    arguments = ["--cfg-path", str(project.config), "--mode", "submission_asr", "--options", "run.batch_size_eval=2"]
    assert evaluate.main(arguments) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*launcher, "evaluate.py", *arguments, f"run.output_dir={tmp_path / 'two'}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    for name in ("submission.csv", "predictions.jsonl"):
        two = (tmp_path / "two/eval/submission_asr" / name).read_bytes()
        assert two == (project.output / "eval/submission_asr" / name).read_bytes()
    assert not list((tmp_path / "two/eval/submission_asr").glob("predictions.rank*"))


def test_batches_hold_like_lengths_and_special_tokens_go(project: tiny.TinyProject) -> None:
    model = Echo()
    result = evaluated(project, model, "run.batch_size_eval=2")
    lengths = [length for batch in model.batches for length in batch]
    assert lengths == sorted(lengths, reverse=True) and [len(batch) for batch in model.batches] == [2, 2, 1]
    for prediction in result.predictions:
        assert prediction.hypothesis == f"{round(prediction.seconds * 16_000)} samples"
    assert result.scores["asr.wer"] > 0


def test_it_can_be_asked_to_stop(project: tiny.TinyProject) -> None:
    with pytest.raises(Interrupted):
        evaluated(project, Echo(), should_stop=lambda: True)


def test_a_clip_exactly_as_long_as_the_limit_is_not_cut(
    project: tiny.TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = entries(project.test_asr)[:2]
    for clip, samples in zip(clips, (8000, 8001), strict=True):
        clip["path"] = str(project.output.parent / f"{samples}.wav")
        soundfile.write(clip["path"], np.full(samples, 0.1, np.float32), 16_000)
    tiny.write_annotations(project.test_asr, clips)
    assert run(project, "--mode", "submission_asr", "--options", "datasets.max_audio_s=0.5") == 0
    _, predictions, scores = outputs(project, "submission_asr")
    assert [row["cut"] for row in predictions] == [False, True] and scores["cut_to_max_audio_s"] == 1
    assert "cut to datasets.max_audio_s = 0.5 s: 1 of 2 clips" in capsys.readouterr().out

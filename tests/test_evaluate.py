"""Evaluation end to end: rows, restarts, kills, bad clips, swapped audio, several processes."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import yaml

import evaluate
import metrics
from configs.parsing import ConfigError
from configs.schema import load_config
from data.annotations import Annotation, AnnotationError
from evaluation import hypotheses, modes
from evaluation.predictions import Prediction, PredictionStore, row_ids
from evaluation.swapped_audio import swap_audio
from models import SALMONN, build_model
from models.checkpoint.adapter_folder import save_adapter
from scoring import tasks as scored_tasks
from tests import tiny
from tools import check_submission
from training.stopping import Interrupted

ROOT = Path(evaluate.__file__).parent


@pytest.fixture(autouse=True)
def without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR takes seconds to start; its own tests start it."""

    def refuse(*arguments) -> float:
        raise metrics.MetricUnavailable("no Java in this test")

    monkeypatch.setattr(scored_tasks, "meteor_or_raise", refuse)


@pytest.fixture
def project(shared_tiny_project: tiny.TinyProject, tmp_path: Path) -> tiny.TinyProject:
    """The shared project with an output folder and annotation files of the test's own."""
    corpus = tmp_path / "corpus"
    shutil.copytree(shared_tiny_project.test_asr.parent, corpus)
    names = {name: corpus / getattr(shared_tiny_project, name).name for name in ("valid", "test_asr", "test_aac")}
    content = yaml.safe_load(shared_tiny_project.config.read_text())
    content["datasets"] |= {
        "prefix": str(corpus),
        "valid_ann_path": str(names["valid"]),
        "test_ann_path_asr": str(names["test_asr"]),
        "test_ann_path_aac": str(names["test_aac"]),
    }
    content["run"]["output_dir"] = str(tmp_path / "outputs")
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(content))
    return dataclasses.replace(shared_tiny_project, config=config, output=tmp_path / "outputs", **names)


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the model really heard."""
    sizes: list[int] = []
    real = SALMONN.encode_audio

    def counting(model, waveforms, *rest):
        sizes.append(len(waveforms))
        return real(model, waveforms, *rest)

    monkeypatch.setattr(SALMONN, "encode_audio", counting)
    return sizes


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


# Outputs


def test_submission_has_every_row_once_in_order(project: tiny.TinyProject, capsys: pytest.CaptureFixture) -> None:
    annotations = entries(project.test_asr)
    annotations[1] |= {"testset_id": 17, "speaker": "ann", "seconds": 99}
    tiny.write_annotations(project.test_asr, annotations)
    assert run(project, "--mode", "submission_asr", "--options", "model.token=hf_secret", "run.batch_size_eval=2") == 0
    rows, lines, scores = outputs(project, "submission_asr")
    assert [row["testset_id"] for row in rows] == [str(entry["testset_id"]) for entry in annotations]
    assert [line["id"] for line in lines] == [row["testset_id"] for row in rows]
    assert [line["hypothesis"] for line in lines] == [row["text"] for row in rows]
    assert [line["reference"] for line in lines] == [entry["text"] for entry in annotations]
    assert lines[1]["speaker"] == "ann" and lines[1]["annotation_seconds"] == 99
    prompt = json.loads(project.test_prompts.read_text())["asr"]
    for line, entry in zip(lines, annotations, strict=True):
        assert line["path"].endswith(entry["path"]) and line["prompt"] == prompt and line["task"] == "asr"
        assert line["seconds"] == pytest.approx(soundfile.info(line["path"]).duration, abs=1e-3)
        assert line["error"] is None and line["tokens"] > 0
    assert set(scores["scores"]) >= {"wer", "wer_nota"} and scores["directions"]["wer"] == "min"
    assert (scores["clips"], scores["failed"]) == (len(annotations), 0)
    assert 0 < scores["generation_seconds"] <= scores["seconds"] + 0.01
    assert scores["commit"] is None or len(scores["commit"]) >= 40
    assert scores["versions"]["torch"] == torch.__version__
    written = "".join(path.read_text() for path in (project.output / "eval" / "submission_asr").iterdir())
    assert "hf_secret" not in written
    assert "untrained connector" in capsys.readouterr().err
    assert (
        check_submission.main([str(project.output / "eval/submission_asr/submission.csv"), str(project.test_asr)]) == 0
    )


def test_captions_keep_all_references(project: tiny.TinyProject) -> None:
    assert run(project, "--mode", "submission_aac") == 0
    rows, lines, scores = outputs(project, "submission_aac")
    annotations = entries(project.test_aac)
    assert len(rows) == len(annotations)
    assert [line["references"] for line in lines] == [entry["texts"] for entry in annotations]
    assert lines[0]["scene"] == annotations[0]["scene"]
    assert scores["scores"]["cider_d"] is not None
    assert scores["scores"]["spider"] is not None or "spice" in scores["tasks"]["audiocaption"]["reasons"]["spider"]


def test_as_older_scripts_call_it(project: tiny.TinyProject) -> None:
    assert run(project, "--task", "asr", "--skip_scoring") == 0
    _, _, scores = outputs(project, "submission_asr")
    assert scores["scores"] == {"wer": None, "asr.wer": None}
    assert scores["tasks"]["asr"]["reasons"] == {"wer": "scoring was skipped"}
    assert run(project, "--task", "asr") == 0
    _, lines, scores = outputs(project, "valid_asr")
    assert {line["task"] for line in lines} == {"asr"} and scores["scores"]["wer"] is not None


def test_clips_without_reference_or_name(project: tiny.TinyProject) -> None:
    annotations = [{"path": entry["path"], "task": "asr"} for entry in entries(project.test_asr)]
    tiny.write_annotations(project.test_asr, annotations)
    assert run(project, "--mode", "submission_asr") == 0
    rows, lines, scores = outputs(project, "submission_asr")
    assert [row["testset_id"] for row in rows] == [Path(entry["path"]).stem for entry in annotations]
    assert lines[0]["reference"] is None
    assert scores["scores"] == {"wer": None, "asr.wer": None}
    assert "5 of 5 clips have no reference" in scores["tasks"]["asr"]["reasons"]["wer"]


def test_an_empty_text_among_others_is_an_empty_reference(project: tiny.TinyProject) -> None:
    annotations = entries(project.test_asr)
    annotations[0]["text"] = ""
    tiny.write_annotations(project.test_asr, annotations)
    assert run(project, "--mode", "submission_asr") == 0
    _, lines, scores = outputs(project, "submission_asr")
    assert lines[0]["references"] == [""]
    assert scores["scores"]["wer"] is not None
    tiny.write_annotations(project.test_asr, [{**entry, "text": ""} for entry in annotations])
    assert run(project, "--mode", "submission_asr") == 0
    assert outputs(project, "submission_asr")[2]["scores"] == {"wer": None, "asr.wer": None}


def test_another_adapter_brings_its_own_kind(project: tiny.TinyProject) -> None:
    config = load_config(project.config)
    assert config.with_adapter("x.pth").model.legacy == "weights"
    exact = load_config(project.config, ["model.legacy=exact"])
    assert exact.with_adapter("x.pth").model.legacy == "exact"


def test_every_task_has_its_own_scores(project: tiny.TinyProject) -> None:
    assert run(project, "--mode", "valid_all") == 0
    _, lines, scores = outputs(project, "valid_all")
    assert [line["id"] for line in lines] == [entry["testset_id"] for entry in entries(project.valid)]
    assert set(scores["tasks"]) == {"asr", "audiocaption"}
    assert {"asr.wer", "audiocaption.cider_d"} <= set(scores["scores"])
    assert run(project, "--mode", "test_all", "--skip_scoring") == 0
    rows, _, scores = outputs(project, "test_all")
    assert len(rows) == len(entries(project.test_asr)) + len(entries(project.test_aac))


def test_names_of_figures_do_not_depend_on_what_else_is_in_the_file(project: tiny.TinyProject) -> None:
    """`wer` is that of task asr, with or without another task of its family, or of none, beside it."""
    clips = entries(project.test_asr)
    found = []
    for tasks in (["asr"], ["asr", "asr_zh"], ["asr", "QA"]):
        further = [
            {**clip, "task": task, "Q": "Who speaks?", "testset_id": f"{task}{number}"}
            for task in tasks[1:]
            for number, clip in enumerate(clips)
        ]
        tiny.write_annotations(project.test_asr, [*clips, *further])
        prompts = json.loads(project.test_prompts.read_text()) | {"asr_zh": "<Speech><SpeechHere></Speech> Write it."}
        project.test_prompts.write_text(json.dumps(prompts))
        assert run(project, "--mode", "submission_asr", "--no-java") == 0
        scores = outputs(project, "submission_asr")[2]
        assert "by_file" not in scores and set(scores["tasks"]) == set(tasks)
        found.append({name: value for name, value in scores["scores"].items() if not name.startswith(("asr_zh", "QA"))})
        assert scores["scores"]["wer"] == scores["scores"]["asr.wer"] == scores["tasks"]["asr"]["scores"]["wer"]
    assert found[0] == found[1] == found[2]


def test_scores_of_each_file_stand_beside_those_of_all(
    project: tiny.TinyProject, capsys: pytest.CaptureFixture
) -> None:
    clips = entries(project.test_asr)
    further = tiny.write_annotations(project.test_asr.with_name("further.json"), [{**clips[0], "testset_id": "again"}])
    files = f"datasets.test_ann_path_asr=[{json.dumps(str(project.test_asr))}, {json.dumps(str(further))}]"
    assert run(project, "--mode", "submission_asr", "--options", files) == 0
    scores = outputs(project, "submission_asr")[2]
    parts = scores["by_file"]
    assert {file: part["clips"] for file, part in parts.items()} == {str(project.test_asr): 5, str(further): 1}
    for count in ("substitutions", "deletions", "insertions", "reference_words"):
        assert sum(part["scores"][f"asr.{count}"] for part in parts.values()) == scores["scores"][f"asr.{count}"]
    assert parts[str(further)]["scores"]["wer"] == parts[str(further)]["scores"]["asr.wer"] is not None
    assert f"{further} (1 clips): asr.wer " in capsys.readouterr().out


def test_without_a_mode_every_test_file_is_evaluated(project: tiny.TinyProject) -> None:
    assert run(project) == 0
    assert {path.name for path in (project.output / "eval").iterdir()} == {"submission_asr", "submission_aac"}


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


# Bad input


def test_bad_clips_keep_their_rows(project: tiny.TinyProject) -> None:
    corpus = project.test_asr.parent
    (corpus / "empty.wav").touch()
    (corpus / "text.wav").write_text("no audio at all")
    soundfile.write(corpus / "silent.wav", [], 16_000)
    soundfile.write(corpus / "nan.wav", [0.0, float("nan")] * 800, 16_000, subtype="FLOAT")
    soundfile.write(corpus / "short.wav", [0.1] * 800, 16_000)  # 0.05 s
    names = ["absent.wav", "empty.wav", "text.wav", "silent.wav", "nan.wav", "short.wav"]
    bad = [{"path": name, "text": "one", "task": "asr", "testset_id": name} for name in names]
    tiny.write_annotations(project.test_asr, [*bad[:3], *entries(project.test_asr), *bad[3:]])
    assert run(project, "--mode", "submission_asr", "--options", "run.batch_size_eval=2") == 0
    rows, lines, scores = outputs(project, "submission_asr")
    assert len(rows) == 5 + len(names)
    failed = {line["id"]: line for line in lines if line["error"]}
    assert list(failed) == names[:5]
    assert all(not row["text"] for row in rows if row["testset_id"] in failed)
    assert scores["failed"] == 5 and [failure["id"] for failure in scores["failures"]] == names[:5]
    assert scores["tasks"]["asr"]["scores"]["deletions"] >= 5
    quarantined = (project.output / "eval/submission_asr/quarantine.jsonl").read_text().splitlines()
    assert [Path(json.loads(line)["path"]).name for line in quarantined] == names[:5]


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode", "valid_asr", "--options", "datasets.valid_ann_path="], "datasets.valid_ann_path: not given"),
        (["--mode", "submission_aac", "--options", "datasets.test_ann_path_aac="], "datasets.test_ann_path_aac"),
        (
            ["--mode", "submission_asr", "--options", "datasets.test_ann_path_asr=no.json"],
            "no.json: no such annotation",
        ),
        (["--mode", "submission_asr", "--options", "model.ckpt=/nowhere"], "/nowhere"),
        (["--mode", "submission_asr", "--options", "model.test_prompt_path=no.json"], "no.json"),
        (["--mode", "submission_asr", "--ckpt", "/nowhere"], "/nowhere"),
        (["--mode", "submission_asr", "--device", "gpu"], "'gpu': no such device"),
    ],
)
def test_errors_name_what_is_wrong(
    project: tiny.TinyProject, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    assert run(project, *arguments) == 1
    assert message in capsys.readouterr().err


def test_a_file_without_the_family_is_an_error(project: tiny.TinyProject) -> None:
    config = load_config(project.config, [f"datasets.valid_ann_path={project.test_aac}"])
    with pytest.raises(ConfigError, match=r"no clip for --mode valid_asr.*audiocaption \(4\)"):
        modes.select_annotations(config, "valid_asr")


def test_a_task_without_prompt_ends_the_run_before_it_starts(
    project: tiny.TinyProject, capsys: pytest.CaptureFixture, generated: list[int]
) -> None:
    annotations = entries(project.test_asr)
    annotations[-1]["task"] = "juggling"
    tiny.write_annotations(project.test_asr, annotations)
    assert run(project, "--mode", "submission_asr") == 1
    message = capsys.readouterr().err
    assert "no prompt for task 'juggling'" in message and not generated
    assert f"{project.test_asr}#{len(annotations) - 1}: field 'task': " in message


# Restarts


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
        assert sum(generated) == 5 and "starting afresh" in printed and name in printed


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


def test_other_processes_lines_are_read_too(tmp_path: Path) -> None:
    def prediction(index: int, **fields) -> Prediction:
        return Prediction(index=index, id=str(index), path="a.wav", task="asr", prompt="p", hypothesis="h", **fields)

    first, second = PredictionStore(tmp_path), PredictionStore(tmp_path, rank=1)
    assert first.open_run({"adapter": "1"}) == []
    first.append([prediction(0, references=("a", "b"), extra={"speaker": "x"})])
    second.append([prediction(1), prediction(2, error="broken")])
    first.close(), second.close()
    again = PredictionStore(tmp_path)
    assert again.open_run({"adapter": "1"}) == []
    done = again.done(3)
    assert sorted(done) == [0, 1] and done[0].extra == {"speaker": "x"} and done[0].references == ("a", "b")
    assert again.done(1).keys() == {0}
    assert again.open_run({"adapter": "2"}) == ["adapter"]
    assert again.done(3) == {}


# Swapped audio


def annotation(path: str, text: str, task: str = "asr", **fields) -> Annotation:
    return Annotation(path=path, text=text, task=task, texts=(text,), **fields)


def test_swapping_gives_every_clip_another_ones_audio() -> None:
    clips = [annotation(f"{i}.wav", f"text {i % 3}") for i in range(30)]
    clips += [annotation(f"sound{i}.wav", f"sound {i}", "audiocaption", expand_wav=(f"more{i}.wav",)) for i in range(5)]
    swap = swap_audio(clips, seed=3)
    assert all(new.path != old.path and new.text == old.text for new, old in zip(swap.annotations, clips, strict=True))
    assert sorted(new.path for new in swap.annotations) == sorted(old.path for old in clips)
    assert {new.path for new in swap.annotations[30:]} == {old.path for old in clips[30:]}
    assert all(new.expand_wav[0] == new.path.replace("sound", "more") for new in swap.annotations[30:])
    texts = {clip.path: clip.text for clip in clips}
    assert swap.same_reference == 0 == sum(texts[new.path] == new.text for new in swap.annotations)
    assert swap_audio(clips, seed=3) == swap != swap_audio(clips, seed=4)


def test_swapping_where_references_are_alike() -> None:
    swap = swap_audio([annotation(f"{i}.wav", "yes") for i in range(4)] + [annotation("n.wav", "no")], seed=0)
    assert swap.same_reference == 3
    pair = swap_audio([annotation("a.wav", "yes"), annotation("b.wav", "dog", "audiocaption")], seed=0)
    assert [clip.path for clip in pair.annotations] == ["b.wav", "a.wav"]
    with pytest.raises(ValueError, match="two different clips"):
        swap_audio([annotation("a.wav", "yes"), annotation("a.wav", "no", "QA")], seed=0)
    with pytest.raises(ValueError, match="more than half"):
        swap_audio([annotation("a.wav", "yes")] * 3 + [annotation("b.wav", "no")], seed=0)


def test_swapped_evaluation_has_its_own_folder(project: tiny.TinyProject) -> None:
    assert run(project, "--mode", "submission_asr") == 0
    assert run(project, "--mode", "submission_asr", "--swap-audio") == 0
    rows, lines, scores = outputs(project, "submission_asr_swapped")
    plain_rows, plain, _ = outputs(project, "submission_asr")
    assert [row["testset_id"] for row in rows] == [row["testset_id"] for row in plain_rows]
    said = {line["path"]: line["hypothesis"] for line in plain}
    for line in lines:
        assert line["audio_path"] != line["path"] and line["hypothesis"] == said[line["audio_path"]]
    assert scores["swap"]["clips_with_a_common_reference"] == 0


# With a model that only pretends


class Echo:
    """A model whose hypothesis tells the length of what it heard, and which batches it was given."""

    device = torch.device("cpu")
    text = SimpleNamespace(tokenizer=SimpleNamespace(all_special_tokens=["<~>"]))

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def generate_each(self, batches, *, at_once, frame_source=None, **options):
        results = []
        for waveforms, lengths, _ in batches:
            assert waveforms.shape[1] == lengths.max() and len(lengths) <= at_once
            self.batches.append(lengths.tolist())
            results += [
                SimpleNamespace(text=f"<s>{length}<~> samples</s>", tokens=[1, 2], stop_reason="end")
                for length in lengths.tolist()
            ]
        yield from reversed(list(enumerate(results)))  # a clip may be answered before one that came earlier


def evaluated(project: tiny.TinyProject, model: Echo, *overrides: str, **options) -> hypotheses.EvaluationResult:
    config = load_config(project.config, list(overrides))
    annotations = modes.select_annotations(config, "submission_asr")
    prompts = {"asr": "<Speech><SpeechHere></Speech> Say it."}
    return hypotheses.evaluate_annotations(model, annotations, prompts, config, **options)


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


def test_a_task_without_a_metric_is_not_scored(project: tiny.TinyProject) -> None:
    tiny.write_annotations(project.test_asr, [entry | {"task": "juggling"} for entry in entries(project.test_asr)])
    config = load_config(project.config)
    annotations = modes.select_annotations(config, "submission_asr")
    prompts = {"juggling": "<Speech><SpeechHere></Speech> Count."}
    result = hypotheses.evaluate_annotations(Echo(), annotations, prompts, config)
    assert result.tasks["juggling"].primary is None and "add a row" in result.tasks["juggling"].reasons["score"]


# Names of rows, and the check of a submission


def test_an_annotations_own_audio_path_stays_its_own() -> None:
    line = Prediction(
        index=0, id="a", path="a.wav", task="asr", prompt="p", hypothesis="h", extra={"audio_path": "theirs"}
    ).to_json()
    assert line["annotation_audio_path"] == "theirs"
    assert Prediction.from_json(line).audio_path is None
    assert Prediction.from_json(line).to_json() == line


def test_names_of_rows() -> None:
    clips = [
        annotation("a/x.wav", "", testset_id="7"),
        annotation("a/y.wav", ""),
        annotation("a/z.wav", ""),
        annotation("b/z.wav", ""),
        annotation("c/7.wav", ""),
        annotation("d/w.wav", ""),
        annotation("d/w.wav", "", "QA"),
    ]
    assert row_ids(clips) == ["7", "y", "a/z.wav", "b/z.wav", "c/7.wav", "d/w.wav#5", "d/w.wav#6"]


def test_names_of_rows_that_two_files_share() -> None:
    clips = [
        annotation("a.wav", "", testset_id="0", source="data/asr.json#0"),
        annotation("b.wav", "", testset_id="1", source="data/asr.json#1"),
        annotation("c.wav", "", testset_id="0", source="data/aac.json#0"),
    ]
    assert row_ids(clips) == ["asr/0", "1", "aac/0"]
    clips[2] = annotation("c.wav", "", testset_id="0", source="more/asr.json#0")
    assert row_ids(clips) == ["data/asr.json/0", "1", "more/asr.json/0"]


def test_ids_that_two_test_files_share_make_a_row_each(
    project: tiny.TinyProject, capsys: pytest.CaptureFixture
) -> None:
    for path in (project.test_asr, project.test_aac):
        numbered = [entry | {"testset_id": number} for number, entry in enumerate(entries(path))]
        tiny.write_annotations(path, numbered)
    chosen = modes.select_annotations(load_config(project.config), "test_all", announce=True)
    said = capsys.readouterr().out
    assert f"{project.test_asr}#0 and {project.test_aac}#0; their rows are named FILE/ID" in said
    names = [clip.testset_id for clip in chosen]
    assert len(set(names)) == len(names) == len(entries(project.test_asr)) + len(entries(project.test_aac))
    assert {f"{project.test_asr.stem}/0", f"{project.test_aac.stem}/0"} <= set(names)


def test_an_id_that_two_files_of_a_submission_share_is_an_error(project: tiny.TinyProject) -> None:
    further = project.test_asr.with_name("further.json")
    config = load_config(
        project.config,
        [f"datasets.test_ann_path_asr=[{json.dumps(str(project.test_asr))}, {json.dumps(str(further))}]"],
    )
    clips = entries(project.test_asr)
    tiny.write_annotations(project.test_asr, [clip | {"testset_id": i} for i, clip in enumerate(clips)])
    tiny.write_annotations(further, [clip | {"testset_id": i + 4} for i, clip in enumerate(clips)])
    with pytest.raises(AnnotationError) as caught:
        modes.select_annotations(config, "submission_asr")
    assert str(caught.value).startswith(
        f"{further}#0: field 'testset_id': '4' was used before, at {project.test_asr}#4 (1 such in all)"
    )
    tiny.write_annotations(further, [{**clip, "testset_id": None} for clip in clips])  # names of ours are made unique
    names = [clip.testset_id for clip in modes.select_annotations(config, "submission_asr")]
    assert len(set(names)) == len(names) == 2 * len(clips)


def test_the_submission_of_a_mixed_file_is_checked_by_family(tmp_path: Path) -> None:
    mixed = [{"path": f"{task}.wav", "text": "a", "task": task} for task in ("asr", "audiocaption", "QA")]
    file = tiny.write_annotations(tmp_path / "mixed.json", mixed)
    csv_file = tmp_path / "submission.csv"
    csv_file.write_text("testset_id,text\naudiocaption,a dog\n", encoding="utf-8")
    assert check_submission.main([str(csv_file), str(file), "--task", "aac"]) == 0
    assert check_submission.main([str(csv_file), str(file)]) == 1


def test_a_clip_exactly_as_long_as_the_limit_is_not_cut(project: tiny.TinyProject) -> None:
    clips = entries(project.test_asr)[:2]
    for clip, samples in zip(clips, (8000, 8001), strict=True):
        clip["path"] = str(project.output.parent / f"{samples}.wav")
        soundfile.write(clip["path"], np.full(samples, 0.1, np.float32), 16_000)
    tiny.write_annotations(project.test_asr, clips)
    assert run(project, "--mode", "submission_asr", "--options", "datasets.max_audio_s=0.5") == 0
    _, predictions, scores = outputs(project, "submission_asr")
    assert [row["cut"] for row in predictions] == [False, True] and scores["cut_to_max_audio_s"] == 1


def test_a_folder_that_cannot_be_written_is_one_line(project: tiny.TinyProject, capsys: pytest.CaptureFixture) -> None:
    project.output.parent.mkdir(parents=True, exist_ok=True)
    blocked = project.output.parent / "a_file"
    blocked.write_text("")
    assert run(project, "--mode", "submission_asr", "--options", f"run.output_dir={blocked}") == 1
    assert f"run.output_dir = {blocked}: {blocked} is a file" in capsys.readouterr().err.splitlines()[-1]


def test_a_fault_in_scoring_keeps_its_traceback(project: tiny.TinyProject, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: object, **named: object) -> None:
        list(zip([1], [1, 2], strict=True))

    monkeypatch.setattr(metrics, "score_with_reasons", wrong)
    with pytest.raises(ValueError, match="argument 2 is longer"):
        run(project, "--mode", "submission_asr")


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([["a", "x"], ["b", "y"]], None),
        ([["b", "x"], ["a", "y"]], "another order: row 1 is b, expected a"),
        ([["a", "x"]], "1 ids missing: b"),
        ([["a", "x"], ["b", "y"], ["b", "z"]], "1 ids given more than once: b"),
        ([["a", "x"], ["b", "y"], ["c", "z"]], "1 ids that no annotation has: c"),
        ([["a", "x"], ["b", "y", "z"]], "first in line 3"),
    ],
)
def test_problems_of_submissions(rows: list[list[str]], problem: str | None) -> None:
    problems = check_submission.find_problems(["testset_id", "text"], rows, ["a", "b"])
    assert (problem is None and not problems) or problem in problems[0]
    assert "header is id,text" in check_submission.find_problems(["id", "text"], rows, ["a", "b"])[0]

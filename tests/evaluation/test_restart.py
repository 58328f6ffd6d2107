"""Interrupted evaluations: when one continues, and when it starts from scratch."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

import evaluate
from configs.schema import load_config
from evaluation.predictions import PredictionStore
from models import build_model
from models.checkpoint.adapter_folder import save_adapter
from support import files, provenance
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


def test_a_restart_with_other_settings_starts_afresh(
    project: tiny.TinyProject, generated: list[int], capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    prompts = json.loads(project.test_prompts.read_text()) | {"asr": "<Speech><SpeechHere></Speech> Type it."}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    for options, name in (
        (["generate.max_new_tokens=4"], "generation settings"),
        ([f"model.test_prompt_path={tmp_path / 'prompts.json'}"], "prompts"),
        (["datasets.max_audio_s=0.5"], "generation settings"),
        (["model.window=full"], "model"),
    ):
        run(project, "--mode", "submission_asr")  # back to the first settings
        generated.clear()
        capsys.readouterr()
        assert run(project, "--mode", "submission_asr", "--options", *options) == 0
        printed = capsys.readouterr().out
        assert sum(generated) == 5 and "starting from the beginning" in printed and name in printed


def replaced(project: tiny.TinyProject, path: Path, seed: int) -> None:
    """Other sound under the name of a clip, of the same size and time."""
    before = path.stat()
    wave, rate = soundfile.read(path, always_2d=True)
    noise = 0.3 * np.random.default_rng(seed).standard_normal(wave.shape)
    soundfile.write(path, noise, rate, subtype=soundfile.info(path).subtype)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def again(project: tiny.TinyProject, generated: list[int], *options: str) -> tuple[int, list[dict], dict]:
    """Evaluated once more: how many clips were decoded, the lines, and the scores, which must be these lines'."""
    generated.clear()
    assert run(project, "--mode", "submission_asr", *(["--options", *options] if options else [])) == 0
    rows, lines, scores = outputs(project, "submission_asr")
    assert [row["text"] for row in rows] == [line["hypothesis"] for line in lines]
    content = (project.output / "eval/submission_asr/predictions.jsonl").read_bytes()
    assert scores["predictions_sha256"] == hashlib.sha256(content).hexdigest()
    return sum(generated), lines, scores


@pytest.fixture
def first_lines(project: tiny.TinyProject, generated: list[int]) -> list[dict]:
    made, lines, _ = again(project, generated)
    assert made == 5 and len({line["digest"] for line in lines}) == 5
    return lines


@pytest.mark.parametrize("clip", [0, 3])
def test_a_clip_replaced_under_its_name_is_decoded_again(
    project: tiny.TinyProject,
    generated: list[int],
    first_lines: list[dict],
    clip: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    replaced(project, Path(first_lines[clip]["path"]), seed=5)
    capsys.readouterr()
    made, lines, _ = again(project, generated)
    assert made == 1 and "1 of the 5 predictions there are made again" in capsys.readouterr().out
    assert [old == new for old, new in zip(first_lines, lines, strict=True)].count(False) == 1
    generated.clear()
    fresh = tmp_path / "fresh"
    assert run(project, "--mode", "submission_asr", "--options", f"run.output_dir={fresh}") == 0
    assert (fresh / "eval/submission_asr/submission.csv").read_bytes() == (
        project.output / "eval/submission_asr/submission.csv"
    ).read_bytes()


def test_an_appended_clip_that_was_replaced_is_noticed(project: tiny.TinyProject, generated: list[int]) -> None:
    annotations = entries(project.test_asr)
    annotations[0]["expand_wav"] = [annotations[1]["path"]]
    tiny.write_annotations(project.test_asr, annotations)
    again(project, generated)
    replaced(project, project.test_asr.parent / annotations[1]["path"], seed=6)
    assert again(project, generated)[0] == 2


@pytest.mark.parametrize("fields", [{"offset": 0.1}, {"Q": "what?"}, {"start": 0.0, "end": 0.15}])
def test_an_entry_that_changed_is_decoded_again(
    project: tiny.TinyProject, generated: list[int], first_lines: list[dict], fields: dict
) -> None:
    annotations = entries(project.test_asr)
    annotations[2] |= fields
    tiny.write_annotations(project.test_asr, annotations)
    made, lines, _ = again(project, generated)
    assert made == 1 and lines[2]["digest"] != first_lines[2]["digest"]


def test_other_references_order_and_metrics_need_no_decoding(
    project: tiny.TinyProject, generated: list[int], first_lines: list[dict]
) -> None:
    annotations = entries(project.test_asr)
    annotations[0]["text"] = "another reference"
    tiny.write_annotations(project.test_asr, list(reversed(annotations)))
    made, lines, scores = again(project, generated)
    assert made == 0 and scores["resumed_clips"] == 5
    assert lines[-1]["reference"] == "another reference" and lines[-1]["index"] == 4
    assert [line["id"] for line in lines] == [line["id"] for line in reversed(first_lines)]
    assert [line["hypothesis"] for line in lines] == [line["hypothesis"] for line in reversed(first_lines)]
    assert run(project, "--mode", "submission_asr", "--no-java") == 0 and generated == []


def test_moved_clips_need_no_decoding(
    project: tiny.TinyProject, generated: list[int], first_lines: list[dict], tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.move(project.test_asr.parent, moved)
    made, lines, _ = again(
        project, generated, f"datasets.prefix={moved}", f"datasets.test_ann_path_asr={moved / 'test_asr.json'}"
    )
    assert made == 0 and all(line["path"].startswith(str(moved)) for line in lines)


def test_results_of_another_adapter_are_kept_and_come_back(
    project: tiny.TinyProject,
    generated: list[int],
    first_lines: list[dict],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    folder = project.output / "eval/submission_asr"
    config = load_config(project.config)
    torch.manual_seed(5)
    save_adapter(build_model(config.model), tmp_path / "other", config=config, metrics={})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    made, lines, _ = again(project, generated, f"model.ckpt={tmp_path / 'other'}")
    assert made == 5 and not {line["digest"] for line in lines} & {line["digest"] for line in first_lines}
    (aside,) = folder.glob("adapter_*")
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == before
    assert f"they are kept in {aside.name}/" in capsys.readouterr().out
    made, lines, _ = again(project, generated)
    assert made == 0 and lines == first_lines and not aside.exists()
    assert str(tmp_path / "other") in json.loads(next(folder.glob("adapter_*/run.json")).read_text())["checkpoint"]


def test_an_adapter_that_differs_in_one_number_is_another(
    project: tiny.TinyProject, generated: list[int], tmp_path: Path
) -> None:
    config = load_config(project.config)
    model = build_model(config.model)
    for name in ("lora_B", "query_tokens", "to_llm"):
        with torch.no_grad():
            parameter = next(p for n, p in model.named_parameters() if name in n and p.requires_grad)
            parameter.view(-1)[0] += 0.25
        save_adapter(model, tmp_path / name, config=config, metrics={})
        assert again(project, generated, f"model.ckpt={tmp_path / name}")[0] == 5, name
    shutil.copytree(tmp_path / name, tmp_path / "copy")
    assert again(project, generated, f"model.ckpt={tmp_path / 'copy'}")[0] == 0


@pytest.mark.parametrize(
    "part", ["llm/model.safetensors", "llm/tokenizer.json", "whisper/model.safetensors", "beats.pt"]
)
def test_weights_replaced_under_their_name_are_noticed(
    tiny_project: tiny.TinyProject, generated: list[int], without_java: None, part: str
) -> None:
    again(tiny_project, generated)
    file = tiny_project.root / part
    before = file.stat()
    if part.endswith("json"):
        file.write_text(file.read_text(encoding="utf-8") + " ", encoding="utf-8")
    elif part == "beats.pt":
        tiny.write_beats(file, seed=9)
    else:
        tensors = load_file(file)
        save_file({name: tensor + 0.01 for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
        assert file.stat().st_size == before.st_size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert again(tiny_project, generated)[0] == 5


def test_another_version_of_the_program_decodes_again(
    project: tiny.TinyProject, generated: list[int], first_lines: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "source_digest", lambda rooms: "another")
    assert again(project, generated)[0] == 5
    monkeypatch.setattr(provenance, "versions", lambda: {"torch": "3.0"})
    assert again(project, generated)[0] == 5


def test_a_start_by_mistake_loses_no_line(
    project: tiny.TinyProject, generated: list[int], first_lines: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        append = PredictionStore.append

        def interrupted(store: PredictionStore, predictions: list) -> None:
            append(store, predictions)
            raise KeyboardInterrupt

        patch.setattr(PredictionStore, "append", interrupted)
        run(project, "--mode", "submission_asr", "--options", "generate.max_new_tokens=3")
    folder = project.output / "eval/submission_asr"
    assert not (folder / "scores.json").exists() and not (folder / ".lock").exists()
    made, lines, _ = again(project, generated)
    assert made == 0 and lines == first_lines


@pytest.mark.parametrize("full_at", ["line", "submission.csv", "scores.json", "run.json"])
def test_a_full_disk_is_one_sentence_and_loses_nothing(
    project: tiny.TinyProject,
    generated: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    full_at: str,
) -> None:
    """The third line has no room, half of it; or a file at the end."""
    written = []

    def write(descriptor: int, data: bytes) -> int:
        if full_at != "line" or not os.readlink(f"/proc/self/fd/{descriptor}").endswith("predictions.jsonl"):
            return real_write(descriptor, data)
        written.append(len(data))
        if len(written) == 3:
            return real_write(descriptor, data[: len(data) // 2])
        if len(written) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(descriptor, data)

    def fill(path: Path, content: object) -> None:
        if full_at in path.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real_fill(path, content)

    real_write, real_fill = os.write, files._fill
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        patch.setattr(files, "_fill", fill)
        assert run(project, "--mode", "submission_asr", "--options", "run.batch_size_eval=1") == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "no space left on the disk" in line and "continues from there" in line
    done = {"line": 2, "run.json": 0}.get(full_at, 5)
    generated.clear()
    assert again(project, generated, "run.batch_size_eval=1")[0] == 5 - done


def test_lines_without_their_hashes_are_not_trusted(
    project: tiny.TinyProject, generated: list[int], capsys: pytest.CaptureFixture
) -> None:
    assert run(project, "--mode", "submission_asr") == 0
    (project.output / "eval/submission_asr/run.json").unlink()
    generated.clear()
    assert run(project, "--mode", "submission_asr") == 0
    assert sum(generated) == 5 and "no run.json says what its predictions depend on" in capsys.readouterr().out


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


def test_where_texts_depend_on_the_batch_a_restart_has_the_same_batches(
    project: tiny.TinyProject, generated: list[int]
) -> None:
    exact = ["model.legacy=exact", "run.batch_size_eval=2"]
    made, lines, _ = again(project, generated, *exact)
    assert made == 5
    file = project.output / "eval/submission_asr/predictions.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[1:]))
    made, resumed, _ = again(project, generated, *exact)
    assert made == 2 and resumed == lines  # its batch again, not the clip alone
    assert again(project, generated, "model.legacy=exact", "run.batch_size_eval=3")[0] == 5
    replaced(project, Path(lines[4]["path"]), seed=7)
    assert again(project, generated, "model.legacy=exact", "run.batch_size_eval=3")[0] == 5

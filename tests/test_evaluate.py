"""The command `evaluate.py`: modes, outputs, errors in one line."""

import json

import numpy as np
import pytest
import soundfile
import torch

from configs.schema import load_config
from data.audio import load_waveform
from tests import tiny
from tests.evaluations import entries, outputs, run
from tests.locks import left_by
from tools import check_submission


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


def test_as_older_scripts_call_it(project: tiny.TinyProject) -> None:
    assert run(project, "--task", "asr", "--skip_scoring") == 0
    _, _, scores = outputs(project, "submission_asr")
    assert scores["scores"] == {"wer": None, "asr.wer": None}
    assert scores["tasks"]["asr"]["reasons"] == {"wer": "scoring was skipped"}
    assert run(project, "--task", "asr") == 0
    _, lines, scores = outputs(project, "valid_asr")
    assert {line["task"] for line in lines} == {"asr"} and scores["scores"]["wer"] is not None


def test_another_adapter_brings_its_own_kind(project: tiny.TinyProject) -> None:
    config = load_config(project.config)
    assert config.with_adapter("x.pth").model.legacy == "weights"
    exact = load_config(project.config, ["model.legacy=exact"])
    assert exact.with_adapter("x.pth").model.legacy == "exact"


def test_without_a_mode_every_test_file_is_evaluated(project: tiny.TinyProject) -> None:
    assert run(project) == 0
    assert {path.name for path in (project.output / "eval").iterdir()} == {"submission_asr", "submission_aac"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--mode", "valid_asr", "--options", "datasets.valid_ann_path=", "datasets.test_ann_path_asr="],
            "datasets.valid_ann_path: not given",
        ),
        (["--mode", "submission_aac", "--options", "datasets.test_ann_path_aac="], "datasets.test_ann_path_aac"),
        (
            ["--mode", "submission_asr", "--options", "datasets.test_ann_path_asr=no.json"],
            "datasets.test_ann_path_asr: 'no.json' does not exist",
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


def test_two_evaluations_of_one_folder(
    project: tiny.TinyProject, capsys: pytest.CaptureFixture, generated: list[int]
) -> None:
    folder = project.output / "eval" / "submission_aac"
    left_by(folder, host="elsewhere", pid=77)
    assert run(project) == 1  # both modes, and nothing of the first one is begun
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert f"{folder} is in use by process 77 on elsewhere" in line and not generated
    assert not (project.output / "eval" / "submission_asr").exists()
    assert run(project, "--mode", "submission_asr") == 0  # another mode's folder
    left_by(folder, pid=2**22 + 7)
    assert run(project) == 0
    assert "taking the folder over" in capsys.readouterr().out and not list(folder.glob(".*"))


def test_a_folder_that_cannot_be_written_is_one_line(project: tiny.TinyProject, capsys: pytest.CaptureFixture) -> None:
    project.output.parent.mkdir(parents=True, exist_ok=True)
    blocked = project.output.parent / "a_file"
    blocked.write_text("")
    assert run(project, "--mode", "submission_asr", "--options", f"run.output_dir={blocked}") == 1
    assert f"run.output_dir = {blocked}: {blocked} is a file" in capsys.readouterr().err.splitlines()[-1]


def divided(project: tiny.TinyProject) -> list[dict]:
    """The ASR test clips as parts of one recording, under no `testset_id`; their entries."""
    annotations, sounds, start_s = entries(project.test_asr), [], 0.0
    for entry in annotations:
        sound = load_waveform(project.test_asr.parent / entry["path"]).numpy()
        entry |= {"path": "long.wav", "offset": start_s, "duration": len(sound) / tiny.SAMPLE_RATE}
        entry.pop("testset_id", None)
        start_s += len(sound) / tiny.SAMPLE_RATE
        sounds.append(sound)
    soundfile.write(project.test_asr.parent / "long.wav", np.concatenate(sounds), tiny.SAMPLE_RATE, subtype="FLOAT")
    return annotations


def test_parts_of_a_recording_are_evaluated_as_clips_of_their_own(project: tiny.TinyProject) -> None:
    assert run(project, "--mode", "submission_asr", "--options", "generate.num_beams=1") == 0
    _, whole, scores = outputs(project, "submission_asr")
    tiny.write_annotations(project.test_asr, divided(project))
    assert run(project, "--mode", "submission_asr", "--options", "generate.num_beams=1") == 0
    rows, lines, again = outputs(project, "submission_asr")
    assert [line["hypothesis"] for line in lines] == [line["hypothesis"] for line in whole]
    assert [line["seconds"] for line in lines] == [line["seconds"] for line in whole]
    assert again["scores"] == scores["scores"]
    assert len({row["testset_id"] for row in rows}) == len(rows) and "long.wav [0-" in rows[0]["testset_id"]
    assert run(project, "--mode", "submission_asr", "--swap-audio", "--options", "generate.num_beams=1") == 0
    said = {row["testset_id"]: line["hypothesis"] for row, line in zip(rows, lines, strict=True)}
    for line in outputs(project, "submission_asr_swapped")[1]:
        assert line["audio_path"] != line["id"] and line["hypothesis"] == said[line["audio_path"]]


def test_a_part_beyond_its_file_is_a_failed_clip(project: tiny.TinyProject) -> None:
    annotations = divided(project)
    annotations[1]["offset"] = 1000.0
    tiny.write_annotations(project.test_asr, annotations)
    assert run(project, "--mode", "submission_asr") == 0
    _, lines, scores = outputs(project, "submission_asr")
    assert scores["failed"] == 1 and "offset 1000.0" in lines[1]["error"] and lines[1]["hypothesis"] == ""


def test_no_clip_found_is_an_error_before_the_model_is_loaded(
    project: tiny.TinyProject, capsys: pytest.CaptureFixture, generated: list[int]
) -> None:
    for entry in entries(project.test_asr):
        (project.test_asr.parent / entry["path"]).unlink()
    assert run(project, "--mode", "submission_asr", "--options", "datasets.prefix=/nowhere") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "no file is there for any of the" in error and "the first is /nowhere/" in error
    assert "datasets.prefix = /nowhere, which is no folder" in error and not generated


def test_no_clip_that_can_be_read_is_an_error(project: tiny.TinyProject, capsys: pytest.CaptureFixture) -> None:
    clips = [project.test_asr.parent / entry["path"] for entry in entries(project.test_asr)]
    contents = [clip.read_bytes() for clip in clips]
    for clip in clips:
        clip.write_text("version https://git-lfs.github.com/spec/v1")
    assert run(project, "--mode", "submission_asr") == 1
    assert f"none of the {len(clips)} clips could be read; the first is {clips[0]}" in capsys.readouterr().err
    scores = outputs(project, "submission_asr")[2]
    assert scores["failed"] == len(clips) and scores["scores"]["wer"] is None
    assert "none of the" in scores["tasks"]["asr"]["reasons"]["wer"]
    clips[0].write_bytes(contents[0])
    assert run(project, "--mode", "submission_asr") == 0
    assert (
        f"warning: {project.output}/eval/submission_asr: {len(clips) - 1} of {len(clips)} clips"
        in capsys.readouterr().err
    )


def test_a_prefix_that_is_not_needed_is_only_said(project: tiny.TinyProject, caplog: pytest.LogCaptureFixture) -> None:
    annotations = entries(project.test_asr)
    for entry in annotations:
        entry["path"] = str(project.test_asr.parent / entry["path"])
    tiny.write_annotations(project.test_asr, annotations)
    assert run(project, "--mode", "submission_asr", "--options", f"datasets.prefix={project.root}/gone") == 0
    assert f"datasets.prefix, '{project.root}/gone', is no folder" in caplog.text
    assert outputs(project, "submission_asr")[2]["failed"] == 0


@pytest.mark.parametrize("form", ["nemo", "lhotse", "kaldi"])
def test_manifests_of_other_programs_give_the_same_scores(project: tiny.TinyProject, form: str) -> None:
    annotations = divided(project)
    tiny.write_annotations(project.test_asr, annotations)
    assert run(project, "--mode", "submission_asr", "--options", "generate.num_beams=1") == 0
    _, expected, scores = outputs(project, "submission_asr")
    folder = project.test_asr.parent / form
    folder.mkdir()
    named = folder / "manifest.jsonl"
    if form == "nemo":
        rows = [
            {"audio_filepath": "../long.wav", **{name: entry[name] for name in ("text", "offset", "duration")}}
            for entry in annotations
        ]
    elif form == "lhotse":
        recording = {"sources": [{"type": "file", "source": "../long.wav"}], "duration": 1e3, "channel_ids": [0]}
        rows = [
            {"id": f"c{number}", "start": entry["offset"], "duration": entry["duration"], "channel": 0,
             "supervisions": [{"text": entry["text"]}], "recording": recording, "type": "MonoCut"}
            for number, entry in enumerate(annotations)
        ]  # fmt: skip
    else:
        named, rows = folder, []
        (folder / "wav.scp").write_text("long ../long.wav\n")
        (folder / "text").write_text(
            "".join(f"u{number} {entry['text']}\n" for number, entry in enumerate(annotations))
        )
        (folder / "segments").write_text(
            "".join(
                f"u{number} long {entry['offset']} {entry['offset'] + entry['duration']}\n"
                for number, entry in enumerate(annotations)
            )
        )
    if rows:
        named.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("generate.num_beams=1", f"datasets.test_ann_path_asr={named}")
    assert run(project, "--mode", "submission_asr", "--options", *options) == 0
    _, lines, again = outputs(project, "submission_asr")
    assert [line["hypothesis"] for line in lines] == [line["hypothesis"] for line in expected]
    assert again["scores"] == scores["scores"] and again["failed"] == 0

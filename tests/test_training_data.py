"""The clips of a run are checked, and what limits take from them is said, before anything is trained."""

import json

import train
from tests import tiny


def test_a_run_with_long_clips(tmp_path, capsys):
    project = tiny.write_project(tmp_path)
    command = ["--cfg-path", str(project.config), "--options", "datasets.max_audio_s=0.9"]
    assert train.main(command) == 1
    assert "datasets.long_clips" in capsys.readouterr().err
    assert not list(project.output.glob("checkpoint_*"))
    assert train.main([*command, "datasets.long_clips=skip", "run.iters_per_epoch=1"]) == 0
    assert "left out" in capsys.readouterr().out


def test_dry_run_counts_them_too(tmp_path, capsys):
    project = tiny.write_project(tmp_path)
    entries = json.loads(project.train.read_text())["annotation"]
    tiny.write_annotations(project.train, [{**entries[0], "text": "one two three four " * 100}, *entries[1:]])
    assert train.main(["--cfg-path", str(project.config), "--dryrun", "--options", "model.max_txt_len=40"]) == 0
    out = capsys.readouterr().out
    assert "model.max_txt_len = 40 cuts 1 of " in out and f"{project.train}#0: " in out


def test_generation_counts_in_validation_only_where_it_is_scored(tmp_path, capsys):
    project = tiny.write_project(tmp_path, generate={"max_new_tokens": 2000})
    arguments = ["--cfg-path", str(project.config), "--dryrun"]
    assert train.main(arguments) == 0
    assert train.main([*arguments, "--options", "run.valid_scoring=true"]) == 1
    assert "generate.max_new_tokens = 2000" in capsys.readouterr().err


def test_texts_of_validation_count_as_those_of_training(tmp_path, capsys):
    project = tiny.write_project(tmp_path, model={"max_txt_len": 3000})
    entries = json.loads(project.valid.read_text(encoding="utf-8"))["annotation"]
    entries[0]["text"] = "red " * 1500
    tiny.write_annotations(project.valid, entries)
    assert train.main(["--cfg-path", str(project.config), "--dryrun"]) == 1
    error = capsys.readouterr().err
    assert "1 of 5 clips need more than the language model's 1,024 positions" in error and "valid.json#0" in error

"""All that is wrong with a file, or missing, is in one error, each with its line or `--options`."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.parsing import ConfigError
from configs.schema import load_config

FILE = """model:
  lama_path: here
  lora_runk: 4
  max_epoch: 3
  soft_prompts: true
datasets:
  augmentation:
    AddGausianNoise: {use: true}
    Gain: {p: 2}
run:
  sed: 1
  batch_size_train: 0
  optims:
    init_lr: fast
wrong: {}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        Path("mine.yaml").write_text(text, encoding="utf-8")
        return "mine.yaml"

    return write


def message(path: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_every_problem_has_its_line(write) -> None:
    first, *lines = message(write(FILE), "run.max_epoch=1").split("\n  ")
    assert first == "mine.yaml: 11 things to fix"
    found = {line.split(": ")[1]: line.split(": ")[0] for line in lines}
    assert found == {
        "model.soft_prompts": "line 5",
        "datasets.augmentation.AddGausianNoise": "line 8",
        "datasets.augmentation.Gain": "line 9",
        "model.lama_path": "line 2",
        "model.lora_runk": "line 3",
        "model.max_epoch": "line 4",
        "run.sed": "line 11",
        "run.batch_size_train": "line 12",
        "run.optims.init_lr": "line 14",
        "run.max_epoch": "--options",
        "wrong": "line 15",
    }
    assert sum("Did you mean run.optims.max_epoch?" in line for line in lines) == 2
    assert any("did you mean 'AddGaussianNoise'" in line for line in lines)


def test_one_problem_is_one_line(write) -> None:
    text = message(write("run: {seed: 1}"), "run.max_epoch=1")
    expected = "--options (over mine.yaml): run.max_epoch: no such key of run (found a whole number)."
    assert text == f"{expected} Did you mean run.optims.max_epoch?"


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("run.max_epochs", "run.optims.max_epoch"),
        ("run.init_lr", "run.optims.init_lr"),
        ("model.num_beams", "generate.num_beams"),
        ("datasets.same", "datasets.join_clips.same"),
        ("run.labels", "distillation.labels"),
        ("model.lora_ranks", "model.lora_rank"),
        ("run.SEED", "run.seed"),
        ("generate.no_repeat_ngram", "generate.no_repeat_ngram_size"),
        ("num_beams", "generate.num_beams"),
    ],
)
def test_the_nearest_name_may_be_in_another_section(write, key: str, meant: str) -> None:
    assert f"{key}: no such" in (text := message(write("{}"), f"{key}=1"))
    assert f"Did you mean {meant}?" in text


def test_contradictions_of_names_are_among_them(write) -> None:
    text = "model: {llama_path: a, gemma_path: b, qlora: 4, load_in_4bit: true, low_resource: true, lora_runk: 1}"
    lines = message(write(text)).split("\n  ")
    assert lines[0] == "mine.yaml: 4 things to fix"
    for words in (
        "name the same thing",
        "model.qlora: expected true",
        "low_resource: true means",
        "lora_runk: no such",
    ):
        assert any(words in line for line in lines), words


def test_secrets_are_not_shown_among_others(write) -> None:
    text = message(write("model: {tokn: hf_secret, lora_runk: 1}\nrun: {key: abc_secret}"))
    assert "hf_secret" not in text and "abc_secret" not in text


def test_every_missing_path_is_named_at_once(write) -> None:
    config = load_config(
        write(
            "model:\n  gemma_path: a/b/c\n  whisper_path: ./no\n  beats_path: b.pt\n"
            "datasets:\n  train_ann_path: [x.json, y.json]\n"
        ),
        ["datasets.valid_ann_path=z.json"],
    )
    with pytest.raises(ConfigError) as caught:
        config.require_paths("datasets.train_ann_path", "datasets.valid_ann_path", "model.prompt_path", "model")
    first, *lines = str(caught.value).split("\n  ")
    assert first == "mine.yaml: 6 things to fix"
    places = [line.split(" does not exist")[0] for line in lines]
    assert places == [
        "line 2: model.llama_path: 'a/b/c'",
        "line 3: model.whisper_path: './no'",
        "line 4: model.beats_path: 'b.pt'",
        "line 6: datasets.train_ann_path: 'x.json'",
        "line 6: datasets.train_ann_path: 'y.json'",
        "--options: datasets.valid_ann_path: 'z.json'",
    ]


NEEDS = ("datasets.train_ann_path", "model.prompt_path", "model")


def test_missing_paths_are_named_next_to_wrong_keys(write) -> None:
    path = write(
        "model:\n  lora_rnak: 8\n  gemma_path: a/b/c\n  whisper_path: org/whisper\n"
        "  prompt_path: prompts/train_prompt.json\n"
        "datasets:\n  train_ann_path: x.json\n  test_ann_path: y.json\nrun: {seed: one}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path, needs=NEEDS)
    first, *lines = str(caught.value).split("\n  ")
    assert first == "mine.yaml: 4 things to fix"
    assert [": ".join(line.split(": ")[:2]) for line in lines] == [
        "line 2: model.lora_rnak",
        "line 3: model.llama_path",
        "line 7: datasets.train_ann_path",
        "line 9: run.seed",
    ]


def test_paths_alone_are_left_to_the_command(write) -> None:
    path = write("model: {llama_path: a/b/c}")
    assert load_config(path, needs=NEEDS).model.llama_path == "a/b/c"
    assert "does not exist" not in message(write("model: {llama_path: a/b/c, lora_rnak: 8}"))


def test_paths_that_are_not_given_are_no_problem_among_others(write) -> None:
    with pytest.raises(ConfigError, match=r"^mine\.yaml, line 1: model\.lama_path: no such key .* Did you mean"):
        load_config(write("model: {lama_path: a/b/c}"), needs=NEEDS)


def test_a_null_override_is_to_be_left_out(write) -> None:
    config = load_config(write("model: {gemma_path: org/gemma, whisper_path: org/whisper}"), ["model.llama_path="])
    with pytest.raises(
        ConfigError, match=r"^--options .*: model\.llama_path is set to nothing\. Leave that option out"
    ):
        config.require_paths()


def test_an_adapter_of_the_command_line_is_not_a_line_of_the_file(write) -> None:
    config = load_config(write("model: {llama_path: org/a, whisper_path: org/b, ckpt: c}")).with_adapter("runs/none")
    with pytest.raises(ConfigError, match=r"^--ckpt: model\.ckpt: 'runs/none' does not exist .* Correct that option$"):
        config.require_paths()


def test_keys_ignored_for_one_reason_are_one_line(write) -> None:
    config = load_config(write("run: {use_distributed: false, world_size: 1, gpu: 0, dist_url: env}"))
    assert len(config.ignored) == 4
    assert sorted(line.partition(":")[0] for line in config.remarks) == [
        "run.gpu",
        "run.use_distributed, run.world_size, run.dist_url",
    ]


def test_one_missing_path_is_one_line(write) -> None:
    config = load_config(write("model:\n  llama_path: org/name\n  whisper_path: ./no\n"))
    with pytest.raises(ConfigError, match=r"^mine\.yaml, line 3: model\.whisper_path: '\./no' does not exist"):
        config.require_paths()


def test_prompts_of_the_familys_names_are_the_programs_own(write) -> None:
    for path in ("prompts/train_prompt.json", "./prompts/train_prompt.json", "data/prompts/train_prompt.json"):
        config = load_config(write(f"model: {{prompt_path: {path}, test_prompt_path: prompts/test_prompt.json}}"))
        assert (config.model.prompt_path, config.model.test_prompt_path) == ("prompts/train.json", "prompts/test.json")
        config.require_paths("model.prompt_path", "model.test_prompt_path")
        assert len(config.notes) == 2 and all("the prompts that come with the program" in note for note in config.notes)


def test_prompts_next_to_the_yaml_come_first(write, tmp_path: Path) -> None:
    write("{}")
    (tmp_path / "configs" / "prompts").mkdir(parents=True)
    (tmp_path / "configs" / "prompts" / "train_prompt.json").write_text("{}")
    (tmp_path / "configs" / "a.yaml").write_text("model: {prompt_path: prompts/train_prompt.json}")
    config = load_config("configs/a.yaml")
    assert config.model.prompt_path == "configs/prompts/train_prompt.json" and not config.notes
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "train_prompt.json").write_text("{}")
    assert load_config("configs/a.yaml").model.prompt_path == "prompts/train_prompt.json"


def test_other_prompts_are_not_replaced(write) -> None:
    for path in ("prompts/my_prompt.json", "/data/prompts/train_prompt.json"):
        config = load_config(write(f"model: {{prompt_path: {path}}}"))
        assert config.model.prompt_path == path
        with pytest.raises(ConfigError, match="does not exist"):
            config.require_paths("model.prompt_path")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n", "is a git-lfs pointer"),
        ("<!DOCTYPE html>\n<html>" + "x" * 9000, "is a web page"),
        ("Entry not found", "a server's answer"),
    ],
)
def test_a_file_that_is_no_yaml_is_named(write, content: str, words: str) -> None:
    text = message(write(content))
    assert text.startswith("mine.yaml: ") and words in text and len(text) < 300


def test_a_packed_file_is_named(write) -> None:
    Path("mine.yaml").write_bytes(b"PK\x03\x04" + bytes(200))
    assert "is a zip archive" in message("mine.yaml")


@pytest.mark.parametrize("key", ["end_sym", "prompt_template", "stop_strings"])
def test_pythons_none_is_no_text(write, key: str) -> None:
    assert f"model.{key}: found None, which YAML reads as a text" in message(write(f"model:\n  {key}: None\n"))
    assert f"model.{key}: found None" in message(write("model: {}\n"), f"model.{key}=None")

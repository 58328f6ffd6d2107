"""YAML files of the SALMONN family load unchanged; small ones of each family's shape, written for this test."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs import compat
from configs.parsing import ConfigError
from configs.schema import holds_secret, load_config

COMMON_MODEL = """
  token: "<hf_token>"
  ckpt: ""
  freeze_whisper: True
  freeze_beats: True
  use_speech_Qformer: True
  freeze_speech_QFormer: False
  window_level_Qformer: True
  num_speech_query_token: 1
  second_per_window: 0.333333
  second_stride: 0.333333
  lora: True
  lora_rank: 8
  lora_alpha: 32
  lora_dropout: 0.1
  multi_prompt: True
  prompt_template: "USER: {}\\nASSISTANT:"
  prompt_path: "prompts/train_prompt.json"
  test_prompt_path: "prompts/test_prompt.json"
  max_txt_len: 300
"""

ORIGINAL = f"""
model:
  llama_path: "vicuna"
  whisper_path: "whisper"
  beats_path: "beats.pt"
  speech_llama_proj_model: ""
  freeze_speech_llama_proj: False
  end_sym: "</s>"{COMMON_MODEL}
datasets: {{train_ann_path: "a.json", valid_ann_path: "b.json", test_ann_path: "c.json", whisper_path: "whisper"}}
run:
  device: "cuda"
  use_distributed: True
  amp: True
  world_size: 1
  dist_url: "env://"
  optims: {{max_epoch: 30, warmup_steps: 3000, warmup_start_lr: 1e-6, init_lr: 3e-5, min_lr: 1e-5, weight_decay: 0.05}}
  use_wandb: True
  wandb_project: "experiments"
  wandb_name: "first"
"""

TWO_STAGES = f"""
wandb: {{project: "P", entity: "", key: "", log: True}}
model:
  llama_path: "Qwen/Qwen2.5-0.5B-Instruct"
  whisper_path: "openai/whisper-large-v3-turbo"
  beats_path: ""
  ced_path: "ced_small"
  only_preprocessor: False
  low_resource: False
  speech_llama_proj_model: ""
  end_sym: "<|im_end|>"{COMMON_MODEL}
datasets:
  prefix: "./data"
  train_stage1_path: "one.json"
  valid_stage1_path: ""
  train_stage2_path: "two.json"
  stage1_use_valid: False
  whisper_path: "openai/whisper-large-v3-turbo"
run:
  auto_second: True
  epoch_based: True
  output_dir: {{stage1_output_dir: "out1", stage2_output_dir: "out2"}}
  optims:
    optims_1: {{max_epoch: 1, warmup_steps: 500, init_lr: 1e-4}}
    optims_2: {{max_epoch: 3, warmup_steps: 500, init_lr: 5e-5}}
"""

GEMMA_GPTQ = f"""
model:
  gemma_path: "gemma-2-2B-4Bit-GPTQ"
  whisper_path: "openai/whisper-large-v3-turbo"
  beats_path: "beats.pt"
  speech_gemma_proj_model: ""
  freeze_speech_gemma_proj: False
  end_sym: "<eos>"{COMMON_MODEL.replace('token: "<hf_token>"', "token: null").replace('ckpt: ""', "ckpt: null")}
generate: {{max_new_tokens: 200, num_beams: 4, do_sample: True, repetition_penalty: 1.7, end_sym: "<eos>"}}
datasets: {{prefix: "/data", test_ann_path_asr: "asr.json", test_ann_path_aac: "aac.json", whisper_path: "w"}}
run: {{gpu: 1, exp_name: "final", device: "cuda", log_freq: 30, num_workers: 64}}
"""

QLORA_AUGMENTED = f"""
model:
  llama_path: "org/Llama-bnb-4bit"
  whisper_path: "openai/whisper-large-v3-turbo"
  beats_path: "beats.pt"
  qlora: True
  end_sym: "<|end_of_text|>"{COMMON_MODEL}
datasets:
  prefix: "/data"
  train_ann_path: "a.json"
  valid_ann_path: "b.json"
  augmentation:
    AddGaussianNoise: {{use: True, p: 0.3}}
    Gain: {{use: True, p: 0.3}}
run: {{valid_freq: 3, valid_scoring: True, use_distributed: True, world_size: 2, dist_url: "env://"}}
"""


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


@pytest.fixture
def load(tmp_path: Path):
    def load(text: str, *overrides: str):
        (tmp_path / "family.yaml").write_text(text, encoding="utf-8")
        return load_config(tmp_path / "family.yaml", overrides)

    return load


def test_original(load) -> None:
    config = load(ORIGINAL)
    assert config.model.llama_path == "vicuna"
    assert config.model.token is None
    assert config.model.ckpt is None
    assert (config.wandb.mode, config.wandb.project, config.wandb.name) == ("offline", "experiments", "first")
    named = {line.partition(":")[0] for line in config.ignored}
    assert named == {"datasets.whisper_path", "run.use_distributed", "run.world_size", "run.dist_url"}
    assert all("ignored, because" in line for line in config.ignored)
    assert config.run.output_dir.startswith("outputs/")


def test_two_stages_in_one_file(load) -> None:
    config = load(TWO_STAGES)
    assert (config.model.beats_path, config.model.ced_path) == (None, "mispeech/ced-small")
    assert (config.datasets.train_ann_path, config.datasets.valid_ann_path) == ("one.json", None)
    assert (config.run.output_dir, config.run.optims.init_lr, config.run.optims.max_epoch) == ("out1", 1e-4, 1)
    assert (config.wandb.mode, config.wandb.entity) == ("offline", None)
    second = config.second_stage("out1/best")
    assert (second.datasets.train_ann_path, second.run.output_dir) == ("two.json", "out2")
    assert (second.run.optims.init_lr, second.run.optims.max_epoch) == (5e-5, 3)
    config = load(TWO_STAGES, "run.optims.max_epoch=7")
    assert (config.run.optims.max_epoch, config.run.optims_stage2.max_epoch) == (7, 7)


def test_numbered_stages(load) -> None:
    config = load('datasets: {train_ann_path_1: "1.json", train_ann_path_2: "2.json", valid_ann_path_2: "v.json"}')
    datasets = config.datasets
    assert (datasets.train_ann_path, datasets.train_stage2_path) == ("1.json", "2.json")
    assert datasets.valid_stage2_path == "v.json"


def test_gemma_gptq(load) -> None:
    config = load(GEMMA_GPTQ)
    assert config.model.llama_path == "gemma-2-2B-4Bit-GPTQ"
    assert config.model.quantization == "none"  # the folder says what it holds
    assert config.generate.repetition_penalty == 1.7
    assert config.wandb.mode == "disabled"
    named = {line.partition(":")[0] for line in config.ignored}
    assert named == {"datasets.whisper_path", "generate.end_sym", "run.gpu"}


def test_qlora_and_augmentation(load) -> None:
    config = load(QLORA_AUGMENTED)
    assert config.model.quantization == "nf4"
    assert set(config.datasets.augmentation) == {"AddGaussianNoise", "Gain"}
    assert (config.run.valid_freq, config.run.valid_scoring) == (3, True)


def test_low_resource_is_int8(load) -> None:
    assert load("model: {low_resource: true, device_8bit: 0}").model.quantization == "int8"


def test_use_beats_false_takes_beats_away(load) -> None:
    assert load("model: {beats_path: b.pt, use_beats: false}").model.beats_path is None
    assert load("model: {beats_path: b.pt, use_beats: true}").model.beats_path == "b.pt"


def test_wandb_log(load, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load("wandb: {log: false}").wandb.mode == "disabled"
    assert load("wandb: {log: true, mode: disabled}").wandb.mode == "disabled"
    assert load("wandb: {log: true, key: k}").wandb.mode == "online"
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert load("wandb: {log: true}").wandb.mode == "online"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: {llama_path: a, gemma_path: b}", "gemma_path and model.llama_path name the same thing"),
        ("model: {qwen_path: a, gemma_path: b}", "name the same thing"),
        ("model: {qlora: true, low_resource: true}", "low_resource: true means quantization: int8"),
        ("model: {qlora: true, quantization: int8}", "qlora: true means quantization: nf4"),
        ("model: {qlora: 4}", "model.qlora: expected true or false"),
        ("wandb: {log: maybe}", "wandb.log: expected true or false"),
        ("run: {output_dir: {stage1_output_dir: a, stage3_output_dir: b}}", "stage3_output_dir"),
        ("run: {optims: {optims_1: 3}}", "run.optims.optims_1: expected a mapping"),
    ],
)
def test_contradictions_are_errors(load, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert words in str(caught.value)
    assert "family.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("model:\n  gemma_path: 3", "line 2: model.gemma_path (here model.llama_path)"),
        (
            "run:\n  optims:\n    optims_2:\n      init_lr: x",
            "line 4: run.optims.optims_2.init_lr (here run.optims_stage2.init_lr)",
        ),
    ],
)
def test_errors_name_the_key_as_it_was_written(load, text: str, place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert place in str(caught.value)


def test_equal_values_under_two_names_do_no_harm(load) -> None:
    assert load("model: {llama_path: a, gemma_path: a, qwen_path: ''}").model.llama_path == "a"


def test_tables_do_not_overlap() -> None:
    assert not set(compat.RENAMED) & set(compat.IGNORED)


def test_the_teacher_knows_every_name_that_the_model_knows(load) -> None:
    teacher = "{gemma_path: g, qlora: true, use_beats: false, beats_path: b, only_preprocessor: true}"
    config = load(f"distillation: {{teacher: {teacher}}}")
    teacher = config.distillation.teacher
    assert (teacher.llama_path, teacher.quantization, teacher.beats_path) == ("g", "nf4", None)
    (line,) = config.ignored
    assert line.startswith("distillation.teacher.only_preprocessor: ignored, because")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model_S: 3", "model_S: expected a mapping"),
        ("model: {lora_rank: 4}\nmodel_S: {lora_rank: 8}", "model_S.lora_rank and model.lora_rank name the same thing"),
        ("model_T:\n  lora_rank: x", "line 2: model_T.lora_rank (here distillation.teacher.lora_rank)"),
        ("model_T:\n  lora_runk: 3", "distillation.teacher.lora_runk: no such key"),
        ("distillation: 3\nmodel_T: {}", "distillation: expected a mapping"),
        ("distillation: {labels: 0, logits: 0, qformer: 0}", "labels, logits, hidden and qformer are all 0"),
    ],
)
def test_mistakes_in_student_and_teacher(load, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert words in str(caught.value)


def test_the_teachers_token_is_a_secret() -> None:
    for section in ("model", "model_S", "model_T", "distillation.teacher"):
        assert holds_secret(f"{section}.token=hf_secret")
        assert not holds_secret(f"{section}.llama_path=x")


def test_a_folder_of_ceds_name_is_that_folder(load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("model: {ced_path: ced_mini}").model.ced_path == "mispeech/ced-mini"
    (tmp_path / "ced_mini").mkdir()
    assert load("model: {ced_path: ced_mini}").model.ced_path == "ced_mini"

"""One small YAML of every shape in the SALMONN family: it loads unchanged, and says what it leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.schema import Config, load_config

FAMILIES = Path(__file__).parent / "families"
FILES = sorted(FAMILIES.glob("*.yaml"))
LAUNCHED = {"run.use_distributed", "run.world_size", "run.dist_url"}
MANIFESTS = {f"datasets.{name}_manifest_path" for name in ("train", "valid", "asr", "aac", "mock")}


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def load(name: str, *overrides: str) -> Config:
    return load_config(FAMILIES / f"{name}.yaml", overrides)


def ignored(config: Config) -> set[str]:
    return {line.partition(":")[0] for line in config.ignored}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_loads_and_gives_a_reason_for_what_it_leaves_out(file: Path) -> None:
    config = load_config(file)
    assert config.model.llama_path
    assert config.model.token is None
    assert all("ignored, because " in line for line in config.ignored)
    assert len(set(config.ignored)) == len(config.ignored)


def test_salmonn_train() -> None:
    config = load("salmonn_train")
    assert (config.wandb.mode, config.wandb.project, config.wandb.entity) == ("offline", "fish", "people")
    assert (config.wandb.name, config.wandb.dir) == ("first", "logs")
    assert (config.run.output_dir, config.run.optims.init_lr, config.run.optims.warmup_steps) == (
        "somewhere",
        3e-5,
        3000,
    )
    assert (config.model.ckpt, config.model.legacy) == (None, "off")
    assert ignored(config) == {*LAUNCHED, "datasets.whisper_path"}


def test_salmonn_decode() -> None:
    config = load("salmonn_decode")
    assert (config.model.quantization, config.model.legacy) == ("int8", "weights")
    assert (config.generate.num_beams, config.generate.max_new_tokens) == (4, 200)
    assert ignored(config) == {"model.device_8bit"}
    assert config.run.output_dir.endswith("salmonn_decode")


def test_nota_train() -> None:
    config = load("nota_train")
    assert (config.wandb.name, config.run.output_dir) == ("one-percent-stage1", "outputs_stage1_only")
    assert config.datasets.prefix == "audio"
    assert ignored(config) == {*LAUNCHED, "datasets.whisper_path"}


def test_nota_evaluate() -> None:
    config = load("nota_evaluate")
    assert (config.model.ckpt, config.model.legacy) == ("weights/stage2.pth", "weights")
    assert (config.datasets.test_ann_path_asr, config.datasets.test_ann_path_aac) == (
        "data/test_asr.json",
        "data/test_aac.json",
    )
    assert ignored(config) == {"model.only_preprocessor", "generate.end_sym", "datasets.whisper_path"}


def test_cv03_train() -> None:
    config = load("cv03_train")
    assert (config.model.llama_path, config.model.speech_llama_proj_model) == ("gemma-2-2b-4bit-gptq", "")
    assert config.model.freeze_speech_llama_proj is False
    assert config.model.quantization == "none"  # the folder says what it holds
    assert (config.run.optims.warmup_steps, config.run.optims.init_lr) == (0, 2.7993e-05)
    assert ignored(config) == {*LAUNCHED, "datasets.whisper_path", "run.gpu"}


def test_cv03_evaluate() -> None:
    config = load("cv03_evaluate")
    assert config.model.prompt_template.startswith("SYSTEM: Listen.\nUSER: {}")
    assert (config.generate.do_sample, config.generate.repetition_penalty) == (True, 1.7)
    assert ignored(config) == {"model.only_preprocessor", "generate.end_sym", "datasets.whisper_path"}


def test_nlp07_train() -> None:
    config = load("nlp07_train")
    assert config.model.llama_path == "Qwen/Qwen2.5-0.5B-Instruct"
    assert (config.model.beats_path, config.model.ced_path) == (None, "mispeech/ced-small")
    assert config.wandb.mode == "offline"
    assert (config.model.bos_token, config.model.lora_target_modules) == (
        "<|im_start|>",
        ("q_proj", "v_proj", "gate_proj"),
    )
    assert load("nlp07_train", "model.bos_token=x").model.bos_token == "x"
    assert (config.datasets.train_ann_path, config.datasets.valid_ann_path) == ("one.json", None)
    second = config.second_stage("best")
    assert (second.datasets.train_ann_path, second.model.ckpt, second.ignored) == ("two.json", "best", ())
    left_out = {"datasets.whisper_path", "datasets.stage1_use_valid", "datasets.stage2_use_valid"}
    assert ignored(config) == {*LAUNCHED, *left_out}


def test_nlp07_evaluate() -> None:
    config = load("nlp07_evaluate")
    assert (config.model.quantization, config.model.beats_path, config.model.legacy) == ("int8", None, "weights")
    assert config.run.device == "cuda:0"
    assert config.model.bos_token == "<|im_start|>"
    assert not load("nlp07_evaluate", "model.freeze_beats=false").model.freeze_ced


def test_nlp07_canary() -> None:
    config = load("nlp07_canary")
    model = config.model
    assert (model.parakeet_path, model.whisper_path, model.beats_path) == ("nvidia/canary-1b", None, "weights/beats.pt")
    assert (config.datasets.train_ann_path, config.datasets.train_stage2_path) == ("one.json", "two.json")
    assert (config.datasets.test_ann_path_asr, config.datasets.test_ann_path_aac) == ("asr.json", "aac.json")
    assert ignored(config) == {*LAUNCHED, *MANIFESTS, "datasets.whisper_path", "model.whisper_path"}
    assert load("nlp07_canary", "model.whisper_path=w").model.whisper_path == "w"
    assert not load("nlp07_canary", "model.freeze_whisper=false").model.freeze_parakeet


def test_nlp07_distillation() -> None:
    config = load("nlp07_distillation")
    teacher = config.distillation.teacher
    assert config.model.llama_path == "meta-llama/Llama-3.2-1B-Instruct"
    assert (teacher.llama_path, teacher.whisper_path) == ("meta-llama/Llama-3.2-3B-Instruct", "openai/whisper-large-v2")
    assert (teacher.ckpt, teacher.legacy, config.model.legacy) == ("weights/teacher.pth", "weights", "off")
    assert (config.run.output_dir, config.run.output_dir_stage2) == ("outputs_stage_1", "outputs_stage_2")
    assert (config.run.optims.init_lr, config.run.optims_stage2.init_lr) == (5e-5, 1e-4)
    sections = {"model_T.distillation", "model_S.distillation", "model_T.is_output_saved"}
    places = {"datasets.whisper_path", "datasets.whisper_path2", "run.device2"}
    assert ignored(config) == {*LAUNCHED, *sections, *places}


def test_cv16_train() -> None:
    config = load("cv16_train")
    assert (config.model.quantization, config.run.valid_scoring, config.run.valid_freq) == ("nf4", True, 3)
    assert len(config.model.lora_target_modules) == 7
    assert load("cv16_train", "model.lora_target_modules=[q_proj]").model.lora_target_modules == ("q_proj",)
    assert load("nota_train", "model.qlora=true").model.lora_target_modules == ("q_proj", "v_proj")
    assert config.model.bos_token is None
    assert load("cv16_train", "model.llama_path=Qwen/Qwen2.5-0.5B-Instruct").model.bos_token == "<|endoftext|>"
    assert load("cv16_train", "model.llama_path=deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B").model.bos_token is None
    assert config.datasets.augmentation["Gain"] == {"use": False, "p": 0.3}
    assert ignored(config) == {*LAUNCHED, "datasets.whisper_path"}


def test_cv16_without_beats() -> None:
    config = load("cv16_without_beats")
    assert (config.model.beats_path, config.datasets.augmentation) == (None, None)
    assert (config.model.quantization, config.model.end_sym) == ("none", "<｜end▁of▁sentence｜>")
    assert ignored(config) == {*LAUNCHED, "datasets.whisper_path", "model.beats_to_eat"}
    (line,) = (line for line in config.ignored if "beats_to_eat" in line)
    assert "EAT is not supported" in line


def test_options_reach_the_student_under_either_name() -> None:
    assert load("nlp07_distillation", "model.lora_rank=4").model.lora_rank == 4
    assert load("nlp07_distillation", "model_S.lora_rank=4").model.lora_rank == 4
    teacher = load("nlp07_distillation", "distillation.teacher.ckpt=other", "distillation.logits=0").distillation
    assert (teacher.teacher.ckpt, teacher.teacher.legacy, teacher.logits) == ("other", "off", 0.0)
    assert (
        load("nlp07_distillation", "model_T.qwen_path=q", "model_T.llama_path=").distillation.teacher.llama_path == "q"
    )

"""Files of the contest's programs: what has another name, what has no effect, what is refused, what is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs import family_keys
from configs.parsing import ConfigError
from configs.schema import Config, load_config

FAMILIES = Path(__file__).parent / "families"


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def load(tmp_path: Path):
    def load(text: str, *overrides: str) -> Config:
        (tmp_path / "family.yaml").write_text(text, encoding="utf-8")
        return load_config("family.yaml", overrides)

    return load


def family(name: str, *overrides: str) -> Config:
    return load_config(FAMILIES / f"{name}.yaml", overrides)


def ignored(config: Config) -> set[str]:
    return {line.partition(":")[0] for line in config.ignored}


def test_cv13() -> None:
    config = family("cv13_train")
    assert (config.wandb.project, config.model.ced_path, config.model.quantization) == (
        "small",
        "weights/ced.pt",
        "none",
    )
    assert {"model.liger_kernel", "model.use_token_pruning", "run.world-size", "run.optims.use_apollo"} < ignored(
        config
    )
    assert {"checkpoint_interval", "checkpoint_mode", "run.save_ep"} < ignored(config)
    assert any("cv-13's code trains low-rank adapters in it" in note for note in config.notes)
    config = family("cv13_gemma")
    assert (config.generate.no_repeat_ngram_size, config.model.quantization) == (5, "nf4")
    assert config.model.lora_target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert (config.wandb.project, config.wandb.name) == ("small", "first")


def test_cv18() -> None:
    config = family("cv18_distillation")
    distillation, teacher = config.distillation, config.distillation.teacher
    assert (teacher.llama_path, teacher.whisper_path, teacher.beats_path) == (
        "weights/llama-3b",
        "weights/whisper-large",
        "weights/beats.pt",
    )
    assert (teacher.ckpt, teacher.legacy, config.model.ckpt) == ("weights/teacher.pth", "weights", None)
    assert (distillation.labels, distillation.logits, distillation.temperature) == (0.4, 0.6, 2.0)
    assert (distillation.qformer, distillation.hidden) == (0.0, 0.0)
    assert any(note.startswith("model.kd: ") and "in 8 bits" in note for note in config.notes)
    assert family("cv18_distillation", "distillation.labels=1").distillation.labels == 1
    off = family("cv18_distillation", "model.kd=false")
    assert off.distillation.teacher is None and "model.alpha" in ignored(off)
    config = family("cv18_pruned")
    assert config.model.llama_path == "outputs_pruned"
    assert any("in place of weights/llama-1b" in note for note in config.notes)
    assert family("cv18_pruned", "model.llama_path=other").model.llama_path == "other"


def test_cv20_and_cv21() -> None:
    config = family("cv20_train")
    assert (config.model.quantization, len(config.model.lora_target_modules)) == ("nf4", 7)
    assert {"model.adapter", "model.lora_16bit", "model.generate", "model.kd", "model.teacher_paths"} <= ignored(config)
    assert any("4 bits" in note and "cv-20" in note for note in config.notes)
    assert family("cv20_train", "model.low_resource=false").model.quantization == "none"
    assert "generate.low_resource" in ignored(family("cv20_evaluate"))
    config = family("cv21_evaluate")
    assert config.model.quantization == "int8"
    assert any("Low_resource: read as low_resource" in note for note in config.notes)


def test_nlp07_and_nlp12() -> None:
    config = family("nlp07_canary_section")
    assert (config.model.parakeet_path, config.model.whisper_path) == ("nvidia/canary-1b", None)
    assert config.datasets.test_ann_path == ("test_one.json", "test_two.json")
    config = family("nlp12_evaluate")
    assert {"model.vllm", "model.vllm_llm_path", "model.vllm_lora_path"} == ignored(config)
    assert any("nlp-12's code quantises the language model to 4 bits" in note for note in config.notes)
    config = family("nlp12_pruner")
    assert {"pruner", "logging", "run.save_model", "datasets.pruning_sample_path"} < ignored(config)
    assert all("a pruned model" in line for line in config.ignored)


def test_recsys08() -> None:
    config = family("recsys08_evaluate")
    assert (config.model.quantization, config.model.ckpt) == ("nf4", "weights/pruned.pth")
    assert ignored(config) == {"model.prune", "model.whisper_lora"}
    with pytest.raises(ConfigError, match=r"model\.prune: the layers to leave out cannot be trained"):
        family("recsys08_evaluate", "datasets.train_ann_path=a.json")
    config = family("recsys08_qlora")
    assert (config.model.quantization, config.model.nf4_double_quant) == ("nf4", False)
    assert {"generation_config", "model.bnb_4bit_compute_dtype"} == ignored(config)


def test_branches_of_salmonn() -> None:
    config = family("salmonn_soft_prompts")
    assert (config.model.llama_path, config.datasets.prefix) == ("lmsys/vicuna-7b-v1.5", "audio")
    assert (config.wandb.name, config.wandb.project) == ("baseline", "small")
    assert config.run.checkpoint_every_steps == 1000
    assert {"model.soft_prompts", "model.l2p", "model.pool_size", "model.cache_dir"} < ignored(config)


def test_cv16_says_what_its_code_adds() -> None:
    notes = family("cv16_audiomentations").notes
    assert any(note.startswith("model: lora_target_modules: ['q_proj'") and "cv-16" in note for note in notes)
    assert any(note.startswith("model.prompt_path: there is no audiolm-trainer/prompts/") for note in notes)


@pytest.mark.parametrize(
    ("settings", "quantization"),
    [
        ("load_in_4bit: true", "nf4"),
        ("load_in_8bit: true", "int8"),
        ("{load_in_4bit: true, qlora: true}", "nf4"),
        ("{load_in_4bit: true, load_in_8bit: false}", "nf4"),
        ("quant_4bit: true", "nf4"),
        ("quant_method: qlora", "nf4"),
        ("quant_method: gptq", "gptq"),
        ("{quant_method: gptq, low_resource: true}", "gptq"),
        ("{quant_method: gptq, low_resource: false}", "none"),
        ("{quant_method: none, load_in_4bit: null}", "none"),
        ("{adapter: false, low_resource: true}", "nf4"),
        ("{bnb_4bit_quant_type: nf4, load_in_4bit: false}", "none"),
    ],
)
def test_spellings_of_four_and_eight_bits(load, settings: str, quantization: str) -> None:
    settings = settings if settings.startswith("{") else f"{{{settings}}}"
    assert load(f"model: {settings}").model.quantization == quantization
    assert load(f"model: {settings}", "model.quantization=none").model.quantization == "none"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("{load_in_4bit: true, load_in_8bit: true}", "means quantization: int8, but the file also asks for nf4"),
        ("{load_in_4bit: 4}", "model.load_in_4bit: expected true or false"),
        ("{bnb_4bit_quant_type: fp4}", "model.bnb_4bit_quant_type: expected nf4"),
        ("{quant_method: awq}", "model.quant_method: expected one of qlora, nf4"),
        ("{kd: true, teacher_paths: [a, b]}", "model.teacher_paths: a teacher that is a language model alone"),
        ("{kd: true, ckpt_teacher: a.pth, alpha: much}", "model.alpha: expected a number"),
        ("{kd: true, ckpt_teacher: a.pth, alpha: 2}", "model.alpha (here distillation.logits): expected at least 0"),
    ],
)
def test_what_these_programs_cannot_mean_here(load, settings: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(f"model: {settings}")
    assert words in str(caught.value)


@pytest.mark.parametrize("switch", family_keys.ABSENT)
@pytest.mark.parametrize("section", ["model", "distillation.teacher"])
def test_an_absent_feature_is_refused_where_it_is_on(load, switch: str, section: str) -> None:
    absent, name = family_keys.ABSENT[switch], switch.removeprefix("model.")
    opened, closed = ("{teacher: ", "}") if section != "model" else ("", "")
    root = section.partition(".")[0]
    settings = "".join(f", {key[6:]}: 3" for key in absent.settings if key.startswith("model."))
    for off in ("false", "null", "''", "0", "none", "None"):
        config = load(f"{root}: {opened}{{{name}: {off}{settings}}}{closed}")
        assert f"{section}.{name}" in ignored(config)
        assert len(config.ignored) == 1 + settings.count(",")
    with pytest.raises(ConfigError) as caught:
        load(f"run: {{seed: 1}}\n{root}: {opened}{{{name}: true{settings}}}{closed}")
    assert str(caught.value).startswith(f"family.yaml, line 2: {section}.{name}: {absent.feature} not supported")


def test_every_key_without_effect_loads(load) -> None:
    for key in family_keys.IGNORED:
        parts = key.split(".")
        text = "".join(f"{'  ' * depth}{part}:\n" for depth, part in enumerate(parts)).rstrip() + " 1\n"
        assert ignored(load(text)) == {key}, key


def test_every_renamed_key_loads(load) -> None:
    for key in family_keys.RENAMED:
        text = "".join(f"{'  ' * depth}{part}:\n" for depth, part in enumerate(key.split("."))).rstrip()
        value = {"run.save_freq": "3", "run.use_wandb": "true"}.get(key, "false" if "freeze" in key else "x")
        load(f"{text} {'true' if 'double_quant' in key else value}\n")


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("model: {gemma_path: g}", ["model.llama_path="], None),
        ("model: {gemma_path: g}", ["model.llama_path=null"], None),
        ("model: {gemma_path: g}", ["model.llama_path=None"], None),
        ("model: {llama_path: l}", ["model.gemma_path="], None),
        ("model: {gemma_path: g}", ["model.gemma_path="], None),
        ("model: {gemma_path: g, qwen_path: ''}", ["model.llama_path=", "model.qwen_path=q"], "q"),
        ("model_S: {gemma_path: g}", ["model.llama_path="], None),
        ("model_S: {gemma_path: g}", ["model_S.llama_path="], None),
        ("model: {llama_path: None}", [], None),
        ("model: {gemma_path: 'None'}", [], None),
        ("model: {gemma_path: None, llama_path: l}", [], "l"),
    ],
)
def test_a_null_override_wins_over_a_renamed_key(load, text: str, overrides: list[str], expected: str | None) -> None:
    assert load(text, *overrides).model.llama_path == expected


@pytest.mark.parametrize(
    ("text", "override", "key"),
    [
        ("model: {canary_path: c}", "model.parakeet_path=", "model.parakeet_path"),
        ("datasets: {test_asr_path: t}", "datasets.test_ann_path_asr=null", "datasets.test_ann_path_asr"),
        ("run: {exp_name: e}", "wandb.name=", "wandb.name"),
        ("model: {ckpt: None}", "run.seed=1", "model.ckpt"),
    ],
)
def test_null_of_other_keys(load, text: str, override: str, key: str) -> None:
    section, _, name = key.partition(".")
    assert getattr(getattr(load(text, override), section), name) is None


def test_none_is_named_where_null_is_not_allowed(load) -> None:
    with pytest.raises(ConfigError, match=r"model\.end_sym: found None"):
        load("model: {end_sym: None}")

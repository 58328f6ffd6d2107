"""The schema: strict loading, errors a user can act on, overrides, and a dump that loads again."""

from __future__ import annotations

import argparse
import dataclasses
import pickle
from pathlib import Path

import pytest

from configs.parsing import ConfigError
from configs.schema import Config, add_config_arguments, config_from_arguments, dump_config, holds_secret, load_config
from configs.sections import ModelConfig, OptimsConfig
from data.prompts import load_prompts
from support.command_line import UserError

ROOT = Path(__file__).resolve().parents[2]
SECRET = "hf_do_not_show"


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "recipe.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def error(path: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, list(overrides))
    return str(caught.value)


class TestLoading:
    def test_defaults_are_the_familys(self, write) -> None:
        config = load_config(write(""))
        assert config.model.second_per_window == config.model.second_stride == 0.333333
        assert (config.model.lora_rank, config.model.lora_alpha, config.model.lora_dropout) == (8, 32, 0.1)
        assert (config.model.qformer_hidden_size, config.model.qformer_num_heads, config.model.qformer_layers) == (
            768,
            12,
            2,
        )
        assert config.model.prompt_template == "USER: {}\nASSISTANT:"
        assert (config.generate.max_new_tokens, config.generate.num_beams, config.generate.top_p) == (200, 4, 0.9)
        assert config.run.optims == OptimsConfig(
            max_epoch=30,
            warmup_steps=3000,
            warmup_start_lr=1e-6,
            init_lr=3e-5,
            min_lr=1e-5,
            weight_decay=0.05,
            beta2=0.999,
        )
        assert config.wandb.mode == "disabled"

    def test_values_types_and_nesting(self, write) -> None:
        path = write(
            "model: {llama_path: org/name, beats_path: '', token: null, lora_target_modules: [q_proj]}\n"
            "datasets: {train_ann_path: [a.json, b.json], task_weights: {asr: 2}, augmentation: {gain: {p: 0.3}}}\n"
            "run: {max_grad_norm: null, num_workers: null, optims: {init_lr: 1e-4, warmup_steps: 3e2}}\n"
        )
        config = load_config(path)
        assert (config.model.beats_path, config.model.token) == (None, None)
        assert config.model.lora_target_modules == ("q_proj",)
        assert config.datasets.train_ann_path == ("a.json", "b.json")
        assert config.datasets.task_weights == {"asr": 2.0}
        assert config.datasets.augmentation == {"gain": {"p": 0.3}}
        assert config.run.max_grad_norm is None
        assert config.run.num_workers == 8  # null stands for "not given" where a key cannot be null
        assert (config.run.optims.init_lr, config.run.optims.warmup_steps) == (1e-4, 300)
        assert isinstance(config.run.optims.warmup_steps, int)

    def test_frozen_and_picklable(self, write) -> None:
        config = load_config(write("run: {seed: 3}\ndatasets: {augmentation: {gain: {p: 0.3}}}"))
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.run.seed = 4
        assert pickle.loads(pickle.dumps(config)) == config

    def test_interpolation(self, write, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SMOLT_TEST_DATA", "/data")
        path = write(
            "datasets: {prefix: '${oc.env:SMOLT_TEST_DATA}'}\nrun: {seed: 7, output_dir: 'outputs/${run.seed}'}"
        )
        config = load_config(path, ["run.seed=8"])
        assert (config.datasets.prefix, config.run.output_dir) == ("/data", "outputs/8")

    def test_output_dir_follows_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for path, expected in {
            "mine.yaml": "outputs/mine",
            "configs/mine.yaml": "outputs/mine",
            "configs/demo/stage1.yaml": "outputs/demo/stage1",
        }.items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text("run: {seed: 1}")
            assert load_config(path).run.output_dir == expected

    @pytest.mark.parametrize("absent", ["{}", "{run: null}", "{run: {output_dir: null}}", "{run: {output_dir: ''}}"])
    def test_an_output_dir_that_is_null_or_empty_is_none(self, write, absent: str) -> None:
        path = write(absent)
        assert load_config(path).run.output_dir == load_config(write("{run: {seed: 1}}")).run.output_dir != "outputs"
        assert load_config(path, ["run.output_dir=x"]).run.output_dir == "x"
        assert "run.output_dir: expected a folder, found nothing" in error(path, "run.output_dir=")

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ("", "off"),
            ("ckpt: a/best", "off"),
            ("ckpt: a/checkpoint_0.pth", "weights"),
            ("{ckpt: a.pth, legacy: off}", "off"),
            ("{ckpt: a.pth, legacy: true}", "exact"),
            ("{ckpt: a.pth, legacy: exact}", "exact"),
            ("legacy: weights", "weights"),
        ],
    )
    def test_legacy(self, write, given: str, expected: str) -> None:
        given = given if given.startswith("{") else f"{{{given}}}"
        assert load_config(write(f"model: {given}")).model.legacy == expected


class TestOverrides:
    def test_they_win_and_keep_types(self, write) -> None:
        path = write("run: {seed: 1}\nmodel: {window: full}")
        config = load_config(
            path,
            [
                "run.seed=2",
                "model.window=clip",
                "run.output_dir=2024",
                "run.optims.init_lr=1e-3",
                "model.stop_strings=[a,b]",
            ],
        )
        assert (config.run.seed, config.model.window, config.run.output_dir) == (2, "clip", "2024")
        assert config.run.optims.init_lr == 1e-3
        assert config.model.stop_strings == ("a", "b")

    def test_null_takes_a_value_away(self, write) -> None:
        assert load_config(write("model: {beats_path: a.pt}"), ["model.beats_path=null"]).model.beats_path is None

    @pytest.mark.parametrize("taken", ["", "null", "~"])
    def test_what_may_be_null_is_taken_away(self, write, taken: str) -> None:
        path = write("model: {ckpt: a/best, bos_token: <s>}\nrun: {max_grad_norm: 2}\ndatasets: {valid_ann_path: a}")
        keys = ("model.ckpt", "model.bos_token", "run.max_grad_norm", "datasets.valid_ann_path")
        config = load_config(path, [f"{key}={taken}" for key in keys])
        assert (config.model.ckpt, config.model.bos_token) == (None, None)
        assert (config.run.max_grad_norm, config.datasets.valid_ann_path) == (None, None)

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("run.seed=", "a whole number, found '', which is null"),
            ("run.seed=#", "a whole number, found '#', which is null"),
            ("run.num_workers=null", "a whole number, found 'null', which is null"),
            ("run.output_dir=null", "text, found 'null', which is null"),
            ("run.use_wandb=#", None),
            ("run.wandb_project=~", "text, found '~', which is null"),
            ("run.optims=", "a mapping, found '', which is null"),
            ("run=", "a mapping, found null"),
            ("run.seed=@x", "a whole number, found '@x' (text)"),
            ("model.lora_rank=a: b: c", "a whole number, found 'a: b: c' (text)"),
        ],
    )
    def test_null_does_not_mean_the_default(self, write, override: str, expected: str | None) -> None:
        path = write("run: {seed: 7, output_dir: mine}")
        if expected is None:  # the family's switch may be null
            load_config(path, [override])
            return
        message = error(path, override)
        assert message.startswith(f"--options (over {path}): {override.partition('=')[0]}")
        assert message.endswith(f": expected {expected}")

    @pytest.mark.parametrize(
        "text",
        ["#", "###", "@x", "[END]", "<|im_end|>", "a # b", "a: b", "007", "1e3", "{", "'", "it's", "%", "&a", "- x"],
    )
    def test_text_is_taken_as_it_is(self, write, text: str) -> None:
        overrides = [f"model.end_sym={text}", f"model.ckpt={text}", f"run.wandb_project={text}"]
        config = load_config(write("model: {end_sym: </s>}"), overrides)
        assert (config.model.end_sym, config.model.ckpt, config.wandb.project) == (text, text, text)

    def test_templates_lists_and_quotes(self, write) -> None:
        def given(*overrides: str) -> Config:
            return load_config(write("{}"), list(overrides))

        template = "USER: {}\nASSISTANT:"
        assert given(f"model.prompt_template={template}").model.prompt_template == template
        quoted = r'model.prompt_template="USER: {}\nASSISTANT:"'
        assert given(quoted).model.prompt_template == template
        assert given("datasets.train_ann_path=[a.json, b.json]").datasets.train_ann_path == ("a.json", "b.json")
        assert given("datasets.train_ann_path=a #1,b.json").datasets.train_ann_path == "a #1,b.json"
        assert given("model.stop_strings=###").model.stop_strings == ("###",)
        assert given("model_T.llama_path=#x").distillation.teacher.llama_path == "#x"

    def test_a_broken_interpolation_names_the_key(self, write) -> None:
        message = error(write(""), "run.seed=1", "run.output_dir=${run.seed")
        assert "--options" in message and "run.output_dir" in message

    def test_an_alias_given_as_override_wins(self, write) -> None:
        path = write("model: {llama_path: a/a, qlora: true}")
        assert load_config(path, ["model.gemma_path=b/b"]).model.llama_path == "b/b"
        assert load_config(path, ["model.quantization=none"]).model.quantization == "none"

    @pytest.mark.parametrize("override", ["run.seed", "=3", "seed 3"])
    def test_not_a_setting(self, write, override: str) -> None:
        message = error(write(""), override)
        assert message.startswith("--options: expected section.key=value")
        assert repr(override) in message

    def test_arguments(self, write) -> None:
        parser = argparse.ArgumentParser()
        add_config_arguments(parser)
        path = write("run: {seed: 1}")
        given = parser.parse_args(
            ["--cfg-path", path, "--options", "run.seed=5", "run.amp=true", "--options", "run.seed=6"]
        )
        config = config_from_arguments(given)
        assert (config.run.seed, config.run.amp, config.path) == (6, True, path)


class TestErrors:
    @pytest.mark.parametrize(
        ("text", "line", "key", "words"),
        [
            ("run:\n  sead: 1", 2, "run.sead", "Did you mean run.seed?"),
            ("model:\n  lora: true\n  Lora_Rank: 8", 3, "model.Lora_Rank", "Did you mean model.lora_rank?"),
            ("model:\n  seed: 1", 2, "model.seed", "Did you mean run.seed?"),
            ("run:\n  optims:\n    inti_lr: 1e-4", 3, "run.optims.inti_lr", "Did you mean run.optims.init_lr?"),
            ("model:\n  clap_path: x", 2, "model.clap_path", "Encoders are named by whisper_path, beats_path"),
            ("generate:\n  xyzzy: 1", 2, "generate.xyzzy", "It has: do_sample, length_penalty"),
            ("modle:\n  lora: true", 1, "modle", "Did you mean model?"),
            ("run:\n  path: 1", 2, "run.path", "found 1"),
            ("path: x", 1, "path", "no such section"),
            ("run:\n  seed: one", 2, "run.seed", "expected a whole number, found 'one' (text)"),
            ("run:\n  seed: 1.5", 2, "run.seed", "expected a whole number, found 1.5 (a number)"),
            ("run:\n  seed: true", 2, "run.seed", "expected a whole number, found true (true/false)"),
            ("run:\n  amp: 1", 2, "run.amp", "expected true or false, found 1 (a whole number)"),
            ("run:\n  amp: 'yes'", 2, "run.amp", "expected true or false, found 'yes' (text)"),
            ("run:\n  output_dir: 3", 2, "run.output_dir", "expected text, found 3 (a whole number) (put it in quotes"),
            ("run:\n  optims: 3", 2, "run.optims", "expected a mapping, found 3"),
            ("run:\n  optims:\n    init_lr: fast", 3, "run.optims.init_lr", "expected a number, found 'fast' (text)"),
            ("run:\n  optims:\n    init_lr: .nan", 3, "run.optims.init_lr", "expected a finite number, found nan"),
            ("run:\n  batch_size_train: 0", 2, "run.batch_size_train", "expected at least 1, found 0"),
            ("model:\n  lora_dropout: 1.0", 2, "model.lora_dropout", "expected below 1, found 1.0"),
            ("model:\n  second_stride: 0", 2, "model.second_stride", "expected above 0, found 0"),
            ("model:\n  window: half", 2, "model.window", "expected one of clip, full, found 'half'"),
            ("model:\n  dtype: fp16", 2, "model.dtype", "float16"),
            ("model:\n  lora_target_modules: 3", 2, "model.lora_target_modules", "expected a list of text, found 3"),
            ("model:\n  stop_strings: [a, 3]", 2, "model.stop_strings", "expected a list of text"),
            (
                "datasets:\n  train_ann_path: {a: b}",
                2,
                "datasets.train_ann_path",
                "expected text or a list of text or null",
            ),
            ("datasets:\n  task_weights: [1]", 2, "datasets.task_weights", "a mapping of names to numbers"),
        ],
    )
    def test_names_file_line_key_and_mend(self, write, text: str, line: int, key: str, words: str) -> None:
        path = write(text)
        message = error(path)
        assert message.startswith(f"{path}, line {line}: {key}: ")
        assert words in message

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("model: {qformer_num_heads: 7}", "model.qformer_num_heads (7) does not divide"),
            ("model: {prompt_template: no place}", "model.prompt_template needs exactly one {}"),
            ("generate: {min_length: 9, max_new_tokens: 3}", "generate.min_length (9) is above"),
            ("datasets: {task_weights: {asr: -1}}", "datasets.task_weights.asr: expected at least 0"),
            ("run: 3", "run: expected a mapping"),
            ("- a", "expected sections"),
            ("run: {seed: 1", "not valid YAML"),
            ("run: {seed: 1, seed: 2}", "duplicate key seed"),
            ("run: {seed: '${run.sead}'}", "run.sead"),
        ],
    )
    def test_rules_and_broken_files(self, write, text: str, words: str) -> None:
        path = write(text)
        message = error(path)
        assert message.startswith(path)
        assert words in message

    def test_an_override_is_named_as_one(self, write) -> None:
        message = error(write("run: {seed: 1}"), "run.seed=x")
        assert message.startswith("--options (over ")
        assert "run.seed: expected a whole number, found 'x'" in message
        message = error(write("run: {seed: 1}"), "runn.seed=2")
        assert message.startswith("--options (over ") and "Did you mean run?" in message

    def test_missing_file_suggests_its_neighbour(self, write) -> None:
        path = write("", "stage1.yaml")
        message = error(path.replace("stage1", "stag1"))
        assert "no such file. Did you mean" in message
        assert path in message

    def test_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_bytes(b"run: {output_dir: \xff}")
        assert "UTF-8" in error(str(tmp_path / "a.yaml"))

    def test_a_secret_of_the_wrong_type_is_not_shown(self, write) -> None:
        assert "123456" not in error(write("model: {token: 123456}"))


class TestSecrets:
    def test_never_dumped_or_shown(self, write, tmp_path: Path) -> None:
        config = load_config(write(f"model: {{token: {SECRET}}}\nwandb: {{key: {SECRET}}}"))
        assert (config.model.token, config.wandb.key) == (SECRET, SECRET)
        dump_config(config, tmp_path / "dump.yaml")
        assert SECRET not in (tmp_path / "dump.yaml").read_text()
        assert SECRET not in str(config.to_dict())
        assert SECRET not in repr(config)
        assert config.to_dict(secrets=True)["model"]["token"] == SECRET

    def test_from_the_environment(self, write, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", SECRET)
        assert load_config(write("model: {token: ''}")).model.token == SECRET
        assert load_config(write("model: {token: mine}")).model.token == "mine"

    @pytest.mark.parametrize("token", ["<hf_token>", ""])
    def test_placeholders_are_none(self, write, token: str) -> None:
        assert load_config(write(f'model: {{token: "{token}"}}')).model.token is None


def test_dump_loads_again(write, tmp_path: Path) -> None:
    config = load_config(
        write(
            "model: {gemma_path: org/name@main, prompt_template: \"S: ü\\n{}\\n\", stop_strings: ['\\${x}']}\n"
            "datasets: {train_ann_path: [a.json], augmentation: {gain: {p: 0.3}}}\n"
            "run: {max_grad_norm: null, optims: {init_lr: 1e-6}, optims_stage2: {max_epoch: 2}}\n"
        )
    )
    assert config.model.stop_strings == ("${x}",)
    dump_config(config, tmp_path / "dump.yaml")
    again = load_config(tmp_path / "dump.yaml")
    assert again.to_dict() == config.to_dict()
    assert again.model == config.model


class TestRequiredPaths:
    def config(self, write, text: str) -> Config:
        return load_config(write(text))

    def error(self, config: Config, *keys: str) -> str:
        with pytest.raises(ConfigError) as caught:
            config.require_paths(*keys)
        return str(caught.value)

    def test_absent(self, write) -> None:
        config = self.config(write, "model: {whisper_path: org/name}")
        message = self.error(config)
        assert message.startswith(f"{config.path}: model.llama_path is not set.")
        assert "--options model.llama_path=FOLDER_OR_HUB_NAME" in message
        assert "datasets.train_ann_path is not set" in self.error(config, "datasets.train_ann_path")

    def test_no_encoder(self, write) -> None:
        assert "no encoder" in self.error(self.config(write, "model: {llama_path: org/name}"))

    def test_leads_nowhere(self, write, tmp_path: Path) -> None:
        config = self.config(write, f"model: {{llama_path: org/name, whisper_path: {tmp_path}/whisper}}")
        message = self.error(config)
        assert f"model.whisper_path: '{tmp_path}/whisper' does not exist" in message
        assert "hub name" in message
        config = self.config(write, f"model: {{llama_path: org/name, beats_path: {tmp_path}/beats.pt}}")
        assert "beats.pt' does not exist" in self.error(config)

    def test_a_mistyped_path_names_its_neighbour(self, write, tmp_path: Path) -> None:
        (tmp_path / "best").mkdir()
        config = self.config(write, f"model: {{llama_path: a/b, whisper_path: a/b, ckpt: {tmp_path}/bst}}")
        assert f"Did you mean {tmp_path}/best?" in self.error(config)
        config = self.config(write, f"datasets: {{prefix: {tmp_path}/data, train_ann_path: train.json}}")
        assert f"datasets.prefix, '{tmp_path}/data', is no folder" in self.error(config, "datasets.train_ann_path")

    def test_a_folder_here_is_not_taken_for_an_organisation(self, write, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "assets").mkdir()
        config = self.config(write, "model: {llama_path: assets/llm, whisper_path: org/name}")
        assert f"looked at {tmp_path}/assets/llm" in self.error(config)

    @pytest.mark.parametrize(
        "name", ["openai/whisper-large-v3-turbo", "org/name@revision", "org/name@refs/pr/1", "gpt2"]
    )
    def test_hub_names(self, write, name: str) -> None:
        self.config(write, f"model: {{llama_path: {name}, whisper_path: {name}}}").require_paths()

    def test_a_folder_of_the_programs_is_no_organisation(self, write, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        config = self.config(write, "model: {llama_path: org/name, whisper_path: assets/nowhere}")
        assert "model.whisper_path: 'assets/nowhere' does not exist" in self.error(config)

    def test_prompts_of_the_program_are_found_from_elsewhere(self, write, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        config = self.config(write, "model: {prompt_path: prompts/mine.json}")
        config.require_paths("model.test_prompt_path")
        assert "model.prompt_path: 'prompts/mine.json' does not exist" in self.error(config, "model.prompt_path")
        assert "asr" in load_prompts(config.model.test_prompt_path)
        (tmp_path / "prompts").mkdir()
        (tmp_path / "prompts/test.json").write_text('{"mine": "<Speech><SpeechHere></Speech>"}')
        assert list(load_prompts(config.model.test_prompt_path)) == ["mine"]

    def test_annotations_are_looked_for_under_prefix_too(self, write, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text("[]")
        text = f"datasets: {{prefix: {tmp_path}, train_ann_path: a.json, valid_ann_path: [a.json, b.json]}}"
        config = self.config(write, text)
        config.require_paths("datasets.train_ann_path")
        message = self.error(config, "datasets.train_ann_path", "datasets.valid_ann_path")
        assert "datasets.valid_ann_path: 'b.json' does not exist" in message
        assert f"and at {tmp_path}/b.json" in message


@pytest.mark.parametrize(
    "text",
    [
        "run: {optims: {init_lr: .inf}}",
        "run: {optims: {init_lr: .nan}}",
        "generate: {length_penalty: -.inf}",
        "datasets: {task_weights: {asr: .inf}}",
        "datasets: {augmentation: {gain: {p: .nan}}}",
    ],
)
def test_numbers_are_finite(write, text: str) -> None:
    assert "line 1" in (message := error(write(text))) and "expected a finite number" in message


def test_errors_that_begin_with_a_key_are_given_the_file(write) -> None:
    config = load_config(write("run: {seed: 1}"))
    with pytest.raises(ConfigError, match=r"recipe\.yaml: datasets\.task_weights\.x: no clip"), config.named():
        raise UserError("datasets.task_weights.x: no clip")
    with pytest.raises(UserError, match=r"^another: model\.x"), config.named():
        raise UserError("another: model.x")


class TestSecondStage:
    def test_none_unless_asked_for(self, write) -> None:
        assert load_config(write("")).second_stage("a") is None

    def test_from_the_same_file(self, write) -> None:
        config = load_config(
            write(
                "datasets: {train_ann_path: one.json, valid_ann_path: v.json, train_stage2_path: two.json}\n"
                "run: {auto_second: true, output_dir: out/first, optims_stage2: {max_epoch: 2}}\n"
            )
        )
        second = config.second_stage("out/first/best")
        assert second.model.ckpt == "out/first/best"
        assert (second.datasets.train_ann_path, second.datasets.valid_ann_path) == ("two.json", "v.json")
        assert (second.run.optims.max_epoch, second.run.output_dir) == (2, "out/first_stage2")
        assert second.second_stage("x") is None

    def test_from_another_file_beside_it(self, write) -> None:
        write("run: {seed: 9, output_dir: out/second}", "stage2.yaml")
        config = load_config(write("run: {auto_second: true, second_stage_config: stage2.yaml}"))
        second = config.second_stage("ckpt", overrides=["run.batch_size_train=2"])
        assert (second.run.seed, second.run.batch_size_train, second.model.ckpt) == (9, 2, "ckpt")

    def test_nothing_to_train_on(self, write) -> None:
        config = load_config(write("run: {auto_second: true}"))
        with pytest.raises(ConfigError, match="train_stage2_path"):
            config.second_stage("ckpt")


@pytest.mark.parametrize("text", ["1: 2", "hello", "training:", "model:\n  1: 2", "run:\n  on: 2"])
def test_keys_that_are_no_names_are_unknown(write, text: str) -> None:
    assert "no such" in error(write(text))


def test_a_key_that_is_null_is_an_error_with_the_file(write) -> None:
    path = write("run:\n  null: 2")
    assert error(path).startswith(f"{path}: Incompatible key type")


@pytest.mark.parametrize("text", ["model:\n  tokn: {}", "datasets:\n  token: {}"])
def test_a_mistyped_or_misplaced_secret_is_not_shown(write, text: str) -> None:
    message = error(write(text.format(SECRET)))
    assert "Did you mean model.token?" in message and SECRET not in message


def test_options_that_hold_a_secret_are_known() -> None:
    assert holds_secret(f"model.token={SECRET}") and holds_secret("wandb.key=x")
    assert not any(map(holds_secret, ("run.seed=1", "model.ckpt=token", "nonsense", "a.b.c=1")))


def test_sections_can_be_made_in_code() -> None:
    config = Config(model=ModelConfig(llama_path="org/name", qformer_hidden_size=64, qformer_num_heads=4))
    assert config.model.legacy == "off"
    with pytest.raises(ValueError, match="qformer_num_heads"):
        ModelConfig(qformer_num_heads=7)


@pytest.mark.parametrize(
    "path",
    [p for p in sorted((ROOT / "configs").rglob("*.yaml")) if "architectures" not in p.parts],
    ids=lambda p: str(p.relative_to(ROOT / "configs")),
)
def test_every_recipe_that_ships_loads(path: Path) -> None:
    config = load_config(path)
    assert not config.ignored, "a recipe of ours uses keys that have effect"
    header = path.read_text(encoding="utf-8").partition("\n\n")[0]
    assert str(path.relative_to(ROOT)) in header, "the header holds the command that runs the recipe"
    for prompts in (config.model.prompt_path, config.model.test_prompt_path):
        assert prompts is None or (ROOT / prompts).is_file()

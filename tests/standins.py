"""Small networks and data in place of those that a YAML of the family names; everything else of the file stays."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from configs.schema import Config, load_config
from configs.sections import ModelConfig
from models.build import build_model
from models.checkpoint.adapter_folder import save_adapter
from models.language.llm import LanguageModel
from models.quantization.gptq import GPTQSettings
from models.quantization.gptq_folder import save_folder
from models.quantization.gptq_solver import round_to_nearest
from tests import tiny

QFORMER = {"qformer_hidden_size": 32, "qformer_num_heads": 2, "qformer_layers": 1}
RUN = {
    "device": "cpu",
    "num_workers": 0,
    "epoch_based": False,
    "iters_per_epoch": 2,
    "accum_grad_iters": 1,
    "batch_size_train": 2,
    "batch_size_eval": 4,
    "auto_second": False,
}
MODELS = {"model": "model", "distillation.teacher": "teacher"}


@dataclass(frozen=True)
class StandIns:
    """Networks by kind, and a corpus, all in one folder."""

    project: tiny.TinyProject
    llms: dict[str, Path]
    gptq: Path
    ced: Path
    parakeet: Path

    @classmethod
    def write(cls, folder: Path) -> StandIns:
        project = tiny.write_project(folder / "project")
        families = {"gemma": "gemma2", "qwen": "qwen2"}
        llms = {name: tiny.write_llm(folder / name, family=family) for name, family in families.items()}
        ced = tiny.write_ced(folder / "ced.pt")
        gptq = write_gptq_llm(project.llm, folder / "gptq")
        return cls(project, llms, gptq, ced, tiny.write_hf_encoder(folder / "parakeet", "parakeet"))

    def llm(self, path: str) -> Path:
        """The stand-in for a language model, of its family."""
        return next((folder for name, folder in self.llms.items() if name in path.lower()), self.project.llm)

    def options(self, file: Path, output: Path, *given: str) -> list[str]:
        """`--options` that put stand-ins in the place of what a YAML names, and make its run two steps long."""
        config = load_config(file, given)
        values = {f"run.{name}": value for name, value in RUN.items()}
        values |= {"run.output_dir": output, "run.resume": "null", "wandb.mode": "disabled"}
        values |= {
            "generate.max_new_tokens": 4,
            "generate.min_length": 1,
            "datasets.prefix": self.project.root / "corpus",
        }
        values |= {"run.optims.max_epoch": 1, "run.optims.warmup_steps": 1}
        values |= {
            f"datasets.{name}": path for name, path in self._annotations().items() if getattr(config.datasets, name)
        }
        for section in MODELS:
            values |= self._model(config, section)
        options = [*given, *(f"{key}={_text(value)}" for key, value in values.items())]
        teacher = load_config(file, options).distillation.teacher
        if teacher is not None:  # one with a fresh adapter would be refused
            save_adapter(build_model(teacher), output.parent / "teacher")
            options.append(f"distillation.teacher.ckpt={output.parent / 'teacher'}")
        return options

    def _annotations(self) -> dict[str, Path]:
        project = self.project
        both = f"[{project.test_asr},{project.test_aac}]"
        return {
            "train_ann_path": project.train,
            "train_stage2_path": project.train,
            "valid_ann_path": project.valid,
            "valid_stage2_path": project.valid,
            "test_ann_path": both,
            "test_ann_path_asr": project.test_asr,
            "test_ann_path_aac": project.test_aac,
        }

    def _model(self, config: Config, section: str) -> dict[str, object]:
        model = config.model if section == "model" else config.distillation.teacher
        if model is None:
            return {}
        paths = {
            "whisper_path": self.project.whisper,
            "beats_path": self.project.beats,
            "ced_path": self.ced,
            "parakeet_path": self.parakeet,
        }
        values = {name: path for name, path in paths.items() if getattr(model, name)}
        llm = self.gptq if model.quantization == "gptq" else self.llm(model.llama_path or "")
        values |= {"llama_path": llm, "ckpt": "null", "speech_llama_proj_model": ""}
        values |= QFORMER | {"allow_slow_kernels": True}
        if model.bos_token is not None or llm == self.llms["qwen"]:
            values["bos_token"] = "<pad>"  # a token that the stand-ins have
        for name, path in (("prompt_path", "prompts/train.json"), ("test_prompt_path", "prompts/test.json")):
            if "\\" in (getattr(model, name) or "") or Path(getattr(model, name) or "").is_absolute():
                values[name] = path
        return {f"{section}.{name}": value for name, value in values.items()}


def write_gptq_llm(source: Path, folder: Path) -> Path:
    """A language model's folder with every weight rounded to the nearest of 16, groups of 32."""
    settings = GPTQSettings(group_size=32)
    network = LanguageModel.from_config(ModelConfig(llama_path=str(source), lora=False)).model
    for name, module in [*network.named_modules()]:
        if isinstance(module, nn.Linear) and module is not network.get_output_embeddings():
            network.set_submodule(name, round_to_nearest(module.weight, settings).stored(settings))
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    save_folder(network, folder, settings)
    return folder


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

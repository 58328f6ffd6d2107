"""Tables of the SALMONN family's keys: another name here, no effect here, a feature that is absent here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

RENAMED = {
    "model.llm_path": "model.llama_path",
    "model.llama_model_name": "model.llama_path",
    "model.gemma_path": "model.llama_path",
    "model.qwen_path": "model.llama_path",
    "model.canary_path": "model.parakeet_path",
    "canary.model_name": "model.parakeet_path",
    "model.Ced_path": "model.ced_path",
    "model.freeze_canary": "model.freeze_parakeet",
    "model.speech_gemma_proj_model": "model.speech_llama_proj_model",
    "model.speech_qwen_proj_model": "model.speech_llama_proj_model",
    "model.speech_llm_proj_model": "model.speech_llama_proj_model",
    "model.freeze_speech_gemma_proj": "model.freeze_speech_llama_proj",
    "model.freeze_speech_qwen_proj": "model.freeze_speech_llama_proj",
    "model.freeze_speech_llm_proj": "model.freeze_speech_llama_proj",
    "model.bnb_4bit_use_double_quant": "model.nf4_double_quant",
    "datasets.data_root": "datasets.prefix",
    "datasets.train_ann_path_1": "datasets.train_ann_path",
    "datasets.train_stage1_path": "datasets.train_ann_path",
    "datasets.valid_ann_path_1": "datasets.valid_ann_path",
    "datasets.valid_stage1_path": "datasets.valid_ann_path",
    "datasets.train_ann_path_2": "datasets.train_stage2_path",
    "datasets.valid_ann_path_2": "datasets.valid_stage2_path",
    "datasets.test_asr_path": "datasets.test_ann_path_asr",
    "datasets.test_aac_path": "datasets.test_ann_path_aac",
    "run.save_freq": "run.checkpoint_every_steps",
    "run.use_wandb": "wandb.log",
    "run.wandb_project": "wandb.project",
    "run.project_name": "wandb.project",
    "project_name": "wandb.project",
    "run.wandb_entity": "wandb.entity",
    "run.wandb_name": "wandb.name",
    "run.wandb_local_dir": "wandb.dir",
    "run.exp_name": "wandb.name",
    "run.run_name": "wandb.name",
}
"""Dotted key of the family -> dotted key here."""

_LAUNCHER = "the launcher (torchrun) sets the number of processes and their address"
_MANIFEST = "clips are read from the annotation files"
_SPEED = "it changes speed, not results; kernels are chosen by device here"
_TENSORRT = "TensorRT is not used; on CUDA, CUDA graphs do what it is for"
_EPOCHS = "a checkpoint is written at the end of every epoch; run.keep_checkpoints says how many stay"
_PRUNING = "pruning is a step of its own there; name the folder of a pruned model in model.llama_path"
_APOLLO = "the optimiser is AdamW, which APOLLO approximates with less memory"
IGNORED = {
    "model.only_preprocessor": "parts are loaded when they are needed",
    "model.beats_to_eat": "EAT is not supported; BEATs is used if model.beats_path is set",
    "model.distillation": "distillation is on if distillation.teacher (model_T) is given",
    "model.is_output_saved": "the teacher runs during training; saved outputs are not read",
    "model.device_8bit": "run.device sets the model's device",
    "model.is_train": "train.py trains and evaluate.py evaluates",
    "model.cache_dir": "HF_HOME names the hub's cache",
    "model.liger_kernel": _SPEED,
    "model.torch_compile_mode": _SPEED,
    "model.flash_attention": _SPEED,
    "model.deepspeed_config": "the launcher (accelerate) reads DeepSpeed's settings",
    "model.lora_16bit": "the type of trained weights follows run.amp and model.dtype",
    "model.bnb_4bit_compute_dtype": "model.dtype is the type of all computation; auto is float16 on CUDA",
    "model.generate": "texts are generated as the section generate says",
    "generate.end_sym": "model.end_sym is the end symbol, and every special token is removed from texts",
    "generate.low_resource": "model.low_resource is the switch",
    "generation_config": "texts are generated as the section generate says",
    "logging": _PRUNING,
    "pruner": _PRUNING,
    "datasets.pruning_sample_path": _PRUNING,
    "datasets.whisper_path": "features are computed for model.whisper_path",
    "datasets.whisper_path2": "the teacher's features are computed for distillation.teacher.whisper_path",
    "datasets.stage1_use_valid": "validation runs if datasets.valid_ann_path is given",
    "datasets.stage2_use_valid": "validation runs if datasets.valid_stage2_path or valid_ann_path is given",
    "datasets.train_manifest_path": _MANIFEST,
    "datasets.valid_manifest_path": _MANIFEST,
    "datasets.asr_manifest_path": _MANIFEST,
    "datasets.aac_manifest_path": _MANIFEST,
    "datasets.mock_manifest_path": _MANIFEST,
    "run.gpu": "run.device, or the launcher, selects the GPU",
    "run.device2": "teacher and student run on run.device",
    "run.use_distributed": _LAUNCHER,
    "run.world_size": _LAUNCHER,
    "run.world-size": _LAUNCHER,
    "run.dist_url": _LAUNCHER,
    "run.dist_backend": _LAUNCHER,
    "run.distributed": _LAUNCHER,
    "run.rank": _LAUNCHER,
    "run.deepspeed": "the launcher (accelerate) reads DeepSpeed's settings",
    "run.log_level_warning": "the log has one line a step of run.log_freq",
    "run.tensorrt": _TENSORRT,
    "run.tensorrt_device": _TENSORRT,
    "run.optimization_level": _TENSORRT,
    "run.jit_mode": _SPEED,
    "run.save_ep": _EPOCHS,
    "run.checkpoint_interval": _EPOCHS,
    "run.checkpoint_mode": _EPOCHS,
    "checkpoint_interval": _EPOCHS,
    "checkpoint_mode": _EPOCHS,
    "run.test_before_train": _PRUNING,
    "run.test_after_train": _PRUNING,
    "run.save_model": _PRUNING,
    "run.num_examples": _PRUNING,
    "run.max_seq_len": _PRUNING,
    "run.optims.use_apollo": _APOLLO,
    "run.optims.rank": _APOLLO,
    "run.optims.scale": _APOLLO,
    "run.optims.scale_type": _APOLLO,
    "run.optims.update_proj_gap": _APOLLO,
    "run.optims.proj": _APOLLO,
    "run.optims.proj_type": _APOLLO,
}
"""Dotted key of the family -> why it has no effect here."""


@dataclass(frozen=True)
class Absent:
    """A feature of the family that is not here: fine while its switch is off, an error where it is on."""

    feature: str
    """What the switch turns on, as the subject of `… not supported`."""
    instead: str
    """What to do."""
    settings: tuple[str, ...] = ()
    """Further keys of the feature, which have no effect while it is off."""


_PRUNED = "prune outside, and name the folder of the pruned model in model.llama_path"
_LORA = "set it to false and train with model.lora: true"
ABSENT = {
    "model.use_token_pruning": Absent(
        "pruning of audio tokens is", "set it to false", ("model.token_keep_rate", "model.keep_rate")
    ),
    "model.use_svf": Absent("SVF in place of LoRA is", _LORA, ("model.svf_rank",)),
    "model.adapter": Absent("an HRA adapter is", _LORA),
    "model.soft_prompts": Absent("trained soft prompts are", _LORA, ("model.num_soft_prompt_tokens",)),
    "model.l2p": Absent(
        "learning to prompt (L2P) is", _LORA, ("model.pool_size", "model.prompt_size", "model.out_size")
    ),
    "model.use_average_pooling": Absent(
        "average pooling in place of the Q-Former is",
        "set it to false; the Q-Former connects encoders and language model",
    ),
    "model.use_gumbel": Absent(
        "masks of attention heads are",
        _LORA,
        ("model.gumbel_hard", "run.tau_decay_steps", "run.tau_temp_begin", "run.tau_temp_end", "run.norm_lambda"),
    ),
    "model.vllm": Absent(
        "vLLM is",
        "set it to false; decoding here is continuous batching",
        ("model.vllm_llm_path", "model.vllm_lora_path"),
    ),
    "model.pruned": Absent("pruning of the language model is", _PRUNED),
}
"""Switch -> the feature; a switch that names something, such as a path, is on where it is not empty."""

OFF = (None, False, "", 0, "none", "None", "false", "off")


def is_off(value: Any) -> bool:
    """Whether a switch's value turns nothing on."""
    return value in OFF or (isinstance(value, list | dict) and not value)

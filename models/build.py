"""Build a model from a configuration, or from a folder that training wrote.

`build_model(cfg.model)` joins the parts; `load_model(folder)` does the same from a checkpoint folder's own
`config.yaml`, and loads its adapter.
"""

from contextlib import nullcontext
from pathlib import Path

import torch

from configs.recorded import require_recorded_rules
from configs.schema import load_config
from configs.sections import ModelConfig
from models.aligning import AlignmentModel, PieceText
from models.checkpoint.adapter_folder import LEGACY_SUFFIXES, checkpoint_of, load_adapter, load_projection
from models.checkpoint.adapter_tensors import CheckpointError
from models.checkpoint.released import load_legacy
from models.connector.connector import Connector
from models.device import META, pick_device
from models.encoders.stack import EncoderStack
from models.encoders.table import ENCODERS
from models.language.llm import LanguageModel
from models.language.vocabulary import require_rows
from models.released_rules import Rules, rules_of
from models.runtime import onednn_linear
from models.runtime.host_memory import large_blocks_mapped
from models.salmonn import SALMONN
from support.command_line import UserError


def build_model(
    config: ModelConfig,
    device: str | torch.device | None = "cpu",
    *,
    weights: bool = True,
    encoder_dtype: torch.dtype | None = None,
    aligning: bool = False,
) -> SALMONN:
    """The model that `config` describes, with a fresh adapter, or with that of `config.ckpt`.

    Encoders that the checkpoint was trained without are added, see `load_adapter`.

    Args:
        weights: False makes the whole model at full size on the meta device, from architecture facts
            (configs/architectures), in the types that it would have on `device`, which need not exist. This takes no
            memory, no download, and one or two seconds. It gives sizes, frame counts and, with
            efficiency/memory_plan.py, the memory of a run, but no numbers. It has no tokenizer: it takes `TextBatch`es.
        encoder_dtype: type of the frozen encoders; None for that of `model.dtype`.
        aligning: the model of `run.stage: align`: of the language model the embedding table alone, and a CTC head.

    Raises:
        UserError: a part is not found, does not fit, or has an unknown architecture; the message names its key.
    """
    if not isinstance(config, ModelConfig):
        hint = ": give its .model" if hasattr(config, "model") else "; load_config(FILE).model is one"
        raise UserError(f"build_model takes a ModelConfig, found {type(config).__name__}{hint}")
    device = pick_device(device) if weights else torch.device(device)
    rules = rules_of(config)
    if aligning and rules.model is not SALMONN:
        raise UserError(
            f"model.legacy is {config.legacy}: run.stage: align trains by this program's own rules; set model.legacy "
            "to off, or to weights where the encoders should work as in the public code"
        )
    if aligning and (config.ckpt or "").endswith(LEGACY_SUFFIXES):
        raise UserError(
            f"model.ckpt: {config.ckpt} is a released checkpoint; run.stage: align starts from adapter folders: make "
            "one of it by tools/convert_checkpoint.py"
        )
    paths = [config.llama_path, *(getattr(config, entry.path_key) for entry in ENCODERS.values())]
    with large_blocks_mapped(path for path in paths if path and weights):
        encoders = EncoderStack.from_config(config, device, rules=rules.encoders, weights=weights, dtype=encoder_dtype)
        load_llm = LanguageModel.table_from_config if aligning else LanguageModel.from_config
        llm = load_llm(config, device, weights=weights)
        with nullcontext() if weights else META:
            connector = _connector(config, rules, encoders, llm)
        text_type, model_type = (PieceText, AlignmentModel) if aligning else (rules.text, rules.model)
        text = text_type.from_config(config) if weights else None
        model = model_type(encoders, connector, llm, text, config)
        connector.qformer.requires_grad_(not config.freeze_speech_QFormer)
        if connector.context is not None:
            connector.context.requires_grad_(not config.freeze_speech_QFormer)
        connector.to_llm.requires_grad_(not config.freeze_speech_llama_proj)
        if not weights:
            return model.eval()
        model.to(device)
        if config.speech_llama_proj_model:
            load_projection(model, config.speech_llama_proj_model)
        if config.ckpt:
            if config.ckpt.endswith(LEGACY_SUFFIXES):
                load_legacy(model, config.ckpt)
            else:
                require_recorded_rules(config.ckpt, config.legacy)
                load_adapter(model, config.ckpt, add_encoders=True)
        require_rows(text, llm.model.get_input_embeddings().num_embeddings, config.llama_path)
    if device.type == "cpu" and onednn_linear.pays():
        onednn_linear.use_onednn(model)
        if onednn_linear.use_onednn(model.llm):
            model.llm.kernel = model.llm.kernel.replace("torch linear", "oneDNN linear")
    return model.eval()


def load_model(folder: str | Path, device: str | torch.device | None = None) -> SALMONN:
    """The model of a checkpoint folder, built from the configuration in it.

    Its `generate` section becomes `model.generate_defaults`: without options, `model.generate` generates like the
    checkpoint's own evaluation. (`evaluate.py` and the tools take every option from their YAML.)

    Raises:
        CheckpointError: the folder is not a checkpoint, or its adapter does not fit the model that it describes.
    """
    folder = checkpoint_of(Path(folder).expanduser())
    config_file = folder / "config.yaml"
    if not config_file.is_file():
        raise CheckpointError(
            f"{folder} is not a checkpoint folder: it has no config.yaml. Give a folder that training wrote, such as "
            "outputs/<run>/best."
        )
    config = load_config(config_file, overrides=["model.ckpt="])
    model = build_model(config.model, device, aligning=config.run.stage == "align")
    model.generate_defaults = config.generate
    load_adapter(model, folder)
    return model


def _connector(config: ModelConfig, rules: Rules, encoders: EncoderStack, llm: LanguageModel) -> Connector:
    """A fresh connector between these encoders and this language model."""
    if not config.use_speech_Qformer:
        raise UserError("model.use_speech_Qformer = false: the Q-Former is the only connector; set it to true.")
    rates_hz = encoders.frame_rates_hz
    if rules.align_by_index:
        rates_hz = [max(rates_hz)] * len(rates_hz)
    return Connector(
        list(encoders.encoders),
        encoders.dims,
        rates_hz,
        llm.hidden_size,
        hidden_size=config.qformer_hidden_size,
        num_heads=config.qformer_num_heads,
        num_layers=config.qformer_layers,
        intermediate_size=config.qformer_intermediate_size,
        num_queries=config.num_speech_query_token,
        dropout=config.qformer_dropout,
        context_layers=config.context_layers,
        window_s=config.second_per_window if config.window_level_Qformer else None,
        stride_s=config.second_stride,
        keep_partial_window=rules.keep_partial_window,
        window_jitter=config.window_jitter,
        mask_frames=config.mask_frames,
        fusion=config.fusion,
    )

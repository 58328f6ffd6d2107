"""A whole model without its weights: every part at full size on the meta device, from architecture facts alone.

Takes no memory, no download and a second or two. Sizes, frame counts and, with
`efficiency/memory_plan.py`, the memory of a run can be read off it; numbers cannot.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, WhisperConfig

from configs.architectures import Architecture, find_architecture
from configs.sections import ModelConfig
from models.build import build_connector, freeze_connector
from models.encoders.base import AudioEncoder, kept_layers
from models.encoders.beats import BEATs, is_released
from models.encoders.beats_network import BEATsConfig
from models.encoders.ced import CED, CEDConfig
from models.encoders.table import ENCODERS
from models.encoders.whisper import WhisperEncoder
from models.language.llm import PRECISIONS, LanguageModel, compute_dtype
from models.quantization import backends
from models.quantization.int8 import Int8Linear, fastest, round_linears
from models.quantization.stored_shapes import GROUP, pack_linears
from models.released_rules import rules_of
from models.salmonn import SALMONN
from models.tensor_file import TensorFileError, read_tensor_file
from support.command_line import UserError

META = torch.device("meta")
LEGACY_CED = {"target_length": 3001, "rescale": True, "frequency_major": True}  # as models/encoders/stack.py loads it


def build_skeleton(
    config: ModelConfig, device: str | torch.device = "cuda", *, encoder_dtype: torch.dtype | None = None
) -> SALMONN:
    """The model that `config` describes, on the meta device, in the types that it would have on `device`.

    `device` need not be there. `encoder_dtype` overrides the type of the frozen encoders. The model has no tokenizer;
    everything that takes a `TextBatch` works.

    Raises:
        ValueError: naming the key, where nothing is known of a part's architecture, or where parts do not fit.
    """
    device = torch.device(device)
    rules = rules_of(config)
    encoders: dict[str, AudioEncoder] = {}
    frozen: dict[str, bool] = {}
    for name, entry in ENCODERS.items():
        path = getattr(config, entry.path_key)
        if not path:
            continue
        frozen[name] = getattr(config, entry.freeze_key)
        dtype = encoder_dtype or _encoder_dtype(config, device)
        encoders[name] = _named(entry.path_key, _build_encoder, path, config, dtype if frozen[name] else torch.float32)
        for layer in encoders[name].modules():
            if isinstance(layer, Int8Linear):
                layer.kernel = fastest(device)  # there: a plan's tensors all say that they lie on the CPU
    stack = rules.encoders(encoders, frozen)
    llm = _named("llama_path", _build_llm, config.llama_path, config, device)
    with META:
        connector = build_connector(config, stack, llm)
    model = rules.model(stack, connector, llm, None, config)
    freeze_connector(model, config)
    return model.eval()


def _named(key: str, build: Any, path: str | None, *arguments: Any) -> Any:
    """Call `build`, and name the key in its errors."""
    if not path:
        raise UserError(f"model.{key} is not set")
    try:
        return build(path, *arguments)
    except UserError as error:
        message = str(error)
        raise type(error)(message if message.startswith("model.") else f"model.{key}: {message}") from error


def _encoder_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """As `EncoderStack.from_config` chooses it."""
    automatic = torch.float16 if device.type == "cuda" else torch.float32
    return PRECISIONS.get(config.dtype, automatic)


def _build_encoder(path: str, config: ModelConfig, dtype: torch.dtype) -> AudioEncoder:
    if Path(path).expanduser().is_file():
        return _encoder_of_file(path, config, dtype)
    facts = find_architecture(path)
    fields = {key: value for key, value in facts.config.items() if key != "model_type"}
    window = config.window if config.legacy == "off" else "full"
    with META:
        if facts.kind == "whisper":
            described = WhisperConfig(**fields)
            described.encoder_layers = kept_layers("Whisper", config.whisper_layers, described.encoder_layers)
            encoder = WhisperEncoder(described, window=window).to(dtype).eval()
            if config.encoder_quantization == "int8":
                round_linears(encoder)
            return encoder
        if facts.kind == "beats":
            return _beats(BEATsConfig.from_released(fields), config)
        if facts.kind == "ced":
            names = {field.name for field in dataclasses.fields(CEDConfig)}
            known = {key: value for key, value in fields.items() if key in names}
            return _ced(CEDConfig(**(known | _ced_rules(config))), dtype)
        if facts.kind == "audio":
            from models.encoders.huggingface import HFEncoder

            described = AutoConfig.for_model(facts.config["model_type"], **fields)
            return HFEncoder.from_config(described, _extractor(described), window=window).to(dtype).eval()
    raise UserError(f"{path!r} is a language model, expected an audio encoder")


def _encoder_of_file(path: str, config: ModelConfig, dtype: torch.dtype) -> AudioEncoder:
    """A `.pt` file of BEATs or CED: the sizes are read, the weights left on the disk."""
    try:
        file = read_tensor_file(Path(path).expanduser(), device=META, mmap=True)
    except TensorFileError as error:
        raise UserError(f"cannot read {path!r} as a tensor file: it {error}") from error
    if is_released(file):
        with META:
            return _beats(BEATsConfig.from_released(file["cfg"]), config)
    del file
    encoder = CED.from_checkpoint(path, dtype=dtype, **_ced_rules(config))  # at most 86 million weights
    return encoder.to(META)


def _beats(described: BEATsConfig, config: ModelConfig) -> BEATs:
    encoder = BEATs(described, fbank_dtype=_fbank_dtype(config), layers=config.beats_layers).eval()
    if config.encoder_quantization == "int8":
        encoder.round_to_int8()
    return encoder


def _ced(config: CEDConfig, dtype: torch.dtype) -> CED:
    encoder = CED(config).to(dtype)
    encoder.init_bn.float()
    return encoder.eval()


def _fbank_dtype(config: ModelConfig) -> torch.dtype:
    return torch.float32 if config.legacy == "off" else torch.float64


def _ced_rules(config: ModelConfig) -> dict[str, Any]:
    return {} if config.legacy == "off" else LEGACY_CED


def _extractor(config: PreTrainedConfig) -> Any:
    """A feature extractor of the configuration's own width, where the library's default has another."""
    if not config.model_type.startswith("parakeet"):
        return None
    encoder = getattr(config, "encoder_config", config)
    return transformers.ParakeetFeatureExtractor(feature_size=encoder.num_mel_bins)


def _build_llm(path: str, config: ModelConfig, device: torch.device) -> LanguageModel:
    facts = find_architecture(path)
    if facts.kind != "llm":
        raise UserError(f"{path!r} is an audio encoder ({facts.kind}), expected a language model")
    back_end = _back_end(config, facts)
    fields = {key: value for key, value in facts.config.items() if key not in ("model_type", "quantization_config")}
    described = AutoConfig.for_model(facts.config["model_type"], **fields)
    dtype = _llm_dtype(config, device, described.get_text_config().model_type)
    with META:
        network = AutoModelForCausalLM.from_config(described, dtype=dtype)
        if back_end != "none":
            settings = facts.config.get("quantization_config") or {}
            pack_linears(
                network,
                back_end,
                dtype,
                skip=network.get_output_embeddings(),
                bits=settings.get("bits", 4),
                group_size=settings.get("group_size", GROUP) if back_end == "gptq" else config.torchao_group_size,
                unpacks=back_end != "gptq" or backends.gptq_kernel(config, device) == "dequantize",
            )
        llm = LanguageModel(network, backend=backends.BACKENDS.get(back_end, backends.BACKENDS["none"]))
        if config.lora:
            llm.add_lora(
                rank=config.lora_rank,
                alpha=config.lora_alpha,
                dropout=config.lora_dropout,
                target_modules=config.lora_target_modules,
            )
    llm.kernel = f"{back_end}, planned, compute {str(dtype).removeprefix('torch.')}, {device.type}"
    return llm


def _back_end(config: ModelConfig, facts: Architecture) -> str:
    if facts.quantized is not None and config.quantization not in ("none", facts.quantized):
        raise UserError(
            f"model.quantization is {config.quantization!r}, but {config.llama_path} holds weights already quantised "
            f"as {facts.quantized!r}; remove the option, or give the unquantised model."
        )
    return facts.quantized or config.quantization


def _llm_dtype(config: ModelConfig, device: torch.device, model_type: str) -> torch.dtype:
    """As `LanguageModel.from_config` chooses it; where the CUDA device is not there to be asked, it has bfloat16."""
    if config.dtype == "auto" and device.type == "cuda" and not torch.cuda.is_available():
        return torch.bfloat16 if model_type.startswith("gemma") else torch.float16
    return compute_dtype(config.dtype, device, model_type)

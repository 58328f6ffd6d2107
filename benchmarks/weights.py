"""A system's files at full shape with random weights: no download, no training, and the times and bytes of real ones.

Each part is written in the form in which the real one is published (a Whisper folder with its decoder, a BEATs file, a
language model's folder with a tokenizer, an adapter), from the facts of configs/architectures, and is read by the same
code. Types are those of the published files: float16 for Whisper, bfloat16 for language models, float32 for BEATs, CED
and adapters.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from benchmarks.gptq_weights import write_in_4_bits
from configs.architectures import Architecture, find_architecture
from configs.sections import ModelConfig
from models.build import build_model
from models.checkpoint.adapter_folder import adapter_state_dict, write_adapter
from models.encoders.beats import BEATs
from models.encoders.beats_network import BEATsConfig
from models.encoders.ced import CED, CEDConfig
from models.encoders.table import ENCODERS
from support.command_line import UserError

TILE = 1 << 22  # random numbers drawn; tensors repeat them, each from its own offset
SHARD_BYTES = 1 << 30
EMBEDDING_STD = 0.02
STORED = {"whisper": torch.float16, "llm": torch.bfloat16, "beats": torch.float32, "ced": torch.float32}
"""Kind -> type of the published files."""
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")
UNK_ID, BOS_ID, EOS_ID, PAD_ID = range(len(SPECIAL_TOKENS))
SMALL: dict[str, dict[str, int]] = {
    "whisper": {
        "d_model": 64,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 128,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 64,
        "vocab_size": 256,
    },
    "beats": {
        "embed_dim": 32,
        "encoder_layers": 2,
        "encoder_embed_dim": 64,
        "encoder_ffn_embed_dim": 128,
        "encoder_attention_heads": 2,
    },
    "ced": {"embed_dim": 64, "depth": 2, "num_heads": 1},
    "llm": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 512,
    },
}
"""Kind -> fields that `small` replaces."""
SMALL_QFORMER = {"qformer_hidden_size": 32, "qformer_num_heads": 2, "qformer_layers": 1}


class Noise:
    """Normal numbers as fast as memory is copied: one tile is drawn, and each tensor repeats it from another offset."""

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        drawn = torch.randn(TILE, generator=torch.Generator(self.device).manual_seed(seed), device=self.device)
        self._tiles = {torch.float32: drawn}
        self._start = 0

    def tensor(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A weight called `name`, on the CPU: scaled by its fan-in; ones for norms, zeros for biases."""
        last = name.rpartition(".")[2]
        if last in ("weight_g", "grep_a", "running_var") or (last == "weight" and len(shape) == 1):
            return torch.ones(shape, dtype=dtype)
        if len(shape) <= 1:
            return torch.zeros(shape, dtype=dtype)
        tile = self._tiles.setdefault(dtype, self._tiles[torch.float32].to(dtype))
        count = math.prod(shape)
        self._start = (self._start + 7919) % TILE
        flat = torch.empty(count, dtype=dtype, device=self.device)
        done = 0
        while done < count:
            piece = tile[self._start if done == 0 else 0 :][: count - done]
            flat[done : done + len(piece)] = piece
            done += len(piece)
        # Embeddings as small as trained ones, so that the layers, not the last token, decide the next.
        scale = EMBEDDING_STD if "embed_tokens" in name else math.prod(shape[1:]) ** -0.5
        return flat.mul_(scale).view(*shape).cpu()


def write_weights(
    config: ModelConfig,
    folder: str | Path,
    *,
    small: bool = False,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> ModelConfig:
    """Write all that `config` names under `folder`, drawn on `device`; the configuration that reads it.

    A part that exists there is kept: systems that share an encoder share its file. The adapter is always written. With
    `quantization: gptq` the language model is in 4 bits, made from the unquantised one next to it.

    Raises:
        UserError: nothing is known of a part's architecture, or its kind is not written here.
    """
    gptq = config.quantization == "gptq"
    if gptq:
        config = dataclasses.replace(config, quantization="none")
    folder = Path(folder).resolve()
    noise = Noise(seed, device)
    local: dict[str, Any] = dict(SMALL_QFORMER) if small else {}
    for key in ("llama_path", *(entry.path_key for entry in ENCODERS.values())):
        path = getattr(config, key)
        if not path:
            continue
        facts = find_architecture(path)
        if facts.quantized is not None:
            raise UserError(f"model.{key}: {path!r} is stored as {facts.quantized}; give the unquantised model's name")
        if facts.kind not in STORED:
            raise UserError(f"model.{key}: random weights are written for {', '.join(STORED)}, not for {facts.kind!r}")
        place = folder / _name_of(facts, small, dtype)
        if not place.exists():
            draft = place.with_name(place.name + ".part")
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            _write_part(facts, draft, noise, dtype or STORED[facts.kind], small, config)
            draft.rename(place)
        local[key] = str(place / "model.pt") if facts.kind == "beats" else str(place)
    written = dataclasses.replace(config, **local, ckpt="", speech_llama_proj_model="")
    adapter = folder / "adapter"
    tensors = adapter_state_dict(build_model(written, "cpu", weights=False))
    state = {name: noise.tensor(name, tensor.shape, torch.float32) for name, tensor in tensors.items()}
    shutil.rmtree(adapter, ignore_errors=True)
    write_adapter({name: 0.1 * tensor if "lora_" in name else tensor for name, tensor in state.items()}, adapter)
    written = dataclasses.replace(written, ckpt=str(adapter))
    return write_in_4_bits(written, folder, small=small) if gptq else written


def _name_of(facts: Architecture, small: bool, dtype: torch.dtype | None) -> str:
    name = Path(facts.name).name.removesuffix(".pt")  # not its stem: versions have points
    parts = [name, "small" if small else "", str(dtype).removeprefix("torch.") if dtype else ""]
    return "_".join(part for part in parts if part)


def _write_part(
    facts: Architecture, folder: Path, noise: Noise, dtype: torch.dtype, small: bool, config: ModelConfig
) -> None:
    fields = facts.config | (SMALL[facts.kind] if small else {})
    if facts.kind == "beats":
        described = BEATsConfig.from_released(fields)
        weights = dict(_drawn(_on_meta(BEATs, described), noise, dtype))
        torch.save({"cfg": dataclasses.asdict(described), "model": weights}, folder / "model.pt")
        return
    if facts.kind == "ced":
        names = {field.name for field in dataclasses.fields(CEDConfig)}
        network = _on_meta(CED, CEDConfig(**{name: value for name, value in fields.items() if name in names}))
        save_file(dict(_drawn(network, noise, dtype)), folder / "model.safetensors")
    elif facts.kind == "whisper":
        if small:  # the default ids are outside a small vocabulary
            fields |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
        network = _on_meta(AutoModel.from_config, AutoConfig.for_model(**fields))
        _write_sharded(_drawn(network, noise, dtype), folder)
    else:
        fields |= {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
        if "layer_types" in fields:
            fields["layer_types"] = fields["layer_types"][-fields["num_hidden_layers"] :]
        network = _on_meta(AutoModelForCausalLM.from_config, AutoConfig.for_model(**fields))
        _write_sharded(_drawn(network, noise, dtype), folder)
        write_tokenizer(folder, fields["vocab_size"], (config.end_sym, config.bos_token))
    (folder / "config.json").write_text(json.dumps(fields, indent=1), encoding="utf-8")


def _on_meta(build: Any, *arguments: Any) -> nn.Module:
    with torch.device("meta"):
        return build(*arguments)


def _drawn(network: nn.Module, noise: Noise, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Name -> drawn tensor, for all that a network on the meta device stores; of tied parameters the first alone."""
    repeated = isinstance(network, BEATs)  # its file repeats the one position table under every layer's name
    made: dict[int, Tensor | None] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) in made:
            if repeated:
                yield name, made[id(tensor)]
            continue
        drawn = noise.tensor(name, tensor.shape, dtype if tensor.is_floating_point() else tensor.dtype)
        made[id(tensor)] = drawn if repeated else None  # else no more than a shard is in memory
        yield name, drawn


def _write_sharded(tensors: Iterator[tuple[str, Tensor]], folder: Path) -> None:
    """As the hub stores large models: files of about a gibibyte and their index; no more than one of them in memory."""
    shard: dict[str, Tensor] = {}
    places: dict[str, str] = {}
    total = size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > SHARD_BYTES:
            places |= _write_shard(shard, folder, len(set(places.values())))
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
    places |= _write_shard(shard, folder, len(set(places.values())))
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _write_shard(shard: dict[str, Tensor], folder: Path, number: int) -> dict[str, str]:
    file = f"model-{number + 1:05d}.safetensors"
    save_file(shard, folder / file, metadata={"format": "pt"})
    return dict.fromkeys(shard, file)


def write_tokenizer(folder: Path, vocabulary: int, special: Sequence[str | None]) -> None:
    """A tokenizer with a word for every id of the vocabulary. It cuts text at spaces and punctuation; a prompt has
    about as many tokens as with a real one."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel

    named = list(dict.fromkeys([*SPECIAL_TOKENS, *(token for token in special if token)]))
    words = named + [f"w{number}" for number in range(len(named), vocabulary)]
    model = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token=SPECIAL_TOKENS[UNK_ID]))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model,
        unk_token=SPECIAL_TOKENS[UNK_ID],
        bos_token=SPECIAL_TOKENS[BOS_ID],
        eos_token=SPECIAL_TOKENS[EOS_ID],
        pad_token=SPECIAL_TOKENS[PAD_ID],
        additional_special_tokens=named[len(SPECIAL_TOKENS) :],
    )
    tokenizer.save_pretrained(folder)

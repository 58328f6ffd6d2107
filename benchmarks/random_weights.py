"""A system's model at full shape with random weights: no download, nothing trained, every time and byte as with them.

    python -m benchmarks.random_weights --cfg-path configs/nlp07/evaluate.yaml --out FOLDER [--dtype float16] [--small]

Each part is written in the form in which the real one is published (a Whisper folder with its decoder, a BEATs file, a
language model's folder with a tokenizer, an adapter), from the facts of configs/architectures. Whatever reads the real
files reads these, through the very same lines: ours, and the reference's. Types are those of the published files:
float16 for Whisper, bfloat16 for language models, float32 for BEATs, CED and adapters; `--dtype` sets one for all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks import bare_machine  # noqa: F401 - before the program, whose readers of recordings may be absent
from configs.architectures import Architecture, find_architecture
from configs.schema import load_config
from configs.sections import ModelConfig
from models.build import build_model
from models.checkpoint.adapter_folder import adapter_state_dict, write_adapter
from models.device import PRECISIONS
from models.encoders.beats import BEATs
from models.encoders.beats_network import BEATsConfig
from models.encoders.ced import CED, CEDConfig
from models.encoders.table import ENCODERS
from models.salmonn import SALMONN
from support.command_line import UserError

TILE = 1 << 22  # random numbers that are drawn; tensors repeat them, each from a place of its own
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
"""Kind -> what `small` puts in the place of the facts."""
SMALL_QFORMER = {"qformer_hidden_size": 32, "qformer_num_heads": 2, "qformer_layers": 1}


class Noise:
    """Normal numbers as fast as memory is copied: a drawn tile, repeated, every tensor from another place in it."""

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
        # Embeddings as small as trained ones: the layers, not the last token, then decide on the next.
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

    A part that lies there already is kept: systems that share an encoder share its file. An adapter is written anew.

    Raises:
        ValueError: nothing is known of a part's architecture, or its kind is not written here.
    """
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
    return dataclasses.replace(written, ckpt=str(adapter))


def build_random(
    config: ModelConfig,
    device: torch.device | str = "cpu",
    *,
    small: bool = False,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> SALMONN:
    """The model of `config` with random weights, loaded as the real one is; `dtype` is that of its frozen weights."""
    if dtype is not None:
        names = {value: name for name, value in PRECISIONS.items()}
        config = dataclasses.replace(config, dtype=names[dtype])
    with tempfile.TemporaryDirectory(prefix="random_weights_") as folder:
        return build_model(write_weights(config, folder, small=small, seed=seed, device=device), device)


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
        network = _whisper(fields, small)
        _write_sharded(_drawn(network, noise, dtype), folder)
    else:
        fields |= {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
        if "layer_types" in fields:
            fields["layer_types"] = fields["layer_types"][-fields["num_hidden_layers"] :]
        network = _language_model(fields)
        _write_sharded(_drawn(network, noise, dtype), folder)
        write_tokenizer(folder, fields["vocab_size"], (config.end_sym, config.bos_token))
    (folder / "config.json").write_text(json.dumps(fields, indent=1), encoding="utf-8")


def _on_meta(build: Any, *arguments: Any) -> nn.Module:
    with torch.device("meta"):
        return build(*arguments)


def _whisper(fields: dict[str, Any], small: bool) -> nn.Module:
    from transformers import WhisperConfig, WhisperModel

    if small:  # the default ids lie beyond a small vocabulary
        fields |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    return _on_meta(WhisperModel, WhisperConfig(**{key: value for key, value in fields.items() if key != "model_type"}))


def _language_model(fields: dict[str, Any]) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    described = AutoConfig.for_model(**fields)
    return _on_meta(AutoModelForCausalLM.from_config, described)


def _drawn(network: nn.Module, noise: Noise, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Name -> drawn tensor, for every parameter (tied ones once) and stored buffer of a network on the meta device."""
    shared = isinstance(network, BEATs)  # its file has the one table of positions under every layer's name
    made: dict[int, Tensor] = {}
    parameters = dict(network.named_parameters(remove_duplicate=not shared))
    for name, parameter in parameters.items():
        if not shared:
            yield name, noise.tensor(name, parameter.shape, dtype)
            continue
        if id(parameter) not in made:
            made[id(parameter)] = noise.tensor(name, parameter.shape, dtype)
        yield name, made[id(parameter)]
    stored = network.state_dict().keys() - dict(network.named_parameters(remove_duplicate=False)).keys()
    for name, buffer in network.named_buffers():
        if name in stored:
            yield name, noise.tensor(name, buffer.shape, dtype if buffer.is_floating_point() else buffer.dtype)


def _write_sharded(tensors: Iterator[tuple[str, Tensor]], folder: Path) -> None:
    """As the hub's large models lie: files of about a gibibyte and their index; never more than that in memory."""
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
    from transformers import PreTrainedTokenizerFast

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


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write a system's files with random weights.")
    parser.add_argument("--cfg-path", required=True, help="YAML of the system")
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--dtype", choices=tuple(PRECISIONS), help="of all files (default: as published)")
    parser.add_argument("--small", action="store_true", help="two layers of width 64, for trying out")
    parser.add_argument("--device", default="cpu", help="where numbers are drawn")
    arguments = parser.parse_args(argv)
    dtype = PRECISIONS[arguments.dtype] if arguments.dtype else None
    config = load_config(arguments.cfg_path).model
    written = write_weights(config, arguments.out, small=arguments.small, dtype=dtype, device=arguments.device)
    for key in ("llama_path", *(entry.path_key for entry in ENCODERS.values()), "ckpt"):
        if getattr(written, key):
            print(f"model.{key}: {getattr(written, key)}")


if __name__ == "__main__":
    main()

"""A complete tiny project on disk, in the real formats, made in a second or two.

`write_project(folder)` writes a Whisper folder, a BEATs `.pt`, an LLM folder with a trained tokenizer, a small corpus
with annotations and prompts, and the YAML that joins them. Weights are random but seeded: the same call gives the
same bytes. Tests that need a part alone call `write_whisper`, `write_beats`, `write_llm` or `write_corpus`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import yaml

SAMPLE_RATE = 16_000
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "zero", "red", "green", "blue", "fish")
SOUNDS = {"noise": "a steady hiss", "chirp": "a rising whistle", "beep": "short beeps", "hum": "a low hum"}
HF_ENCODERS = (
    "wavlm base",
    "wavlm large",
    "hubert base",
    "hubert large",
    "wav2vec2",
    "wav2vec2-bert",
    "ast",
    "parakeet",
)
LLM_FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text")
TRAIN_PROMPTS = {
    "asr": [
        "<Speech><SpeechHere></Speech> Write down what is said.",
        "<Speech><SpeechHere></Speech> Transcribe the speech, word for word.",
    ],
    "audiocaption": [
        "<Speech><SpeechHere></Speech> Describe the sound.",
        "<Speech><SpeechHere></Speech> What can be heard?",
    ],
    "QA": ["<Speech><SpeechHere></Speech> Answer the question: {}"],
}
TEST_PROMPTS = {task: prompts[0] for task, prompts in TRAIN_PROMPTS.items()}


@dataclass(frozen=True, kw_only=True)
class TinyProject:
    """The paths of a tiny project."""

    root: Path
    config: Path
    """The YAML; every path in it is absolute."""
    whisper: Path
    beats: Path
    llm: Path
    train: Path
    """Annotation files; clip paths in them are relative to their folder."""
    valid: Path
    test_asr: Path
    test_aac: Path
    train_prompts: Path
    test_prompts: Path
    output: Path


def write_whisper(
    folder: Path, *, seed: int = 0, width: int = 32, layers: int = 2, heads: int = 2, mels: int = 80
) -> Path:
    """Write a Whisper folder: config.json, model.safetensors, preprocessor_config.json."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    config = WhisperConfig(
        d_model=width,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=2 * width,
        decoder_layers=1,
        decoder_attention_heads=heads,
        decoder_ffn_dim=width,
        num_mel_bins=mels,
        max_source_positions=1500,
        max_target_positions=8,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        begin_suppress_tokens=[],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=mels).save_pretrained(folder)
    return folder


def write_ced(path: Path, *, seed: int = 0) -> Path:
    """Write a CED file as released, a bare state dict, whose BatchNorm expects decibels."""
    from models.encoders.ced import CED, CEDConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ced = CED(CEDConfig(embed_dim=64, depth=1, num_heads=1))
    ced.init_bn["1"].running_mean.fill_(-20.0)
    ced.init_bn["1"].running_var.fill_(400.0)
    torch.save(ced.state_dict(), path)
    return path


def hf_encoder_config(name: str) -> tuple:
    """A small configuration and feature extractor of one of `HF_ENCODERS`, with the switches of released models."""
    import transformers as library

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    still = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "feat_proj_dropout": 0.0}
    front = {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    if name.endswith("large"):  # the base models have a GroupNorm over time instead, and norms after their layers
        front |= {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
    family = name.split()[0]
    if family in ("wavlm", "hubert", "wav2vec2"):
        kind = {"wavlm": "WavLMConfig", "hubert": "HubertConfig", "wav2vec2": "Wav2Vec2Config"}[family]
        extractor = library.Wav2Vec2FeatureExtractor(do_normalize=name != "wavlm base")
        return getattr(library, kind)(**sizes, **still, **front), extractor
    if family == "wav2vec2-bert":
        still |= {"conformer_conv_dropout": 0.0}
        config = library.Wav2Vec2BertConfig(**sizes, **still, conv_depthwise_kernel_size=7, output_hidden_size=32)
        return config, library.SeamlessM4TFeatureExtractor(padding_value=1)
    if family == "ast":
        return library.ASTConfig(**sizes), library.ASTFeatureExtractor()
    assert family == "parakeet", name
    still = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    return library.ParakeetEncoderConfig(**sizes, **still, subsampling_conv_channels=8), (
        library.ParakeetFeatureExtractor()
    )


def write_hf_encoder(folder: Path, name: str, *, seed: int = 0) -> Path:
    """Write a folder of one of `HF_ENCODERS`: config.json, model.safetensors, preprocessor_config.json."""
    from transformers import AutoModel

    config, extractor = hf_encoder_config(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(config)
        with torch.no_grad():  # fresh biases are zero and norms the identity, which would hide what reaches padding
            for key, value in (*model.named_parameters(), *model.named_buffers()):
                if value.is_floating_point() and value.dim() <= 3 and "inv_freq" not in key and key[-3:] != ".pe":
                    noise = 0.1 * torch.randn_like(value)
                    value.add_(noise.abs() if "running_var" in key else noise)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


def beats_state(cfg: dict, *, seed: int = 0, classes: int | None = None) -> dict[str, torch.Tensor]:
    """Random weights under the names and in the shapes of a released BEATs file."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}

    def draw(name: str, *shape: int) -> None:
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else shape[0]
        state[name] = torch.randn(shape, generator=generator) / math.sqrt(fan_in)

    def linear(name: str, outputs: int, inputs: int) -> None:
        draw(f"{name}.weight", outputs, inputs)
        state[f"{name}.bias"] = 0.02 * torch.randn(outputs, generator=generator)

    def norm(name: str, size: int) -> None:
        state[f"{name}.weight"] = 1 + 0.05 * torch.randn(size, generator=generator)
        state[f"{name}.bias"] = 0.02 * torch.randn(size, generator=generator)

    width, heads, ffn = cfg["encoder_embed_dim"], cfg["encoder_attention_heads"], cfg["encoder_ffn_embed_dim"]
    patch, embed = cfg["input_patch_size"], cfg["embed_dim"]
    if embed != width:
        linear("post_extract_proj", width, embed)
    draw("patch_embedding.weight", embed, 1, patch, patch)
    norm("layer_norm", embed)
    kernel = cfg["conv_pos"]
    draw("encoder.pos_conv.0.weight_v", width, width // cfg["conv_pos_groups"], kernel)
    state["encoder.pos_conv.0.weight_g"] = state["encoder.pos_conv.0.weight_v"].norm(dim=(0, 1), keepdim=True) * 0.5
    state["encoder.pos_conv.0.bias"] = torch.zeros(width)
    norm("encoder.layer_norm", width)
    bias = torch.randn((cfg["num_buckets"], heads), generator=generator)
    for layer in range(cfg["encoder_layers"]):
        prefix = f"encoder.layers.{layer}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            linear(f"{prefix}.self_attn.{part}", width, width)
        state[f"{prefix}.self_attn.relative_attention_bias.weight"] = bias  # one table, saved under every layer
        state[f"{prefix}.self_attn.grep_a"] = torch.ones(1, heads, 1, 1)
        linear(f"{prefix}.self_attn.grep_linear", 8, width // heads)
        norm(f"{prefix}.self_attn_layer_norm", width)
        linear(f"{prefix}.fc1", ffn, width)
        linear(f"{prefix}.fc2", width, ffn)
        norm(f"{prefix}.final_layer_norm", width)
    if classes is not None:
        linear("predictor", classes, width)
    return state


def write_beats(
    path: Path, *, seed: int = 0, width: int = 32, layers: int = 2, heads: int = 2, classes: int | None = None
) -> Path:
    """Write a BEATs file as released, `{'cfg', 'model'}`; with `classes`, in its fine-tuned form."""
    cfg = {
        "input_patch_size": 16,
        "embed_dim": 16,
        "conv_bias": False,
        "encoder_layers": layers,
        "encoder_embed_dim": width,
        "encoder_ffn_embed_dim": 2 * width,
        "encoder_attention_heads": heads,
        "activation_fn": "gelu",
        "layer_wise_gradient_decay_ratio": 0.6,
        "layer_norm_first": False,
        "deep_norm": True,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "encoder_layerdrop": 0.05,
        "dropout_input": 0.0,
        "conv_pos": 128,
        "conv_pos_groups": 16,
        "relative_position_embedding": True,
        "num_buckets": 320,
        "max_distance": 800,
        "gru_rel_pos": True,
        "finetuned_model": classes is not None,
        "predictor_dropout": 0.0,
        "predictor_class": classes or 527,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"cfg": cfg, "model": beats_state(cfg, seed=seed, classes=classes)}, path)
    return path


def write_tokenizer(folder: Path, *, vocab_size: int = 400, bos: bool = True) -> int:
    """Train a byte-level BPE on the corpus' words and save it as `PreTrainedTokenizerFast`; returns its length."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", "<pad>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    prompts = [prompt for group in TRAIN_PROMPTS.values() for prompt in group]
    lines = [*(f" {word}" for word in WORDS), *WORDS, *SOUNDS.values(), *prompts, "USER: ASSISTANT: </Speech> <Speech>"]
    tokenizer.train_from_iterator(lines * 2, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>" if bos else None,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    fast.save_pretrained(folder)
    return len(fast)


def write_llm(
    folder: Path,
    *,
    family: str = "llama",
    seed: int = 0,
    width: int = 32,
    layers: int = 2,
    heads: int = 4,
    bos: bool = True,
) -> Path:
    """Write an LLM folder of the family with random weights and a tokenizer trained on the corpus' words."""
    from transformers import AutoConfig, AutoModelForCausalLM

    assert family in LLM_FAMILIES, family
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = write_tokenizer(folder, bos=bos)
    options: dict = {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": width // heads,
        "max_position_embeddings": 1024,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "tie_word_embeddings": family.startswith("gemma"),
    }
    if family.startswith("gemma"):
        options |= {"sliding_window": 16, "query_pre_attn_scalar": width // heads}
    if family == "gemma3_text":
        options["layer_types"] = ["sliding_attention"] * (layers - 1) + ["full_attention"]
    config = AutoConfig.for_model(family, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():  # wider than the usual 0.02, so that greedy choices have margins
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.normal_(0.0, 0.15)
    model.save_pretrained(folder)
    return folder


def spoken(text: str, rng: np.random.Generator, rate: int = SAMPLE_RATE) -> np.ndarray:
    """A stand-in for speech: every word is its own pair of tones, 0.2 s long; float32 [T] in [-1, 1]."""
    pieces = []
    time_s = np.arange(int(0.2 * rate)) / rate
    envelope = np.sin(np.pi * time_s / time_s[-1])
    for word in text.split():
        tone = WORDS.index(word)
        low, high = 220.0 * 2 ** (tone / 7), 900.0 * 2 ** (tone / 9)
        pieces.append(envelope * (0.3 * np.sin(2 * np.pi * low * time_s) + 0.2 * np.sin(2 * np.pi * high * time_s)))
    wave = np.concatenate(pieces)
    return (wave + 0.003 * rng.standard_normal(wave.size)).astype(np.float32)


def sound(kind: str, seconds: float, rng: np.random.Generator, rate: int = SAMPLE_RATE) -> np.ndarray:
    """One of `SOUNDS`; float32 [T] in [-1, 1]."""
    time_s = np.arange(int(seconds * rate)) / rate
    if kind == "noise":
        wave = 0.2 * rng.standard_normal(time_s.size).clip(-3, 3)
    elif kind == "chirp":
        wave = 0.4 * np.sin(2 * np.pi * (300 * time_s + 600 * time_s**2))
    elif kind == "beep":
        wave = 0.4 * np.sin(2 * np.pi * 1000 * time_s) * (np.floor(time_s * 8) % 2)
    else:
        wave = 0.4 * np.sin(2 * np.pi * 70 * time_s)
    return wave.astype(np.float32)


def _write_clip(path: Path, wave: np.ndarray, rate: int, stereo: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.stack([wave, wave], axis=1) if stereo else wave, rate)


def write_corpus(folder: Path, *, seed: int = 0, speech: int = 8, sounds: int = 4, split: str = "train") -> Path:
    """Write clips (0.2–1.5 s; wav, flac; 8, 16, 44.1 kHz; mono, stereo) and `<split>.json`; returns the latter."""
    rng = np.random.default_rng([seed, sum(map(ord, split))])
    entries = []
    for index in range(speech):
        text = " ".join(rng.choice(WORDS, size=int(rng.integers(1, 5))))
        rate = (SAMPLE_RATE, SAMPLE_RATE, 8_000, 44_100)[index % 4]
        path = f"{split}/speech_{index}.{'flac' if index % 3 == 1 else 'wav'}"
        _write_clip(folder / path, spoken(text, rng, rate), rate, stereo=index % 4 == 3)
        entries.append({"path": path, "text": text, "task": "asr", "testset_id": f"{split}_asr_{index}"})
    for index in range(sounds):
        kind = list(SOUNDS)[index % len(SOUNDS)]
        path = f"{split}/sound_{index}.{'wav' if index % 2 else 'flac'}"
        _write_clip(folder / path, sound(kind, float(rng.uniform(0.4, 1.5)), rng), SAMPLE_RATE, stereo=index % 4 == 2)
        entry = {"path": path, "text": SOUNDS[kind], "task": "audiocaption", "testset_id": f"{split}_aac_{index}"}
        entries.append(entry | {"texts": [SOUNDS[kind], f"{SOUNDS[kind]} can be heard"], "scene": kind})
    return write_annotations(folder / f"{split}.json", entries)


def write_annotations(path: Path, entries: Sequence[dict]) -> Path:
    """Write entries as `{"annotation": [...]}`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"annotation": list(entries)}, indent=1), encoding="utf-8")
    return path


def merge(into: dict, extra: dict) -> dict:
    """Merge nested sections; values of `extra` win."""
    for key, value in extra.items():
        into[key] = merge(dict(into.get(key) or {}), value) if isinstance(value, dict) else value
    return into


def write_project(folder: Path, *, family: str = "llama", seed: int = 0, **sections: dict) -> TinyProject:
    """Write a complete tiny project under `folder`; `model={...}`, `run={...}` … override single keys of its YAML.

    `model={"beats_path": ""}` makes a model of one encoder, `model={"lora": False}` one without LoRA, and so on.
    """
    folder = Path(folder).resolve()
    corpus = folder / "corpus"
    project = TinyProject(
        root=folder,
        config=folder / "tiny.yaml",
        whisper=write_whisper(folder / "whisper", seed=seed),
        beats=write_beats(folder / "beats.pt", seed=seed),
        llm=write_llm(folder / "llm", family=family, seed=seed, bos=not family.startswith("qwen")),
        train=write_corpus(corpus, seed=seed, split="train"),
        valid=write_corpus(corpus, seed=seed, speech=3, sounds=2, split="valid"),
        test_asr=write_corpus(corpus, seed=seed, speech=5, sounds=0, split="test_asr"),
        test_aac=write_corpus(corpus, seed=seed, speech=0, sounds=4, split="test_aac"),
        train_prompts=folder / "train_prompts.json",
        test_prompts=folder / "test_prompts.json",
        output=folder / "outputs",
    )
    project.train_prompts.write_text(json.dumps(TRAIN_PROMPTS, indent=1), encoding="utf-8")
    project.test_prompts.write_text(json.dumps(TEST_PROMPTS, indent=1), encoding="utf-8")
    config = {
        "model": {
            "llama_path": str(project.llm),
            "whisper_path": str(project.whisper),
            "beats_path": str(project.beats),
            "ckpt": "",
            "freeze_whisper": True,
            "freeze_beats": True,
            "use_speech_Qformer": True,
            "window_level_Qformer": True,
            "num_speech_query_token": 1,
            "second_per_window": 0.333333,
            "second_stride": 0.333333,
            "qformer_hidden_size": 32,
            "qformer_num_heads": 2,
            "qformer_layers": 1,
            "lora": True,
            "lora_rank": 4,
            "lora_alpha": 8,
            "lora_dropout": 0.0,
            "multi_prompt": True,
            "prompt_template": "USER: {}\nASSISTANT:",
            "prompt_path": str(project.train_prompts),
            "test_prompt_path": str(project.test_prompts),
            "max_txt_len": 40,
            "end_sym": "</s>",
        },
        "generate": {"max_new_tokens": 8, "num_beams": 1, "do_sample": False},
        "datasets": {
            "prefix": str(corpus),
            "train_ann_path": str(project.train),
            "valid_ann_path": str(project.valid),
            "test_ann_path_asr": str(project.test_asr),
            "test_ann_path_aac": str(project.test_aac),
        },
        "run": {
            "seed": 1,
            "output_dir": str(project.output),
            "epoch_based": False,
            "iters_per_epoch": 3,
            "accum_grad_iters": 1,
            "batch_size_train": 4,
            "batch_size_eval": 4,
            "num_workers": 0,
            "device": "cpu",
            "amp": False,
            "log_freq": 1,
            "optims": {
                "max_epoch": 2,
                "warmup_steps": 2,
                "warmup_start_lr": 1.0e-4,
                "init_lr": 1.0e-3,
                "min_lr": 1.0e-5,
                "weight_decay": 0.05,
                "beta2": 0.999,
            },
        },
    }
    project.config.write_text(yaml.safe_dump(merge(config, sections), sort_keys=False), encoding="utf-8")
    return project

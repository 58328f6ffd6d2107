"""The sections of a YAML and what each key means: one frozen dataclass per section, a docstring under each field.

Names and defaults are the SALMONN family's. `python -m configs.reference` makes `docs/configuration.md` from this file.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any, Literal

from configs.dated import placeholders, unknown_placeholder
from configs.parsing import option
from support.command_line import UserError

Paths = str | tuple[str, ...] | None
ENCODER_PATHS = (
    "whisper_path",
    "beats_path",
    "ced_path",
    "wavlm_path",
    "hubert_path",
    "wav2vec2_path",
    "ast_path",
    "parakeet_path",
)
"""Keys of `model` that name an audio encoder; the encoders that are set are used together."""


def _rule(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)


def _at_home(key: str, path: str) -> str:
    expanded = os.path.expanduser(path)
    _rule(not expanded.startswith("~"), f"{key}: {path!r}: no such home folder; write ./~ for a folder of that name")
    return expanded


class _Section:
    """`~` in every path is the home folder, wherever the path came from."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value and "path" in field.metadata:
                home = (
                    _at_home(field.name, value)
                    if isinstance(value, str)
                    else tuple(_at_home(field.name, path) for path in value)
                )
                object.__setattr__(self, field.name, home)


@dataclass(frozen=True, kw_only=True)
class WandbConfig(_Section):
    """Weights & Biases. Off unless asked for; needs no login when off or offline."""

    mode: Literal["disabled", "offline", "online"] = "disabled"
    """`online` uploads during the run, `offline` writes a folder to sync later. The family's `log: true` becomes
    `online` if a key is set (`wandb.key`, `WANDB_API_KEY`), else `offline`."""
    project: str = "smolt"
    """Project of the runs."""
    entity: str | None = None
    """Account or team; null uses the login's default."""
    name: str | None = None
    """Name of the run; null takes the name of the output folder. The family's `run.exp_name` and `run.wandb_name`."""
    dir: str | None = option(None, path="output")
    """Folder for Weights & Biases' own files; null takes `run.output_dir`."""
    key: str | None = option(None, secret=True)
    """Login key; better given as `WANDB_API_KEY`. Never written, logged or exported."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(_Section):
    """The model: encoders, connector, language model, text."""

    llama_path: str | None = option(None, path="model")
    """Language model: a folder or a hub name, `org/name` or `org/name@revision`. Also written `llm_path`, `gemma_path`,
    `qwen_path`; any causal language model of transformers."""
    whisper_path: str | None = option(None, path="model")
    """Whisper encoder: a folder or a hub name. Null for a model without one."""
    beats_path: str | None = option(None, path="file")
    """BEATs: a released `.pt` file. Null for a model without one."""
    ced_path: str | None = option(None, path="model")
    """CED: a `.pt` file, a folder or a hub name. Null for a model without one."""
    wavlm_path: str | None = option(None, path="model")
    """WavLM: a folder or a hub name. Null for a model without one."""
    hubert_path: str | None = option(None, path="model")
    """HuBERT: a folder or a hub name. Null for a model without one."""
    wav2vec2_path: str | None = option(None, path="model")
    """Wav2Vec2 or Wav2Vec2-BERT: a folder or a hub name. Null for a model without one."""
    ast_path: str | None = option(None, path="model")
    """Audio Spectrogram Transformer: a folder or a hub name. Null for a model without one."""
    parakeet_path: str | None = option(None, path="model")
    """FastConformer encoder, as transformers has it for Parakeet: a folder or a hub name, with or without a decoder.
    Also written `canary_path`. Null for a model without one."""
    token: str | None = option(None, secret=True)
    """Access token for gated hub repositories; null reads `HF_TOKEN`. Never written, logged or
    exported."""

    ckpt: str | None = option(None, path="any")
    """Adapter to start from: a folder that training wrote, or a `.pth` of the SALMONN family (see `legacy`). Null
    starts with a fresh adapter."""
    legacy: Literal["off", "weights", "exact"] | None = None
    """Whose rules the model follows: `weights` gives every row the public code's answer for that clip alone, `exact`
    (or true) adds its batch-dependent bugs, `off` are this program's own. Null: `weights` where `ckpt` ends in `.pth`,
    else `off`."""

    freeze_whisper: bool = True
    """Freeze Whisper's weights."""
    freeze_beats: bool = True
    """Freeze BEATs' weights."""
    freeze_ced: bool = True
    """Freeze CED's weights."""
    freeze_wavlm: bool = True
    """Freeze WavLM's weights."""
    freeze_hubert: bool = True
    """Freeze HuBERT's weights."""
    freeze_wav2vec2: bool = True
    """Freeze Wav2Vec2's weights."""
    freeze_ast: bool = True
    """Freeze the Audio Spectrogram Transformer's weights."""
    freeze_parakeet: bool = True
    """Freeze Parakeet's weights. Also written `freeze_canary`."""
    window: Literal["clip", "full"] = "clip"
    """How much audio Whisper and AST encode: `clip` the clip's real length, `full` always 30 s (AST: 10 s), padded with
    silence."""
    fusion: Literal["concat", "project"] = "concat"
    """How several encoders are joined: `concat` concatenates their channels, `project` projects each to the Q-Former's
    width and adds them."""

    use_speech_Qformer: bool = True
    """Connect encoders and language model by a Q-Former; there is no other connector."""
    freeze_speech_QFormer: bool = False
    """Freeze the Q-Former and its queries, and the context layers."""
    window_level_Qformer: bool = True
    """Run the Q-Former on windows of frames; false runs it once over the whole clip."""
    num_speech_query_token: int = option(1, minimum=1)
    """Queries, that is audio tokens, per window."""
    second_per_window: float = option(0.333333, above=0)
    """Length of a window, in seconds."""
    second_stride: float = option(0.333333, above=0)
    """Distance from one window's start to the next one's, in seconds."""
    window_jitter: bool = False
    """In training, start the windows at random up to a stride before the clip, so that window boundaries differ every
    epoch."""
    mask_frames: float = option(0.0, minimum=0, below=1)
    """In training, share of the encoders' frames that are hidden from the Q-Former, in spans of 0.2 s: it learns to
    read across them (SpecAugment, on encoder outputs, which may come from a cache)."""
    qformer_hidden_size: int = option(768, minimum=1)
    """Width of the Q-Former."""
    qformer_num_heads: int = option(12, minimum=1)
    """Attention heads of the Q-Former; they divide its width."""
    qformer_layers: int = option(2, minimum=1)
    """Layers of the Q-Former."""
    qformer_intermediate_size: int | None = option(None, minimum=1)
    """Width inside the Q-Former's feed-forward layers; null is four times its width."""
    qformer_dropout: float = option(0.1, minimum=0, below=1)
    """Dropout in the Q-Former, in training; the default is BERT base's, as in the family."""
    context_layers: int = option(0, minimum=0)
    """Layers over all audio tokens of a clip (attention and convolution) between the Q-Former and the projection, of
    the Q-Former's width; 0 has none, as in the family. Short windows need them: a token alone sees its window only."""
    speech_llama_proj_model: str = option("", path="any")
    """File with initial weights of the projection into the language model; empty initialises it at random."""
    freeze_speech_llama_proj: bool = False
    """Freeze the projection into the language model."""

    ctc_weight: float = option(0.0, minimum=0)
    """Weight of the alignment loss (CTC of the audio tokens against the language model's own embeddings) next to the
    cross-entropy of transcripts; 0 leaves it out. `run.stage: align` trains with this loss alone, whatever the
    weight."""
    alignment_distance: float = option(0.2, minimum=0)
    """In the alignment loss, weight of the squared distance between audio tokens and the embeddings that they stand
    for; 0 leaves CTC alone, which tells pieces apart but does not put tokens where the language model can read them."""
    alignment_min_count: int = option(20, minimum=1)
    """Alignment spells transcripts in those entries of the language model's vocabulary that occur at least this often
    in the training texts, and the rest in shorter ones. Few, small pieces are learned from few hours; a language model
    reads many, large ones better. An alignment stage that starts from an aligned adapter chooses anew."""

    ctc_merge_pause_s: float = option(0.0, minimum=0)
    """Shorten the audio for the language model by the alignment: tokens in a row that say the same piece become one,
    and of blanks one is kept for each so many seconds of pause; 0 keeps all. It needs an aligned adapter."""

    lora: bool = True
    """Train low-rank adapters in the language model."""
    lora_rank: int = option(8, minimum=1)
    """Rank of the low-rank adapters."""
    lora_alpha: float = option(32.0, above=0)
    """Scale of the low-rank adapters: their output is multiplied by alpha / rank."""
    lora_dropout: float = option(0.1, minimum=0, below=1)
    """Dropout before the low-rank adapters, in training."""
    lora_target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    """Names of the linear layers that get low-rank adapters."""

    multi_prompt: bool = True
    """Kept for `legacy: exact`, where false gives a batch one common prompt. Otherwise every clip has its own."""
    prompt_template: str = "USER: {}\nASSISTANT:"
    """The chat template; `{}` is replaced by the prompt."""
    prompt_path: str | None = option("prompts/train.json", path="prompts")
    """Prompts for training: task -> list, one drawn by seed. If there is no such file, the program's own file of that
    name is used."""
    test_prompt_path: str | None = option("prompts/test.json", path="prompts")
    """Prompts for evaluation: task -> one. If there is no such file, the program's own file of that name is used."""
    max_txt_len: int = option(300, minimum=1)
    """Maximum tokens of a target; longer ones are cut, with a warning and a count, but the end symbol is kept."""
    end_sym: str = "</s>"
    """End symbol: the text after each target, at which generation stops; may be several tokens."""
    bos_token: str | None = None
    """Beginning-of-sequence token for a tokenizer that has none, such as `<|im_start|>` for Qwen."""
    stop_strings: tuple[str, ...] = ()
    """Further strings that end generation, in addition to the end symbol and the model's end-of-sequence tokens."""

    quantization: Literal["none", "nf4", "int8", "gptq", "torchao_int4", "torchao_int8"] = "none"
    """Format of the language model's frozen weights. The family's `qlora: true` is `nf4`, `low_resource: true` is
    `int8`; a folder with a quantised model is loaded in its own format."""
    nf4_double_quant: bool = True
    """With `nf4`: quantise the scales to 8 bits too, which saves 0.4 bits per weight."""
    int8_threshold: float = option(6.0, minimum=0)
    """With `int8` of bitsandbytes: activations above this are multiplied unquantised; 0 quantises all."""
    gptq_kernel: Literal["auto", "packed", "dequantize", "gptqmodel"] = "auto"
    """Kernel for the weights of a `gptq` folder: `packed` is PyTorch's 4-bit product (CPU, bfloat16), `dequantize`
    unpacks each weight before its product, `gptqmodel` uses GPTQModel's kernels (CUDA, an extra). `auto` is the
    fastest one available."""
    gptq_backend: str = "auto_trainable"
    """With `gptq_kernel: gptqmodel`: which of GPTQModel's kernels, by its own names. Many of the fastest, which `auto`
    may choose, give LoRA no gradient."""
    torchao_group_size: Literal[32, 64, 128, 256] = 128
    """With `torchao_int4`: weights of a row that share a scale."""
    encoder_quantization: Literal["none", "int8"] = "none"
    """Format of the linear layers of the frozen Whisper and BEATs: `int8` is a byte per weight and a scale per
    output."""
    whisper_layers: int | None = option(None, minimum=1)
    """Layers of Whisper to keep, from the bottom; null keeps all."""
    beats_layers: int | None = option(None, minimum=1)
    """Layers of BEATs to keep, from the bottom; null keeps all."""
    allow_slow_kernels: bool = False
    """Allow a quantisation that is slower on this device than unquantised weights; otherwise it is an error."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number type of the frozen weights and of the computation: `auto` is float32 on CPU and, in training, without
    `run.amp`; float16 on CUDA."""
    cuda_graphs: bool = True
    """On CUDA, in evaluation: run encoders, prefill and decode steps from CUDA graphs. Without them, launching
    kernels takes most of a small model's time; false saves the graphs' memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.legacy is None:
            legacy = "weights" if (self.ckpt or "").endswith(".pth") else "off"
            object.__setattr__(self, "legacy", legacy)
        _rule(
            self.qformer_hidden_size % self.qformer_num_heads == 0,
            f"model.qformer_num_heads ({self.qformer_num_heads}) does not divide model.qformer_hidden_size "
            f"({self.qformer_hidden_size})",
        )
        trained = [name for name in ("whisper", "beats") if not getattr(self, f"freeze_{name}")]
        trained = [name for name in trained if getattr(self, f"{name}_path")]
        _rule(
            self.encoder_quantization == "none" or not trained,
            f"model.encoder_quantization is {self.encoder_quantization!r}, but model.freeze_{''.join(trained[:1])} is "
            "false: quantised weights cannot be trained; change one of the two",
        )
        _rule(
            self.prompt_template.count("{}") == 1,
            f"model.prompt_template needs exactly one {{}} where the prompt goes, found {self.prompt_template!r}",
        )
        _rule(
            self.prompt_template.count("<SpeechHere>") <= 1,
            f"model.prompt_template holds <SpeechHere> more than once: {self.prompt_template!r}",
        )


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """The model (student) learns from a frozen teacher in addition to the texts. Off unless `teacher` is given. The
    loss is the weighted sum of the terms below; a weight of 0 leaves a term out. Each term says what teacher and
    student must have in common."""

    teacher: ModelConfig | None = None
    """The teacher, with the keys of `model`; its `ckpt` is its adapter. The family's section `model_T` (and `model_S`
    is then `model`)."""
    labels: float = option(0.7, minimum=0)
    """Weight of the cross-entropy with the true texts."""
    logits: float = option(0.3, minimum=0)
    """Weight of the divergence (Kullback-Leibler, times temperature squared) from the teacher's distribution over the
    next token, at the target's tokens. Needs the same tokenizer."""
    temperature: float = option(3.0, above=0)
    """Divides the student's and the teacher's logits in that term."""
    hidden: float = option(0.0, minimum=0)
    """Weight of the squared distance between the language models' last hidden states, each normalised, at the target's
    tokens. Needs the same width and the same tokenizer."""
    qformer: float = option(1.0, minimum=0)
    """Weight of the squared distance between the Q-Formers' outputs, over all audio tokens. Needs the same width,
    windows and queries."""

    def __post_init__(self) -> None:
        _rule(
            self.labels + self.logits + self.hidden + self.qformer > 0,
            "distillation: labels, logits, hidden and qformer are all 0; give at least one a weight",
        )


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How text is generated, in evaluation and by default elsewhere."""

    max_new_tokens: int = option(200, minimum=1)
    """Maximum tokens to generate for a clip."""
    num_beams: int = option(4, minimum=1)
    """Beams; 1 is greedy search, or sampling."""
    do_sample: bool = False
    """Sample tokens instead of taking the most likely one."""
    min_length: int = option(1, minimum=0)
    """Minimum tokens to generate before an end is allowed."""
    temperature: float = option(1.0, above=0)
    """Divides the logits before sampling."""
    top_p: float = option(0.9, above=0, maximum=1)
    """Sampling keeps the most likely tokens that together have this probability."""
    top_k: int = option(0, minimum=0)
    """Sampling keeps this many of the most likely tokens; 0 keeps all."""
    repetition_penalty: float = option(1.0, above=0)
    """Above 1, tokens that were generated before become less likely."""
    no_repeat_ngram_size: int = option(0, minimum=0)
    """No sequence of this many generated tokens occurs twice in a text; 0 allows all."""
    length_penalty: float = 1.0
    """Beam scores are divided by length to this power; above 0 favours longer texts."""

    def __post_init__(self) -> None:
        _rule(
            self.min_length <= self.max_new_tokens,
            f"generate.min_length ({self.min_length}) is above generate.max_new_tokens ({self.max_new_tokens})",
        )


@dataclass(frozen=True, kw_only=True)
class JoinClipsConfig:
    """Several short clips joined into one, with their texts: longer utterances than those recorded."""

    p: float = option(0.5, minimum=0, maximum=1)
    """Share of the clips that others are appended to."""
    most: int = option(3, minimum=1)
    """Maximum number of appended clips; the number is drawn uniformly from 1 to this."""
    tasks: tuple[str, ...] = ("asr",)
    """Tasks whose texts may be joined."""
    same: str | None = None
    """A field of the annotations, such as `speaker`, that must be equal in all joined clips."""
    max_s: float | None = option(None, above=0)
    """Maximum length of the result, in seconds: clips that would exceed it are left out; null: only `max_audio_s`
    limits it."""
    min_pause_s: float = option(0.0, minimum=0)
    """Shortest silence between two clips, in seconds."""
    max_pause_s: float = option(0.3, minimum=0)
    """Longest silence between two clips, in seconds."""

    def __post_init__(self) -> None:
        _rule(
            self.min_pause_s <= self.max_pause_s,
            f"datasets.join_clips.min_pause_s ({self.min_pause_s}) is above max_pause_s ({self.max_pause_s})",
        )


@dataclass(frozen=True, kw_only=True)
class DatasetsConfig(_Section):
    """Annotation files and how clips are read."""

    prefix: str | None = option(None, path="folder")
    """Folder of relative clip paths, and of annotation files that are not found as given."""
    train_ann_path: Paths = option(None, path="annotation")
    """Annotation file to train on, or a list of them. Of a clip with several references (`texts`) each epoch uses one,
    drawn by `run.seed`. Also written `train_stage1_path`, `train_ann_path_1`."""
    valid_ann_path: Paths = option(None, path="annotation")
    """Annotation file, or list, to validate on; null trains without validation, and `evaluate.py --mode valid_…` scores
    the test files."""
    test_ann_path: Paths = option(None, path="annotation")
    """Annotation file, or list, to evaluate on if no file for the mode is given."""
    test_ann_path_asr: Paths = option(None, path="annotation")
    """Annotation file, or list, for speech recognition. Also written `test_asr_path`."""
    test_ann_path_aac: Paths = option(None, path="annotation")
    """Annotation file, or list, for audio captioning. Also written `test_aac_path`."""
    train_stage2_path: Paths = option(None, path="annotation")
    """With `run.auto_second`: annotation file, or list, that the second stage trains on. Also `train_ann_path_2`."""
    valid_stage2_path: Paths = option(None, path="annotation")
    """With `run.auto_second`: what the second stage validates on; null uses `valid_ann_path`. Also
    `valid_ann_path_2`."""

    max_audio_s: float | None = option(None, above=0)
    """Maximum length of a clip, in seconds; null: no limit. In evaluation longer clips are cut, with a count; in
    training `long_clips` says what happens."""
    long_clips: Literal["refuse", "skip", "cut"] = "refuse"
    """Training clips that `max_audio_s` would cut under the text of the whole clip: an error before training, left out,
    or cut and trained."""
    max_bad_fraction: float = option(0.001, minimum=0, maximum=1)
    """Training stops when more than this share of the clips cannot be read."""
    cache_encoder_outputs: str | None = option(None, path="output")
    """Folder for a cache of frozen encoders' outputs, so that later epochs need not encode; null: no cache."""
    augmentation: dict[str, Any] | None = None
    """Waveform augmentations for training: name -> settings, such as `gaussian_noise: {p: 0.3}`, `gain: {p: 0.3}`; see
    `configs/augmentation.py`. Names of audiomentations are read too, see below."""
    join_clips: JoinClipsConfig | None = None
    """Join short clips in training, such as `{p: 0.5, most: 4, same: speaker}`; null joins none."""
    bucket_batches: int = option(50, minimum=0)
    """Batches that are shuffled together and then sorted by length, so that a batch has clips of similar length; 0 does
    not sort."""
    task_weights: dict[str, float] | None = None
    """How often a task's clips are drawn, relative to the other tasks' (not listed: 1); null draws every clip once per
    epoch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for task, weight in (self.task_weights or {}).items():
            _rule(weight >= 0, f"datasets.task_weights.{task}: expected at least 0, found {weight}")


ANNOTATION_PATHS = tuple(
    field.name for field in dataclasses.fields(DatasetsConfig) if field.metadata.get("path") == "annotation"
)
"""Keys of `datasets` that name annotation files."""


@dataclass(frozen=True, kw_only=True)
class OptimsConfig:
    """AdamW and its learning rate: linear warm-up, then cosine decay over the run."""

    max_epoch: int = option(30, minimum=1)
    """Epochs to train for."""
    warmup_steps: int = option(3000, minimum=0)
    """Steps of linear warm-up from `warmup_start_lr` to `init_lr`."""
    warmup_start_lr: float = option(1e-6)
    """Learning rate at the first step; below 0 starts at `init_lr`."""
    init_lr: float = option(3e-5, minimum=0)
    """Learning rate after warm-up: the highest."""
    min_lr: float = option(1e-5, minimum=0)
    """Learning rate at the end of the cosine."""
    weight_decay: float = option(0.05, minimum=0)
    """Weight decay of matrices; biases and norms get none."""
    beta2: float = option(0.999, minimum=0, below=1)
    """AdamW's second decay rate; the first is 0.9."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(_Section):
    """A training or evaluation run."""

    stage: Literal["train", "align"] = "train"
    """`align` trains the connector alone, to put audio tokens where the language model's embeddings of the transcript's
    pieces are (CTC); of the language model only the embedding table is loaded. `train` trains connector and LoRA
    through the language model: the family's stages 1, 2 and 3."""
    seed: int = option(42, minimum=0)
    """Seed of all randomness."""
    output_dir: str = option("outputs", path="output")
    """Folder for checkpoints, logs and scores. Default: `outputs/`, then the YAML's folder and name. `{date}`
    (2025-01-31) and `{time}` (2025-01-31_18-05-59) are when a run started: `outputs/{time}` is a folder of its own for
    each run, in which `--resume` finds the newest run and evaluation the run of its adapter, else the newest."""
    output_dir_stage2: str | None = option(None, path="output")
    """With `run.auto_second`: the second stage's folder; null is `output_dir` with `_stage2` appended. The
    family's `output_dir.stage2_output_dir`."""
    evaluate: bool = False
    """Evaluate on the test files instead of training."""
    resume: str | None = option(None, path="any")
    """Checkpoint folder to continue from, `last` for the newest in `output_dir`; null starts a new run."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`; `auto` is CUDA if available."""
    amp: bool = False
    """Mixed precision: bfloat16 if `model.dtype` is bfloat16 (on a CPU with bfloat16 instructions twice as fast as
    float32), else float16 with loss scaling on CUDA, and nothing on a CPU."""

    epoch_based: bool = False
    """An epoch is one pass over the data; false: `iters_per_epoch` iterations."""
    iters_per_epoch: int = option(3000, minimum=1)
    """Iterations of an epoch, unless `epoch_based`."""
    accum_grad_iters: int = option(1, minimum=1)
    """Batches per optimiser step; the loss is the mean over the target tokens of all of them."""
    batch_size_train: int = option(8, minimum=1)
    """Clips in a training batch, per process."""
    batch_size_eval: int = option(8, minimum=1)
    """Clips in a validation or evaluation batch, per process."""
    num_workers: int = option(8, minimum=0)
    """Loader processes per training process; 0 reads in the main process. Results do not depend on it."""
    max_grad_norm: float | None = option(1.0, above=0)
    """Gradients are clipped to this norm; null does not clip."""
    max_nonfinite_steps: int = option(5, minimum=1)
    """Training stops after this many non-finite losses in a row; until then such steps are skipped and counted."""

    log_freq: int = option(5, minimum=1)
    """Steps between log lines."""
    valid_freq: int = option(1, minimum=1)
    """Epochs between validations; the last epoch always has one."""
    valid_scoring: bool = False
    """In validation, generate text and score it, in addition to the loss."""
    valid_max_samples: int | None = option(None, minimum=1)
    """Maximum number of validation clips to score, the same ones every time; null scores all."""
    best_metric: str | None = None
    """What the best checkpoint is chosen by: `loss`, or `task.metric` such as `asr.wer`; null is the task's own
    metric with `valid_scoring`, else the loss."""
    checkpoint_every_steps: int | None = option(None, minimum=1)
    """Steps between checkpoints; null writes one at the end of each epoch."""
    keep_checkpoints: int = option(2, minimum=1)
    """Number of newest checkpoints that are kept, in addition to the best."""

    auto_second: bool = False
    """Train the second stage right after the first, starting from its best adapter."""
    second_stage_config: str | None = option(None, path="file")
    """With `auto_second`: the second stage's YAML; null uses this one, with `datasets.train_stage2_path` and
    `run.optims_stage2`."""
    optims: OptimsConfig = option(factory=OptimsConfig)
    """Optimiser and learning rate. The family's `optims.optims_1`."""
    optims_stage2: OptimsConfig | None = None
    """With `auto_second`: the second stage's; null uses `optims`. The family's `optims.optims_2`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("output_dir", "output_dir_stage2"):
            folder = getattr(self, key) or ""
            unknown = unknown_placeholder(folder)
            _rule(
                unknown is None,
                f"run.{key}: {folder!r}: {unknown} is no placeholder; expected {{date}}, {{time}} or no braces",
            )
        more = sorted(placeholders(self.output_dir_stage2 or "") - placeholders(self.output_dir))
        _rule(
            not more,
            f"run.output_dir_stage2 has {{{more[0] if more else ''}}}, which run.output_dir has not; expected the same "
            "placeholders in both, so that a resumed run finds both folders",
        )

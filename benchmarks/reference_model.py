"""The public systems of this family, written plainly on transformers and peft: what ours is compared with.

- Whisper's log-mel spectrogram is computed on the CPU by the library's feature extractor, every clip padded to 30 s,
  and its encoder, loaded as a part of the whole Whisper, encodes the full window.
- The window-level Q-Former is BLIP-2's. A last window that is not full is dropped; encoder outputs are joined frame by
  frame.
- The language model generates through the library's `generate` with its dynamic cache. LoRA is peft's, unmerged.
- On CUDA encoders and connector are float32 and run under autocast to float16; the language model is float16, or NF4.

BEATs and CED, which no package has, are this program's, by the public code's rules; where ours are faster than theirs,
the reference is measured as faster too. Adapters are read from our files. In float32 its tokens are those of
`model.legacy: weights`; a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    StoppingCriteria,
    StoppingCriteriaList,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from configs.sections import ModelConfig
from models.checkpoint.adapter_folder import ADAPTER_FILE
from models.checkpoint.released_names import released_name
from models.encoders.table import ENCODERS, build_encoder
from models.hub import located
from models.language.text import PLACEHOLDER, load_tokenizer
from models.released_rules import RELEASED_ENCODERS, encode_released
from support.command_line import UserError
from support.units import SAMPLE_RATE

WINDOW_S = 30.0
WHISPER_FRAMES = 1500  # in 30 s
IGNORED = -100


class ReferenceModel(nn.Module):
    """Whisper and at most one other encoder, Q-Former, LLM; names are those of the public code.

    Raises:
        UserError: the configuration has no Whisper, several other encoders, or a quantisation other than NF4.
    """

    def __init__(self, config: ModelConfig, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.device = torch.device(device)
        self.prompt_template = config.prompt_template
        self.max_txt_len, self.end_sym = config.max_txt_len, config.end_sym
        others = [name for name, entry in ENCODERS.items() if name != "whisper" and getattr(config, entry.path_key)]
        if not config.whisper_path or len(others) > 1:
            given = others or "no Whisper"
            raise UserError(f"the reference model has Whisper and at most one other encoder; got {given}")
        if config.quantization not in ("none", "nf4"):
            raise UserError(f"the reference model has no quantisation {config.quantization!r}, only nf4")

        whisper_config = WhisperConfig.from_pretrained(located(config.whisper_path)[0])
        self.extractor = WhisperFeatureExtractor(feature_size=whisper_config.num_mel_bins)
        self.speech_encoder = WhisperModel.from_pretrained(located(config.whisper_path)[0], dtype=torch.float32).encoder
        self.ln_speech = nn.LayerNorm(whisper_config.d_model)
        width = whisper_config.d_model
        self.beats = None
        if others:
            self.beats = build_encoder(others[0], config, RELEASED_ENCODERS)
            self.ln_audio = nn.LayerNorm(self.beats.dim)
            width += self.beats.dim
        self.speech_encoder.requires_grad_(False)
        if self.beats is not None:
            self.beats.requires_grad_(False)

        self.llama_model = self._language_model(config)
        hidden = config.qformer_hidden_size
        self.speech_query_tokens = nn.Parameter(torch.zeros(1, config.num_speech_query_token, hidden))
        self.speech_Qformer = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=hidden,
                num_hidden_layers=config.qformer_layers,
                num_attention_heads=config.qformer_num_heads,
                intermediate_size=config.qformer_intermediate_size or 4 * hidden,
                cross_attention_frequency=1,
                encoder_hidden_size=width,
            )
        )
        self.speech_llama_proj = nn.Linear(hidden, self.llama_model.config.hidden_size)
        self.kernel = round(WHISPER_FRAMES * config.second_per_window / WINDOW_S)
        self.stride = round(WHISPER_FRAMES * config.second_stride / WINDOW_S)

        self.tokenizer = load_tokenizer(config.llama_path)
        self.bos_id = (
            self.tokenizer.convert_tokens_to_ids(config.bos_token) if config.bos_token else self.tokenizer.bos_token_id
        )
        if config.ckpt:
            self.load_adapter(Path(config.ckpt) / ADAPTER_FILE)
        self.to(self.device).eval()

    def _language_model(self, config: ModelConfig) -> nn.Module:
        dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        options: dict[str, Any] = {}
        if config.quantization == "nf4":
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
        base = AutoModelForCausalLM.from_pretrained(
            located(config.llama_path)[0], dtype=dtype, device_map={"": self.device}, **options
        )
        base.requires_grad_(False)
        if not config.lora:
            return base
        lora = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=list(config.lora_target_modules),
            task_type="CAUSAL_LM",
        )
        return get_peft_model(base, lora)

    def load_adapter(self, file: Path) -> None:
        """Load connector and LoRA from an adapter file of ours."""
        own = self.state_dict()
        state = {}
        for name, tensor in load_file(file).items():
            renamed = (released_name(name) or name).replace("speech_Qformer.bert.", "speech_Qformer.")
            renamed = renamed.replace("embeddings.LayerNorm.", "layernorm.").replace(
                "attention.self.", "attention.attention."
            )
            state[renamed] = tensor
        needed = [
            name for name in own if name.startswith(("ln_", "speech_Q", "speech_q", "speech_l")) or "lora_" in name
        ]
        if set(needed) != set(state):
            differing = sorted(set(needed) ^ set(state))[:6]
            raise UserError(f"{file}: expected the weights of this configuration; in one of the two only: {differing}")
        self.load_state_dict(state, strict=False)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.float16, enabled=self.device.type == "cuda")

    def features(self, waveforms: Sequence[Tensor]) -> Tensor:
        """30 s log-mel spectrograms `[B, M, 3000]`, on the CPU."""
        arrays = [waveform.numpy() for waveform in waveforms]
        return self.extractor(arrays, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features

    def encode(self, features: Tensor, waveforms: Sequence[Tensor]) -> Tensor:
        """Audio tokens `[B, A, H]` of spectrograms and of waveforms `[T]` each."""
        lengths = torch.tensor([len(waveform) for waveform in waveforms], device=self.device)
        padded = pad_sequence(list(waveforms), batch_first=True).to(self.device)
        with self._autocast():
            with torch.no_grad():
                speech = self.speech_encoder(features.to(self.device)).last_hidden_state
                audio = None if self.beats is None else encode_released(self.beats, padded, lengths)[0]
            fused = self.ln_speech(speech)
            if audio is not None:
                audio = self.ln_audio(audio)
                longest = max(fused.shape[1], audio.shape[1])
                padded = [F.pad(output, (0, 0, 0, longest - output.shape[1])) for output in (fused, audio)]
                fused = torch.cat(padded, dim=-1)
            batch = fused.shape[0]
            windows = fused.unfold(1, self.kernel, self.stride).transpose(2, 3).flatten(0, 1)  # [B * W, K, D]
            mask = torch.ones(windows.shape[:2], dtype=torch.long, device=self.device)
            queries = self.speech_query_tokens.expand(len(windows), -1, -1)
            tokens = self.speech_Qformer(
                query_embeds=queries, encoder_hidden_states=windows, encoder_attention_mask=mask
            ).last_hidden_state
            return self.speech_llama_proj(tokens).unflatten(0, (batch, -1)).flatten(1, 2)

    def _embed(self, ids: Tensor) -> Tensor:
        return self.llama_model.get_input_embeddings()(ids.to(self.device))

    def wrap(self, tokens: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Audio tokens in their prompts: embeddings `[B, L, H]` and mask `[B, L]`."""
        halves = [self.prompt_template.replace("{}", prompt, 1).split(PLACEHOLDER) for prompt in prompts]
        parts, masks = [], []
        for half in (0, 1):
            text = self.tokenizer(
                [pieces[half] for pieces in halves],
                add_special_tokens=False,
                padding="longest",
                padding_side="right",
                return_tensors="pt",
            )
            parts.append(self._embed(text.input_ids))
            masks.append(text.attention_mask.to(self.device))
        before, after = parts
        batch = len(tokens)
        ones = torch.ones(tokens.shape[:2], dtype=torch.long, device=self.device)
        parts, masks = [before, tokens.to(before.dtype), after], [masks[0], ones, masks[1]]
        if self.bos_id is not None:
            parts.insert(0, self._embed(torch.full((batch, 1), self.bos_id)))
            masks.insert(0, ones[:, :1])
        return torch.cat(parts, dim=1), torch.cat(masks, dim=1)

    @torch.no_grad()
    def generate(
        self,
        waveforms: Sequence[Tensor],
        prompts: Sequence[str],
        *,
        on_stage: Callable[[str], None] = lambda _: None,
        **options: Any,
    ) -> Tensor:
        """New ids `[B, G]`; `options` are those of the library's `generate`.

        `on_stage` is called with `features` and `encode` when these are done, then with `token` after every token.
        """
        features = self.features(waveforms)
        on_stage("features")
        tokens = self.encode(features, waveforms)
        on_stage("encode")
        embeds, mask = self.wrap(tokens, prompts)
        watch = StoppingCriteriaList([_TokenWatch(on_stage)])
        return self.llama_model.generate(inputs_embeds=embeds, attention_mask=mask, stopping_criteria=watch, **options)

    def forward(self, waveforms: Sequence[Tensor], prompts: Sequence[str], texts: Sequence[str]) -> Tensor:
        """The loss of the answers, computed by the library: with logits at every position."""
        embeds, mask = self.wrap(self.encode(self.features(waveforms), waveforms), prompts)
        answers = self.tokenizer(
            [text + self.end_sym for text in texts],
            add_special_tokens=False,
            padding="longest",
            padding_side="right",
            truncation=True,
            max_length=self.max_txt_len,
            return_tensors="pt",
        ).to(self.device)
        labels = answers.input_ids.masked_fill(answers.attention_mask == 0, IGNORED)
        unscored = torch.full(embeds.shape[:2], IGNORED, device=self.device)
        output = self.llama_model(
            inputs_embeds=torch.cat([embeds, self._embed(answers.input_ids)], dim=1),
            attention_mask=torch.cat([mask, answers.attention_mask], dim=1),
            labels=torch.cat([unscored, labels], dim=1),
        )
        return output.loss


class _TokenWatch(StoppingCriteria):
    """Reports every token and never stops."""

    def __init__(self, on_stage: Callable[[str], None]) -> None:
        self.on_stage = on_stage

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.on_stage("token")
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

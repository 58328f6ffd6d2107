"""The language model: any causal LM of transformers, frozen, with LoRA on top; audio is unknown here.

It takes embeddings with explicit masks and positions and returns hidden states; logits are a separate step, so that
training computes them only at targets and prefill only for the last position.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from configs.architectures import find_architecture
from configs.sections import ModelConfig
from models.device import META, named_dtype
from models.hub import library_reports_off, load_config, load_weights
from models.language.lora import LoraMixin
from models.quantization import backends, report
from models.quantization.stored_shapes import GROUP, pack_linears
from models.runtime.host_memory import release_weight_pages
from support.command_line import UserError
from support.units import dtype_name

logger = logging.getLogger(__name__)

# Families whose embedding scale, masks and logits are compared with transformers' own forward in the tests. Any other
# family is compared on a few tokens each time it is loaded.
VERIFIED_FAMILIES = frozenset({"llama", "qwen2", "qwen3", "gemma2", "gemma3", "gemma3_text"})
SUPPORTED_LAYERS = frozenset({"full_attention", "sliding_attention"})


class RowCache(Protocol):
    """A `transformers.Cache` with a write position per row: `models.decoding.kv_cache.KeyValueCache`."""

    def begin(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Reserve slots for tokens with `mask` `[B, L]`: their slots `[B, L]`; which slots are valid, `[B, S]`."""


class LanguageModel(LoraMixin):
    """A frozen causal LM of transformers with LoRA, behind `embed`, `forward` and `logits`.

    `model` is the library's model; `backend` says how its weights are stored and `kernel` which kernel multiplies them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        backend: backends.Backend = backends.BACKENDS["none"],
        checked: bool = True,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.backend = backend
        self.config: PreTrainedConfig = model.config.get_text_config()
        self._layer_types = _layer_types(self.config)
        self.kernel = report.kernel_report(model, backend, self.device, self.dtype)
        backends.make_trainable(model)
        if checked and self.config.model_type not in VERIFIED_FAMILIES and self.device != META:
            self._check_against_library()

    @classmethod
    def from_config(
        cls, config: ModelConfig, device: torch.device | str = "cpu", *, weights: bool = True
    ) -> "LanguageModel":
        """Load `config.llama_path` in its compute type, quantised as configured, and put fresh LoRA layers on it.

        Without `weights` it is made on the meta device from architecture facts, in the types that it would have on
        `device`, which need not exist.
        """
        if not config.llama_path:
            raise UserError("model.llama_path is not set; expected a folder or hub name of a causal language model.")
        with _named_key():
            llm = (cls._loaded if weights else cls._planned)(config, torch.device(device))
        if config.lora:
            with nullcontext() if weights else META:
                llm.add_lora(
                    rank=config.lora_rank,
                    alpha=config.lora_alpha,
                    dropout=config.lora_dropout,
                    target_modules=config.lora_target_modules,
                )
        return llm

    @classmethod
    def table_from_config(
        cls, config: ModelConfig, device: torch.device | str = "cpu", *, weights: bool = True
    ) -> "LanguageModel":
        """The embedding table of `config.llama_path` alone, as a language model without a layer: for `embed` only.

        Nothing else of it is kept, and no layer is read: no LoRA, no quantisation.
        """
        if not config.llama_path:
            raise UserError("model.llama_path is not set; its embedding table is what alignment aims at.")
        with _named_key():
            model = cls._without_layers(config, torch.device(device), weights)
        model.set_output_embeddings(model.get_input_embeddings())  # an untied head would only take memory
        table = cls(model, checked=False)
        table.kernel = f"embedding table alone, {dtype_name(table.dtype)}"
        return table

    @staticmethod
    def _without_layers(config: ModelConfig, device: torch.device, weights: bool) -> PreTrainedModel:
        """The library's model of `config.llama_path` with no layer between embeddings and head."""
        if weights:
            llm_config = load_config(AutoConfig, config.llama_path, config.token)
        else:
            llm_config = _library_config(find_architecture(config.llama_path, "llm").config)
        text_config = llm_config.get_text_config()
        text_config.num_hidden_layers = 0
        if getattr(text_config, "layer_types", None):
            text_config.layer_types = []
        if hasattr(llm_config, "quantization_config"):  # of the layers that are not there
            del llm_config.quantization_config
        dtype = compute_dtype(config.dtype, device, text_config.model_type)
        if not weights:
            with META:
                return AutoModelForCausalLM.from_config(llm_config, dtype=dtype)
        with library_reports_off():
            return load_weights(
                AutoModelForCausalLM.from_pretrained,
                config.llama_path,
                config.token,
                part="embedding table",
                config=llm_config,
                dtype=dtype,
                device_map={"": device},
            )

    @classmethod
    def _loaded(cls, config: ModelConfig, device: torch.device) -> "LanguageModel":
        llm_config = load_config(AutoConfig, config.llama_path, config.token)
        text_config = llm_config.get_text_config()
        dtype = compute_dtype(config.dtype, device, text_config.model_type)
        stored = backends.stored_backend(llm_config)
        backend = backends.resolve_backend(config, stored, device=device, dtype=dtype, trainable=False)
        arguments = backends.loading_arguments(
            backend, stored, dtype, config=config, llm_config=llm_config, device=device
        )
        model = load_weights(
            AutoModelForCausalLM.from_pretrained,
            config.llama_path,
            config.token,
            part="language model",
            dtype=dtype,
            device_map={"": device},
            **arguments,
        )
        if stored in ("nf4", "int8"):
            backends.compute_in(model, dtype)
        report.check_kernels(model, config)
        if backend.name != "none":  # a tensor that was taken over as it is keeps its whole file mapped
            release_weight_pages()
        llm = cls(model, backend=backend)
        logger.info("language model %s, weights: %s", config.llama_path, llm.kernel)
        return llm

    @classmethod
    def _planned(cls, config: ModelConfig, device: torch.device) -> "LanguageModel":
        facts = find_architecture(config.llama_path, "llm")
        backend = backends.named_backend(config, facts.quantized)
        stored = facts.config.get("quantization_config") or {}
        llm_config = _library_config(facts.config)
        dtype = compute_dtype(config.dtype, device, llm_config.get_text_config().model_type)
        with META:
            model = AutoModelForCausalLM.from_config(llm_config, dtype=dtype)
        if backend.name != "none":
            pack_linears(
                model,
                backend.name,
                dtype,
                skip=model.get_output_embeddings(),
                bits=stored.get("bits", 4),
                group_size=stored.get("group_size", GROUP) if backend.name == "gptq" else config.torchao_group_size,
                unpacks=backend.name != "gptq" or backends.gptq_kernel(config, device) == "dequantize",
            )
        llm = cls(model, backend=backend)
        llm.kernel = f"{backend.name}, planned, compute {dtype_name(dtype)}, {device.type}"
        return llm

    @property
    def is_table(self) -> bool:
        """Whether it is an embedding table alone, without layers."""
        return self.config.num_hidden_layers == 0

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The compute type: that of embeddings and activations."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def positions(self) -> int | None:
        """The longest sequence that its position embeddings are made for; None where its configuration has no limit."""
        stated = getattr(self.config, "max_position_embeddings", None)
        scaling = getattr(self.config, "rope_parameters", None) or {}
        original = scaling.get("original_max_position_embeddings") or stated
        if stated and scaling.get("rope_type") in ("linear", "dynamic", "yarn"):  # which may state the unscaled number
            return max(stated, int(original * scaling.get("factor", 1)))
        return stated

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def vocab_size(self) -> int:
        return self.model.get_output_embeddings().weight.shape[0]

    def train(self, mode: bool = True) -> "LanguageModel":
        """Only LoRA's dropout ever trains; the frozen base stays in eval, where it has no dropout."""
        super().train(False)
        self.training = mode
        for layer in self.lora_layers():
            layer.lora_dropout.train(mode)
        return self

    def embed(self, ids: Tensor) -> Tensor:
        """Ids `[...]` to embeddings `[..., H]` in the embedding space that `forward` expects (scaled for Gemma)."""
        return self.model.get_input_embeddings()(ids)

    def forward(self, embeds: Tensor, mask: Tensor, positions: Tensor, cache: RowCache | None = None) -> Tensor:
        """Hidden states `[B, L, H]` of embeddings `[B, L, H]`, with `mask` `[B, L]` bool and `positions` `[B, L]`.

        Without a cache, token i attends to the unmasked tokens 0..i of its row. With one, new keys and values are
        written at each row's own write position, and tokens attend to the row's earlier ones too.
        """
        if cache is None:
            slots = torch.arange(embeds.shape[1], device=embeds.device).expand(mask.shape)
            valid = mask
        else:
            slots, valid = cache.begin(mask)
        with self._own_precision():
            output = self._decoder(
                inputs_embeds=embeds.to(self.dtype),
                attention_mask=self._attention_masks(slots, valid),
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        return output.last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits `[..., V]` of hidden states `[..., H]`, scaled and capped as the family does, in float32."""
        head = self.model.get_output_embeddings()
        with self._own_precision():
            logits = head(hidden.to(head.weight.dtype)).float()
        if getattr(self.config, "logit_scale", None):  # Cohere
            logits = logits * self.config.logit_scale
        if getattr(self.config, "logits_scaling", None):  # Granite
            logits = logits / self.config.logits_scaling
        cap = getattr(self.config, "final_logit_softcapping", None)  # Gemma 2
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _own_precision(self) -> AbstractContextManager:
        """Gemma overflows in float16, so its weights are in a wider type; autocast to float16 must not undo that."""
        if self.config.model_type.startswith("gemma") and self.dtype != torch.float16:
            return torch.autocast(self.device.type, enabled=False)
        return nullcontext()

    @property
    def _decoder(self) -> nn.Module:
        """The library's transformer without its output head."""
        return self.model.get_decoder()

    def _attention_masks(self, slots: Tensor, valid: Tensor) -> Tensor | dict[str, Tensor]:
        """Masks `[B, 1, L, S]` for queries in `slots` `[B, L]` over keys whose slots are `valid` `[B, S]`.

        A query attends to valid keys of its own and earlier slots, within the window in sliding layers. A pad without
        any attends to itself: a softmax over nothing is NaN.
        """
        window = getattr(self.config, "sliding_window", None)
        slides = window is not None and (self._layer_types is None or "sliding_attention" in self._layer_types)
        slides = slides and valid.shape[1] > window
        visible = valid[:, None, None, :]
        if slots.shape[1] > 1 or slides:  # a single token is the last of its row: no valid slot follows
            keys = torch.arange(valid.shape[1], device=slots.device)
            distance = slots[:, None, :, None] - keys  # [B, 1, L, S]
            visible = visible & (distance >= 0)
        full = self._for_attention(visible if slots.shape[1] == 1 else _or_itself(visible, distance))
        sliding = self._for_attention(_or_itself(visible & (distance < window), distance)) if slides else full
        if self._layer_types is None:
            return sliding
        return {"full_attention": full, "sliding_attention": sliding}

    def _for_attention(self, allowed: Tensor) -> Tensor:
        """Eager attention adds its mask to the scores; the fused kernels take booleans."""
        if self._decoder.config._attn_implementation != "eager":
            return allowed
        return torch.zeros(allowed.shape, dtype=self.dtype, device=allowed.device).masked_fill_(
            ~allowed, torch.finfo(self.dtype).min
        )

    @torch.no_grad()
    def _check_against_library(self) -> None:
        """An unknown family may scale embeddings or logits in its own way: compare with transformers' forward."""
        ids = torch.arange(4, device=self.device)[None] % self.vocab_size
        positions = torch.arange(4, device=self.device)[None]
        expected = self.model(input_ids=ids, position_ids=positions, use_cache=False).logits.float()
        got = self.logits(self(self.embed(ids), torch.ones_like(ids, dtype=torch.bool), positions))
        scale = expected.abs().max().clamp(min=1e-6)
        if got.shape != expected.shape or ((got - expected).abs().max() / scale) > 0.02:
            raise UserError(
                f"model.llama_path: {self.config.model_type} models scale embeddings, masks or logits in a way unknown "
                f"here (logits differ from the library's own); known families: {', '.join(sorted(VERIFIED_FAMILIES))}."
            )


def compute_dtype(choice: str, device: torch.device, model_type: str = "") -> torch.dtype:
    """The type to compute in. `auto`: float32 on CPU, float16 on CUDA; Gemma would overflow: bfloat16 or float32."""
    if choice != "auto" or device.type != "cuda" or not model_type.startswith("gemma"):
        return named_dtype(choice, device)
    if not torch.cuda.is_available():  # planned for a device that is elsewhere: taken to have bfloat16
        return torch.bfloat16
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float32


@contextmanager
def _named_key() -> Iterator[None]:
    """Errors name `model.llama_path`, unless they name another key."""
    try:
        yield
    except UserError as error:
        message = str(error)
        raise type(error)(message if message.startswith("model.") else f"model.llama_path: {message}") from error


def _library_config(facts: dict) -> PreTrainedConfig:
    """The library's configuration of a model from its architecture facts, unquantised."""
    return AutoConfig.for_model(**{key: value for key, value in facts.items() if key != "quantization_config"})


def _layer_types(config: PreTrainedConfig) -> list[str] | None:
    """The kind of each layer where the family has several kinds; None where all layers share one mask."""
    layer_types = getattr(config, "layer_types", None)
    if not layer_types:
        return None
    unsupported = sorted(set(layer_types) - SUPPORTED_LAYERS)
    if unsupported:
        raise UserError(
            f"model.llama_path: {config.model_type} has layers of type {', '.join(unsupported)}; "
            f"supported are {', '.join(sorted(SUPPORTED_LAYERS))}."
        )
    return list(layer_types)


def _or_itself(visible: Tensor, distance: Tensor) -> Tensor:
    return visible | ((distance == 0) & ~visible.any(dim=-1, keepdim=True))

"""Parts of the program for tests: a test gives the arguments that it is about, the others are the schema's defaults."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from configs.sections import DatasetsConfig, ModelConfig
from data.sampling import GlobalBatchSampler
from models.connector.connector import Connector
from models.connector.qformer import QFormerConfig
from models.language.text import TextProcessor

MODEL, DATASETS = ModelConfig(), DatasetsConfig()
QFORMER = {
    "hidden_size": MODEL.qformer_hidden_size,
    "num_heads": MODEL.qformer_num_heads,
    "num_layers": MODEL.qformer_layers,
    "num_queries": MODEL.num_speech_query_token,
    "dropout": MODEL.qformer_dropout,
}


def text_processor(tokenizer: PreTrainedTokenizerBase, **changes: object) -> TextProcessor:
    """A prompt stands in no template."""
    defaults = {
        "prompt_template": "{}",
        "end_sym": MODEL.end_sym,
        "bos_token": MODEL.bos_token,
        "stop_strings": MODEL.stop_strings,
        "max_txt_len": MODEL.max_txt_len,
        "extra_eos_ids": (),
    }
    return TextProcessor(tokenizer, **(defaults | changes))


def connector_of(
    names: list[str], dims: list[int], rates_hz: list[float], llm_hidden_size: int, **changes: object
) -> Connector:
    defaults = QFORMER | {
        "intermediate_size": MODEL.qformer_intermediate_size,
        "window_s": MODEL.second_per_window,
        "stride_s": MODEL.second_stride,
        "keep_partial_window": True,
        "window_jitter": MODEL.window_jitter,
        "fusion": MODEL.fusion,
    }
    return Connector(names, dims, rates_hz, llm_hidden_size, **(defaults | changes))


def qformer_config(encoder_width: int, **changes: object) -> QFormerConfig:
    defaults = QFORMER | {"intermediate_size": 4 * MODEL.qformer_hidden_size}
    return QFormerConfig(encoder_width=encoder_width, **(defaults | changes))


def batch_sampler(durations: Sequence[float], *, batch_size: int, **changes: object) -> GlobalBatchSampler:
    """One process, shuffled."""
    defaults = {
        "world_size": 1,
        "rank": 0,
        "seed": 0,
        "shuffle": True,
        "bucket_batches": DATASETS.bucket_batches,
        "tasks": None,
        "task_weights": None,
    }
    return GlobalBatchSampler(durations, batch_size=batch_size, **(defaults | changes))

"""Released checkpoints for tests: models that read them, and files as the public trainers write them."""

import os
from dataclasses import replace

import torch

from configs.schema import load_config
from models import build_model
from models.checkpoint.adapter_tensors import named_tensors
from models.checkpoint.released_names import released_name

BIAS = "beats.encoder.layers.1.self_attn.relative_attention_bias.weight"
PROMPT = "<Speech><SpeechHere></Speech> What is it?"


def make(project, **changes):
    config = load_config(project.config).model
    return build_model(replace(config, **{"legacy": "weights", "ckpt": None, **changes}))


def released_state(model, seed=3):
    """Random values under the names of the public trainers' files, with the buffers that they save too."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        released_name(name): torch.randn(tensor.shape, generator=generator) * 0.1
        for name, (tensor, needed) in named_tensors(model).items()
        if needed and not name.startswith("llm.pad_rows.")
    }
    assert None not in state
    state["speech_Qformer.bert.embeddings.position_ids"] = torch.arange(8)[None]
    if "beats" in model.encoders.encoders:
        state[BIAS] = (
            model.encoders.encoders["beats"].encoder.layers[0].self_attn.relative_attention_bias.weight.clone()
        )
    return state


def write(path, state):
    torch.save({"model": state, "optimizer": {"state": {}}, "config": {"run": {}}, "scaler": None, "epoch": 3}, path)
    return path


def pad_rows(model, count=1):
    generator = torch.Generator().manual_seed(9)
    shape = (count, model.llm.hidden_size)
    return {
        "lm_head.weight": torch.randn(shape, generator=generator),
        "model.embed_tokens.weight": torch.randn(shape, generator=generator),
    }


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)

"""The Q-Former and the windowed connector against vectors of the public implementation."""

import json

import pytest
import torch
from safetensors.torch import load_file

from models.checkpoint.released_names import connector_state
from models.connector.qformer import QFormer
from models.frames import Frames
from tests.parts import connector_of, qformer_config

TOLERANCE = {"atol": 1e-5, "rtol": 0.0}


def stripped(state, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in connector_state(state).items()}


def test_qformer(parity_dir):
    folder = parity_dir / "qformer"
    settings = json.loads((folder / "config.json").read_text())["config"]
    qformer = QFormer(
        qformer_config(
            encoder_width=settings["encoder_width"],
            hidden_size=settings["bert"]["hidden_size"],
            num_heads=settings["bert"]["num_attention_heads"],
            num_layers=settings["num_hidden_layers"],
            intermediate_size=settings["bert"]["intermediate_size"],
            num_queries=settings["num_query_tokens"],
        )
    ).eval()
    qformer.load_state_dict(stripped(load_file(folder / "weights.safetensors"), "connector.qformer."))
    inputs, outputs = load_file(folder / "input.safetensors"), load_file(folder / "output.safetensors")
    frames, mask = inputs["encoder_hidden_states"], inputs["encoder_attention_mask"].bool()
    torch.testing.assert_close(qformer(frames), outputs["query_out"], **TOLERANCE)
    torch.testing.assert_close(qformer(frames, mask), outputs["query_out_masked"], **TOLERANCE)


CASES = (
    "full_30s",
    "short_audio",
    "audio_longer",
    "exact_multiple",
    "one_frame_short",
    "whisper_only",
    "two_queries",
    "overlap",
    "one_second_windows",
    "no_window",
)


@pytest.mark.parametrize("name", CASES)
def test_windowed_connector(parity_dir, name):
    folder = parity_dir / "window_level_qformer"
    settings = json.loads((folder / "config.json").read_text())["config"]
    case = settings["cases"][name]
    inputs, outputs = load_file(folder / "input.safetensors"), load_file(folder / "output.safetensors")
    streams = [inputs[f"{name}.{kind}"].float() for kind in ("speech", "audio") if f"{name}.{kind}" in inputs]
    weights = load_file(folder / f"weights_{case['weights']}.safetensors")
    connector = connector_of(
        ["whisper", "beats"][: len(streams)],
        [stream.shape[-1] for stream in streams],
        [50.0] * len(streams),
        settings["d_llm"],
        hidden_size=settings["bert"]["hidden_size"],
        num_heads=settings["bert"]["num_attention_heads"],
        intermediate_size=settings["bert"]["intermediate_size"],
        num_queries=weights["speech_query_tokens"].shape[1],
        window_s=case["second_per_window"] if case["window_level_Qformer"] else None,
        stride_s=case["second_stride"],
        keep_partial_window=False,
    ).eval()
    connector.load_state_dict(stripped(weights, "connector."))
    tokens, mask = connector([Frames(stream, torch.full((len(stream),), stream.shape[1])) for stream in streams])
    assert tokens.shape[1] == case["tokens"] and mask.all()
    torch.testing.assert_close(tokens, outputs[f"{name}.tokens"], **TOLERANCE)

"""The Q-Former and the windowed connector against vectors of the public implementation."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from models.checkpoint.released_names import own_name
from models.connector.qformer import QFormer, QFormerConfig
from models.frames import Frames
from tests.parts import connector_of
from tests.vectors import cases, matches, settings

TOLERANCE = {"atol": 1e-5, "rtol": 0.0}


def stripped(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Released tensors under our names, without `prefix`; what has no name with us (a buffer of BERT's) is left out."""
    own = {own_name(name): tensor for name, tensor in state.items()}
    return {name.removeprefix(prefix): tensor for name, tensor in own.items() if (name or "").startswith(prefix)}


def layers_in(state: dict[str, torch.Tensor]) -> int:
    return len(set(matches(r"speech_Qformer\.bert\.encoder\.layer\.(\d+)\..*", list(state))))


def test_qformer(parity_dir: Path) -> None:
    folder = parity_dir / "qformer"
    facts = settings(folder)
    qformer = QFormer(
        QFormerConfig(
            encoder_width=facts["encoder_width"],
            hidden_size=facts["bert"]["hidden_size"],
            num_heads=facts["bert"]["num_attention_heads"],
            num_layers=facts["num_hidden_layers"],
            intermediate_size=facts["bert"]["intermediate_size"],
            num_queries=facts["num_query_tokens"],
            dropout=0.0,
        )
    ).eval()
    qformer.load_state_dict(stripped(load_file(folder / "weights.safetensors"), "connector.qformer."))
    inputs, outputs = load_file(folder / "input.safetensors"), load_file(folder / "output.safetensors")
    frames, mask = inputs["encoder_hidden_states"], inputs["encoder_attention_mask"].bool()
    torch.testing.assert_close(qformer(frames), outputs["query_out"], **TOLERANCE)
    torch.testing.assert_close(qformer(frames, mask), outputs["query_out_masked"], **TOLERANCE)


@cases("name", "window_level_qformer", lambda folder: list(settings(folder)["cases"]))
def test_windowed_connector(parity_dir: Path, name: str) -> None:
    folder = parity_dir / "window_level_qformer"
    facts = settings(folder)
    case = facts["cases"][name]
    inputs, outputs = load_file(folder / "input.safetensors"), load_file(folder / "output.safetensors")
    streams = [inputs[f"{name}.{kind}"].float() for kind in ("speech", "audio") if f"{name}.{kind}" in inputs]
    weights = load_file(folder / f"weights_{case['weights']}.safetensors")
    connector = connector_of(
        ["whisper", "beats"][: len(streams)],
        [stream.shape[-1] for stream in streams],
        [50.0] * len(streams),
        facts["d_llm"],
        hidden_size=facts["bert"]["hidden_size"],
        num_heads=facts["bert"]["num_attention_heads"],
        num_layers=layers_in(weights),
        intermediate_size=facts["bert"]["intermediate_size"],
        num_queries=weights["speech_query_tokens"].shape[1],
        window_s=case["second_per_window"] if case["window_level_Qformer"] else None,
        stride_s=case["second_stride"],
        keep_partial_window=False,
    ).eval()
    connector.load_state_dict(stripped(weights, "connector."))
    tokens, mask = connector([Frames(stream, torch.full((len(stream),), stream.shape[1])) for stream in streams])
    assert tokens.shape[1] == case["tokens"] and mask.all()
    torch.testing.assert_close(tokens, outputs[f"{name}.tokens"], **TOLERANCE)

"""models.encoders.features.kaldi_fbank against BEATs' own front-end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.encoders.features import kaldi_fbank


@pytest.fixture(scope="module")
def vectors(parity_dir: Path) -> dict[str, torch.Tensor]:
    folder = parity_dir / "kaldi_fbank"
    return load_file(folder / "input.safetensors") | load_file(folder / "output.safetensors")


def _fbank(pcm: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    waveform = pcm.to(dtype)[None] / 32768
    return kaldi_fbank(waveform, torch.tensor([len(pcm)]), dtype=dtype)[0]


@pytest.mark.parametrize("name", ["noise", "chirp", "mix", "silence"])
def test_float64(vectors: dict[str, torch.Tensor], name: str) -> None:
    ours = _fbank(vectors[f"pcm_{name}"], torch.float64)
    torch.testing.assert_close(ours, vectors[f"fbank_{name}"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("pcm", "expected", "atol"),
    [("noise", "noise", 2e-3), ("mix", "mix", 2e-3), ("silence", "silence", 2e-3), ("chirp", "chirp_f32in", 1.0)],
)
def test_float32(vectors: dict[str, torch.Tensor], pcm: str, expected: str, atol: float) -> None:
    ours = _fbank(vectors[f"pcm_{pcm}"], torch.float32)
    torch.testing.assert_close(ours, vectors[f"fbank_{expected}"], atol=atol, rtol=0)


def test_a_batch_gives_each_clip_its_own_values(vectors: dict[str, torch.Tensor]) -> None:
    names = ["noise", "chirp", "mix", "silence"]
    clips = [vectors[f"pcm_{name}"].double() / 32768 for name in names]
    lengths = torch.tensor([len(clip) for clip in clips])
    batch = kaldi_fbank(torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), lengths, dtype=torch.float64)
    for row, name in enumerate(names):
        expected = vectors[f"fbank_{name}"]
        torch.testing.assert_close(batch[row, : len(expected)], expected, atol=1e-4, rtol=0)
        assert not batch[row, len(expected) :].any()
